"""Languages of pairs: what stands around texts is what plain transformers puts there; wrong codes are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_families
import tiny_translators
import yaml
from transformers import AutoTokenizer

from distill_engine.data.kinds.protocol import Guess
from distill_engine.families.lookup import family_named
from distill_engine.recipe.load import load_recipe
from distill_engine.recipe.problem import RecipeError
from distill_engine.setup.languages import languages_of_columns
from distill_engine.setup.prepare import Prepared, datasets_of, prepare

TEXTS = [("ab c", "de"), ("b", "a cab")]
PAIRS = {
    "nllb": ("eng_Latn", "deu_Latn"),
    "m2m_100": ("fr", "de"),
    "mbart50": ("en_XX", "de_DE"),
    "mbart": ("en_XX", "de_DE"),
}


def prepared(folder: Path, teacher: Path, *languages: dict, label_tokens: int = 16) -> Prepared:
    data = folder / "pairs.jsonl"
    data.write_text("\n".join(json.dumps({"source": s, "target": t}) for s, t in TEXTS))
    tasks = [{"kind": "pairs", "name": f"set{n}", "train": str(data), "test": str(data), **keys}
             for n, keys in enumerate(languages)]  # fmt: skip
    recipe = {"name": "languages", "teacher": {"path": str(teacher)}, "student": {"decoder_layers": 1},
              "data": {"datasets": tasks, "context_tokens": 16, "label_tokens": label_tokens,
                       "cache_dir": str(folder / "cache")},
              "optimizer": {"name": "adamw", "learning_rate": 1e-3}, "validation": {"patience": None},
              "stop": {"max_steps": 1}}  # fmt: skip
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    return prepare(load_recipe(file), file)


@pytest.mark.parametrize("kind", PAIRS)
def test_texts_are_wrapped_as_plain_transformers_does(kind, tmp_path):
    teacher, (source, target) = tiny_translators.save(kind, tmp_path / "teacher"), PAIRS[kind]
    ready = prepared(tmp_path, teacher, {"source_language": source, "target_language": target})
    plain = AutoTokenizer.from_pretrained(teacher, src_lang=source, tgt_lang=target)
    language = plain.convert_tokens_to_ids(f"__{target}__" if kind == "m2m_100" else target)
    prefix = ready.layout.decoder_prefix
    for index, (text, gold) in enumerate(TEXTS):
        example, theirs = ready.train_datasets[0].example(index), plain(text, text_target=gold)
        assert example.context_ids.tolist() == theirs.input_ids
        read, label = [*prefix, *example.label_ids.tolist()], theirs.labels
        # plain transformers moves the last label to the front of what the decoder reads
        assert read[:-1] == [label[-1], *label[:-1]][: len(read) - 1]
    settings = ready.generation.config()
    if kind == "mbart":
        assert prefix == (language,) and settings.decoder_start_token_id == language
        assert settings.forced_bos_token_id is None and ready.told == {"decoder_start_token_id": language}
    else:
        assert prefix == (2, language) and settings.forced_bos_token_id == language
        assert settings.decoder_start_token_id == 2 and ready.told == {"forced_bos_token_id": language}
    assert (ready.tokenizer.src_lang, ready.tokenizer.tgt_lang) == (source, target)
    ready.tokenizer.save_pretrained(tmp_path / "export")
    assert AutoTokenizer.from_pretrained(tmp_path / "export")("ab c").input_ids == plain("ab c").input_ids


def test_each_dataset_has_a_source_language_of_its_own(tmp_path):
    teacher = tiny_translators.save("nllb", tmp_path / "teacher")
    to = {"target_language": "deu_Latn"}
    ready = prepared(tmp_path, teacher, to | {"source_language": "fra_Latn"}, {"source_language": "deu_Latn"}, to)
    ids = ready.tokenizer.get_vocab()
    expected = [ids["fra_Latn"], ids["deu_Latn"], ids["eng_Latn"]]  # the last one is the tokenizer's own
    for datasets in (ready.train_datasets, datasets_of(ready, "test").values()):
        assert [dataset.example(0).context_ids[0] for dataset in datasets] == expected
    assert ready.tokenizer.src_lang == "eng_Latn"
    assert len({dataset.digest for dataset in ready.train_datasets}) == 1  # tokenised once


def test_wrong_languages_are_refused_together(tmp_path):
    teacher = tiny_translators.save("nllb", tmp_path / "teacher")
    wrong = {"source_language": "eng_latn", "target_language": "fra_Latn"}, {"target_language": "deu_Latn"}
    with pytest.raises(RecipeError) as found:
        prepared(tmp_path, teacher, *wrong)
    assert [problem.path for problem in found.value.problems] == [
        "data.datasets.0.source_language", "data.datasets.1.target_language",
    ]  # fmt: skip
    said = str(found.value)
    assert "'eng_latn', which the tokenizer has no token for" in said and "Did you mean eng_Latn?" in said
    assert "knows 3 languages: deu_Latn, eng_Latn, fra_Latn" in said and "'deu_Latn', but data.datasets.0" in said
    with pytest.raises(RecipeError, match="the data's `target_language`"):
        prepared(tmp_path, teacher, {"source_language": "eng_Latn"})


def test_labels_beyond_the_position_table_are_refused(tmp_path):
    """Of mBART's 32 positions one is the language's."""
    teacher = tiny_translators.save("mbart50", tmp_path / "teacher")
    keys = {"source_language": "en_XX", "target_language": "de_DE"}
    with pytest.raises(RecipeError, match=r"data.label_tokens is 32.*table has 32 rows.*needs 33(.|\n)*31 or less"):
        prepared(tmp_path, teacher, keys, label_tokens=32)
    assert prepared(tmp_path, teacher, keys, label_tokens=31).layout.decoder_length(31) == 32


def test_a_family_without_languages_refuses_them(tmp_path):
    ids = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 1}
    teacher = tiny_families.save("t5-small", tmp_path / "teacher", **ids)
    tiny_translators.nllb_tokenizer().save_pretrained(teacher)
    with pytest.raises(RecipeError, match=r"family t5 know no languages(.|\n)*puts a text before sources"):
        prepared(tmp_path, teacher, {"target_language": "deu_Latn"})


@pytest.mark.parametrize(("kind", "columns", "codes"), [
    ("nllb", ("translation.en", "translation.fr"), ("eng_Latn", "fra_Latn")),
    ("mbart50", ("en", "ro"), ("en_XX", "ro_RO")),
    ("m2m_100", ("translation.fr", "translation.de"), ("fr", "de")),
    ("nllb", ("translation.en", "translation.xx"), None),
    ("nllb", ("source", "target"), None),
])  # fmt: skip
def test_a_first_recipe_takes_languages_from_columns_or_says_what_to_fill_in(kind, columns, codes, tmp_path):
    family = tiny_translators.KINDS[kind][0]
    tokenizer = AutoTokenizer.from_pretrained(tiny_translators.save(kind, tmp_path / "teacher"))
    entry = dict(zip(("source", "target"), columns, strict=True))
    found, said = languages_of_columns(Guess(entry, ""), family_named(tiny_families.PUBLISHED[family][0]), tokenizer)
    assert tuple(found.values()) == (codes or ())
    assert said.startswith("languages: ")
    assert codes is not None or "add source_language and target_language" in said


@pytest.mark.parametrize(("said", "taken"), [({"fr", "de"}, True), ({"fr", "german"}, False)])
def test_a_first_recipe_takes_the_column_of_each_rows_language_where_its_codes_are_known(said, taken, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_translators.save("m2m_100", tmp_path / "teacher"))
    guess = Guess({}, "", languages=("lang", said))
    found, told = languages_of_columns(guess, family_named("m2m_100"), tokenizer)
    assert found == ({"language": "lang"} if taken else {})
    assert told.startswith("languages: 'lang' says each row's (de, fr)" if taken else "languages: 'lang' says 'german'")


def test_a_first_recipe_says_nothing_of_languages_where_there_are_none():
    named = Guess({"source": "translation.en", "target": "translation.fr"}, "", languages=("lang", {"de"}))
    assert languages_of_columns(named, family_named("t5"), tiny_translators.nllb_tokenizer()) == ({}, None)

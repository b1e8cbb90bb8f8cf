"""Trimmed vocabularies: a copy of the teacher takes its place, of an NLLB and of others; what cannot be is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_families
import tiny_translators
import yaml
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedTokenizerFast
from typer.testing import CliRunner

from distill_engine.data.errors import DataError
from distill_engine.data.tokens.tokenised import TokenisedDataset, TokenLimits
from distill_engine.recipe.load import load_recipe
from distill_engine.recipe.rules import check_recipe
from distill_engine.recipe.teacher_rules import check_against_teacher
from distill_engine.setup.prepare import Prepared, prepare
from distill_engine.setup.vocabulary import Vocabulary, check_same_tokens
from launcher.__main__ import app
from launcher.shapes import student_shape, teacher_shape, trimmed_rows

TRAIN = [("ab c", "cdab"), ("abcd", "a b"), ("d", "ef abcd")]


@pytest.fixture
def nllb(tmp_path) -> Path:
    return tiny_translators.save("nllb with merges", tmp_path / "teacher")


def recipe_file(folder: Path, teacher: Path | None, valid: tuple[str, str] = ("ab", "xyz"), **student: object) -> Path:
    languages = {"source_language": "eng_Latn", "target_language": "deu_Latn"} if teacher else {}
    task = {"kind": "pairs", **languages}
    for split, rows in (("train", TRAIN), ("valid", [valid])):
        task[split] = str(folder / f"{split}.jsonl")
        Path(task[split]).write_text("\n".join(json.dumps({"source": s, "target": t}) for s, t in rows))
    data = {"datasets": [task], "context_tokens": 16, "label_tokens": 16, "cache_dir": str(folder / "cache")}
    content = {"name": "trimmed", "teacher": {"path": teacher and str(teacher)},
               "student": {"decoder_layers": 1, "vocabulary": "trimmed", **student}, "data": data,
               "optimizer": {"name": "adamw", "learning_rate": 1e-3}, "validation": {"patience": None},
               "stop": {"max_steps": 1}}  # fmt: skip
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def prepared(folder: Path, teacher: Path, *, valid: tuple[str, str] = ("ab", "xyz"), **student: object) -> Prepared:
    file = recipe_file(folder, teacher, valid, **student)
    return prepare(load_recipe(file), file)


def test_the_trimmed_copy_takes_the_teachers_place(nllb, tmp_path):
    ready, whole = prepared(tmp_path, nllb), AutoTokenizer.from_pretrained(nllb)
    vocabulary, tokenizer = ready.vocabulary, ready.tokenizer
    assert ready.recipe.teacher.path == str(nllb) and ready.teacher_folder == vocabulary.folder
    # on the way to abcd: ab, cd, a, b, c, d; ef: e, f; not one of x, y, z; all languages and special tokens
    letters = {"\u2581", *"abcdef", "ab", "cd", "ef", "abcd"}
    special = {"<s>", "<pad>", "</s>", "<unk>", *tiny_translators.CODES}
    assert letters < set(tokenizer.get_vocab()) and special < set(tokenizer.get_vocab())
    assert not {*"xyz", "xy", "xyz"} & set(tokenizer.get_vocab())
    assert (len(tokenizer), vocabulary.of) == (len(vocabulary.kept), len(whole)) and len(tokenizer) < len(whole)
    # xyz is one of six tokens, those of the delimiter among them
    assert vocabulary.coverage == pytest.approx(5 / 6) and "83.33% of the validation data" in str(vocabulary)
    for text, gold in TRAIN:
        wide = whole(text, text_target=gold)
        narrow = tokenizer(text, text_target=gold)
        assert [vocabulary.kept[one] for one in narrow.input_ids] == AutoTokenizer.from_pretrained(
            nllb, src_lang="eng_Latn", tgt_lang="deu_Latn"
        )(text).input_ids
        assert len(narrow.labels) == len(wide.labels)
    german = tokenizer.convert_tokens_to_ids("deu_Latn")
    assert ready.layout.decoder_prefix == (2, german) and ready.generation.config().forced_bos_token_id == german
    config = ready.teacher_config
    assert config is not None and config["vocab_size"] == len(tokenizer) == ready.teacher_shape.vocab
    # whoever shares the cache reads it, as far as the umask lets them
    made, plain = vocabulary.folder, tmp_path / "plain"
    plain.mkdir()
    assert made.stat().st_mode == plain.stat().st_mode
    assert {file.lstat().st_mode for file in made.iterdir()} == {(tmp_path / "recipe.yaml").stat().st_mode}


def test_the_student_stands_alone_and_says_the_same_on_covered_text(nllb, tmp_path):
    """The same rows, with and without the others: replies are equal where nothing else could be said."""
    ready, whole = prepared(tmp_path, nllb), AutoTokenizer.from_pretrained(nllb, src_lang="eng_Latn")
    wide = AutoModelForSeq2SeqLM.from_pretrained(nllb)
    moved = shutil.copytree(ready.teacher_folder, tmp_path / "elsewhere")
    narrow, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(moved), AutoTokenizer.from_pretrained(moved)
    shutil.rmtree(nllb)
    kept = ready.vocabulary.kept
    rows = wide.config.vocab_size
    saved = sum(one.numel() for one in wide.parameters()) - sum(one.numel() for one in narrow.parameters())
    assert saved == (rows - len(kept)) * tiny_families.WIDTH
    others = sorted({*range(rows)} - {*kept})
    for text, _ in TRAIN:
        german = whole.convert_tokens_to_ids("deu_Latn")
        said = wide.generate(
            **whole(text, return_tensors="pt"), max_new_tokens=9, forced_bos_token_id=german, suppress_tokens=others
        )
        german = tokenizer.convert_tokens_to_ids("deu_Latn")
        made = narrow.generate(**tokenizer(text, return_tensors="pt"), max_new_tokens=9, forced_bos_token_id=german)
        assert [kept[one] for one in made[0].tolist()] == said[0].tolist()
        assert tokenizer.decode(made[0]) == whole.decode(said[0])


def test_it_is_made_once_and_again_where_a_link_is_broken(nllb, tmp_path):
    first = prepared(tmp_path, nllb).vocabulary.folder
    stamp = (first / "config.json").stat().st_mtime_ns
    assert prepared(tmp_path, nllb).vocabulary.folder == first
    assert (first / "config.json").stat().st_mtime_ns == stamp
    (first / "generation_config.json").unlink()
    (first / "generation_config.json").symlink_to(tmp_path / "nowhere")
    assert prepared(tmp_path, nllb).vocabulary.folder == first
    assert not (first / "generation_config.json").is_symlink()
    weights = nllb / "model.safetensors"  # another model with files of the same names and sizes
    size = weights.stat().st_size
    tiny_families.model("nllb-200-distilled-600M", seed=1).save_pretrained(nllb / "other")
    shutil.copyfile(nllb / "other" / "model.safetensors", weights)
    assert weights.stat().st_size == size and prepared(tmp_path, nllb).vocabulary.folder != first


def test_texts_that_lost_nothing_are_cut_as_before_also_beside_others():
    def dataset(*texts: list[int]) -> TokenisedDataset:
        """One episode of two turns, and one of one: source, label, source, label; source, label."""
        ends = np.cumsum([len(text) for text in texts])
        begins = ends - [len(text) for text in texts]
        bounds = [(0, ends[0], begins[1], ends[1]), (0, ends[2], begins[3], ends[3])]
        bounds.append((begins[4], ends[4], begins[5], ends[5]))
        layout = tiny_families.layout("bart-large-cnn")
        tokens, limits = np.concatenate(texts).astype(np.int32), TokenLimits(8, 8)
        return TokenisedDataset(tokens, np.array(bounds, np.int64), layout, limits)

    kept = Vocabulary(Path("trimmed"), (0, 2, 4, 6), 8, None)
    old = dataset([2, 4], [6], [3, 4], [2, 2], [5], [6, 0])  # 3 and 5 are dropped
    check_same_tokens(kept, [old], [dataset([1, 2], [3], [9, 9, 2], [1, 1], [9, 9], [3, 0])])
    for first, last in (([1, 3], [3, 0]), ([1, 2, 0], [3, 0]), ([1], [3, 0]), ([1, 2], [3, 1])):
        with pytest.raises(DataError, match="cuts the training data otherwise"):
            check_same_tokens(kept, [old], [dataset(first, [3], [9], [1, 1], [9, 9], last)])


def test_rare_tokens_go_and_a_list_says_it_all(nllb, tmp_path):
    often = set(prepared(tmp_path, nllb, vocabulary_min_count=2).tokenizer.get_vocab())
    assert "abcd" in often and "ef" not in often
    listed = tmp_path / "tokens.txt"
    listed.write_text("xyz\n\u2581\n")
    chosen = set(prepared(tmp_path, nllb, vocabulary_list=str(listed)).tokenizer.get_vocab())
    assert {"xyz", "xy", *"xyz"} <= chosen and not {"ab", "a"} & chosen
    listed.write_text("xyz\nnothing\n")
    with pytest.raises(DataError, match=r"1 of 2 lines are no tokens of the teacher's tokenizer .'nothing'"):
        prepared(tmp_path, nllb, vocabulary_list=str(listed))
    with pytest.raises(DataError, match=r"nowhere\.txt cannot be read"):
        prepared(tmp_path, nllb, vocabulary_list=str(tmp_path / "nowhere.txt"))


def test_the_plan_prices_the_small_vocabulary_once_it_is_known(nllb, tmp_path):
    recipe = load_recipe(recipe_file(tmp_path, nllb))
    assert trimmed_rows(recipe) is None and teacher_shape(recipe).vocab == tiny_families.VOCABULARY
    command = ["plan", str(tmp_path / "recipe.yaml")]
    before = CliRunner().invoke(app, command).output
    assert f"has counted the tokens of the data yet, so the teacher's {tiny_families.VOCABULARY} are priced" in before
    ready = prepared(tmp_path, nllb)
    teacher = teacher_shape(recipe)
    assert teacher == ready.teacher_shape and student_shape(recipe, teacher).vocab == len(ready.tokenizer)
    model = AutoModelForSeq2SeqLM.from_pretrained(ready.teacher_folder)
    assert f"vocabulary: {len(ready.tokenizer)} tokens are kept, as they" in CliRunner().invoke(app, command).output
    assert teacher.parameters == sum(one.numel() for one in model.parameters())


def test_recipes_that_say_it_of_nothing_are_refused(nllb, tmp_path):
    alone = load_recipe(recipe_file(tmp_path, None, family="bart", init="random"))
    assert "is trimmed, but there is no teacher" in " ".join(problem.what for problem in check_recipe(alone))
    whole = load_recipe(recipe_file(tmp_path, nllb, vocabulary="all", vocabulary_min_count=3))
    found = {problem.path: problem.what for problem in check_recipe(whole)}
    assert found["student.vocabulary_min_count"] == "is given, but student.vocabulary is all"


def test_tokenizers_without_a_json_and_models_of_sound_are_refused_by_name(tmp_path):
    teacher = tiny_translators.save("m2m_100", tmp_path / "teacher")
    file = recipe_file(tmp_path, teacher)
    file.write_text(file.read_text().replace("eng_Latn", "en").replace("deu_Latn", "de"))
    with pytest.raises(DataError, match=r"M2M100Tokenizer. cannot be trimmed: .* without a tokenizer\.json"):
        prepare(load_recipe(file), file)
    config = AutoConfig.for_model("whisper").to_dict()
    found = [problem.what for problem in check_against_teacher(load_recipe(file), config)]
    assert "is trimmed, but whisper models read no texts" in found


def test_a_tokenizer_that_is_read_otherwise_than_written_is_refused(tmp_path):
    words = Tokenizer(WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2, "ab": 3, "d": 4}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=16
    )
    from distill_engine.data.tokens.trimmed import kept_tokens, trimmed_content
    from distill_engine.setup.vocabulary import _write_tokenizer

    content = json.loads(tokenizer.backend_tokenizer.to_str())
    kept = kept_tokens(content, [4])
    _write_tokenizer(tokenizer, trimmed_content(content, kept), kept, tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).get_vocab() == {"<pad>": 0, "</s>": 1, "<unk>": 2, "d": 3}
    with pytest.raises(DataError, match=r"gives other ids than its tokenizer\.json"):
        _write_tokenizer(tokenizer, trimmed_content(content, kept), [0, 1, 2, 3], tmp_path)

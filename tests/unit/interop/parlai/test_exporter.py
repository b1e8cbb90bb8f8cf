"""Hugging Face folders as ParlAI's files, and back: no bit and no id changes."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE, WordLevel
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    BlenderbotConfig,
    BlenderbotForConditionalGeneration,
    GenerationConfig,
    PreTrainedTokenizerFast,
    T5Config,
)

from distill_engine.interop.parlai.dictionary import build_dictionary
from distill_engine.interop.parlai.exporter import export_parlai
from distill_engine.interop.parlai.importer import import_parlai
from distill_engine.interop.parlai.options.errors import ParlaiError
from distill_engine.interop.parlai.source import SourceFiles
from distill_engine.interop.parlai.tokenizer import build_tokenizer

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = [("Ġ", "h"), ("Ġh", "i"), ("\\", "n"), ("o", "k")]
SIZES = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "max_position_embeddings": 32,
    "forced_eos_token_id": None,
}
MODELS = {
    "blenderbot": (BlenderbotConfig, BlenderbotForConditionalGeneration),
    "bart": (BartConfig, BartForConditionalGeneration),
}
TEXTS = ["hi ok 42", " hi\n\\n </s>", "ü ok  ok"]


def byte_level(specials, *, first=True, extra=(), **options):
    """A small byte-level BPE whose special tokens stand in front of the alphabet, or behind."""
    pieces = [*ALPHABET, *("".join(merge) for merge in MERGES), *extra]
    names = [*specials, *pieces] if first else [*pieces, *specials]
    backend = Tokenizer(BPE({name: number for number, name in enumerate(names)}, MERGES))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=options.pop("prefix", True))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **options)


BLENDERBOT = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
BART = BLENDERBOT | {"prefix": False}


def blenderbot_tokenizer(**changes):
    return byte_level(["<pad>", "<s>", "</s>", "<unk>"], extra=["<s_AGAIN>", "</s_AGAIN>"], **(BLENDERBOT | changes))


def bart_tokenizer(**changes):
    return byte_level(["<s>", "<pad>", "</s>", "<unk>"], extra=["<mask>"], **(BART | changes))


@pytest.fixture
def student(tmp_path):
    """Makes a Hugging Face folder: a small random model with this tokenizer's ids."""

    def make(family, tokenizer, *, unused_rows=0, **config) -> Path:
        ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
        start = ids["eos_token_id" if family == "bart" else "bos_token_id"]
        settings = {"vocab_size": len(tokenizer) + unused_rows, **ids, "decoder_start_token_id": start, **SIZES}
        torch.manual_seed(0)
        loaded = MODELS[family][1](MODELS[family][0](**(settings | config)))
        with torch.no_grad():
            for value in loaded.parameters():
                value.add_(0.1 * torch.randn_like(value))
            for stack in (loaded.model.encoder, loaded.model.decoder):
                stack.embed_positions.weight[: 2 if family == "bart" else 0] = 0.0
        folder = tmp_path / "student"
        loaded.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


def logits_of(folder, contexts, labels):
    """Logits for texts, with the folder's own tokenizer and start tokens; BART's first position is dropped."""
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    config, found = model.config, []
    bart = config.model_type == "bart"
    first = [config.eos_token_id, config.bos_token_id] if bart else [config.bos_token_id]
    for context, label in zip(contexts, labels, strict=True):
        read = tokenizer(context, add_special_tokens=False, split_special_tokens=True, return_tensors="pt").input_ids
        said = tokenizer(label, add_special_tokens=False, split_special_tokens=True).input_ids
        with torch.no_grad():
            found.append(model(input_ids=read, decoder_input_ids=torch.tensor([[*first, *said]])).logits[0])
    return found


def test_parlai_to_hugging_face_and_back_is_exact(blender, imported, tmp_path):
    report = export_parlai(imported, tmp_path / "back")
    before = torch.load(blender / "model", weights_only=True)["model"]
    after = torch.load(report.model_file, weights_only=True)["model"]
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before)
    assert after["encoder.embeddings.weight"].data_ptr() == after["embeddings.weight"].data_ptr()
    for part in ("model.dict", "model.dict-vocab.json", "model.dict-merges.txt"):
        assert (tmp_path / "back" / part).read_bytes() == (blender / part).read_bytes()
    told, original = (json.loads((folder / "model.opt").read_text()) for folder in (tmp_path / "back", blender))
    network = (
        "embedding_size",
        "ffn_size",
        "n_heads",
        "n_encoder_layers",
        "n_decoder_layers",
        "n_positions",
        "variant",
    )
    network += ("activation", "embeddings_scale", "model", "dropout", "learn_positional_embeddings", "dict_tokenizer")
    texts = ("delimiter", "history_add_global_end_token", "truncate", "text_truncate", "label_truncate", "dict_lower")
    speech = ("inference", "beam_size", "beam_min_length", "beam_block_ngram", "beam_context_block_ngram")
    assert {name: told[name] for name in network + texts + speech} == {
        name: original[name] for name in network + texts + speech
    }
    indexed = ("no_cuda", "gpu", "history_size", "rank_candidates", "learningrate", "optimizer", "gradient_clip")
    assert told.keys() >= {*indexed, "momentum", "beam_block_full_context"}
    assert not told.keys() & {"override", "datapath", "download_path", "verbose", "load_from_checkpoint"}


@pytest.mark.parametrize("family, tokenizer", [("blenderbot", blenderbot_tokenizer), ("bart", bart_tokenizer)])
def test_hugging_face_to_parlai_and_back_is_exact(student, tmp_path, family, tokenizer):
    folder = student(family, tokenizer())
    report = export_parlai(folder, tmp_path / "parlai")
    import_parlai(SourceFiles(report.model_file), tmp_path / "hf")
    order = [0, 1, 2, 3] if family == "blenderbot" else [1, 0, 2, 3]
    order += range(4, report.vocabulary)
    before, after = (AutoModelForSeq2SeqLM.from_pretrained(one).state_dict() for one in (folder, tmp_path / "hf"))
    for name, value in before.items():
        tied = "embed_tokens" in name or name in ("model.shared.weight", "lm_head.weight")
        assert torch.equal(value[order] if tied else value, after[name]), name
    for one, other in zip(logits_of(folder, TEXTS, TEXTS), logits_of(tmp_path / "hf", TEXTS, TEXTS), strict=True):
        torch.testing.assert_close(one[:, order], other, atol=1e-5, rtol=1e-5)


def test_names_that_hugging_face_changed_are_changed_back(student, tmp_path):
    report = export_parlai(student("blenderbot", blenderbot_tokenizer()), tmp_path / "parlai")
    vocabulary = json.loads(Path(f"{report.model_file}.dict-vocab.json").read_text())
    assert {"<s>", "</s>"} <= vocabulary.keys() and not any("AGAIN" in name for name in vocabulary)


def test_rows_without_a_token_are_padding(student, tmp_path):
    tokenizer = blenderbot_tokenizer()
    report = export_parlai(student("blenderbot", tokenizer, unused_rows=3), tmp_path / "parlai")
    assert report.vocabulary == len(tokenizer) + 3
    assert [*json.loads(Path(f"{report.model_file}.dict-vocab.json").read_text())][-1] == "__FP16_PAD_2__"


def test_what_the_student_was_trained_with_is_in_the_options(student, tmp_path):
    folder = student("blenderbot", blenderbot_tokenizer())
    GenerationConfig(num_beams=5, min_length=7, no_repeat_ngram_size=3, length_penalty=0.5).save_pretrained(folder)
    report = export_parlai(folder, tmp_path / "parlai", {"delimiter": "  ", "text_truncate": 20})
    told = json.loads(Path(f"{report.model_file}.opt").read_text())
    assert (told["delimiter"], told["text_truncate"], told["label_truncate"]) == ("  ", 20, 32)
    assert (told["inference"], told["beam_size"], told["beam_min_length"]) == ("beam", 5, 7)
    assert (told["beam_block_ngram"], told["beam_length_penalty"]) == (3, 0.5)


@pytest.mark.parametrize("kind", ["re", "split", "space"])
def test_word_splitters_go_back_as_they_came(student, tmp_path, kind):
    options = {"dict_tokenizer": kind, "dict_lower": True, "special_tok_lst": "__cake__"}
    dictionary = build_dictionary(["hi", "ok", "!", "\n"], None, options)
    folder = student("blenderbot", build_tokenizer(dictionary, options, "generator", 32))
    export_parlai(folder, tmp_path / "parlai")
    import_parlai(SourceFiles(tmp_path / "parlai" / "model"), tmp_path / "hf")
    one, other = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(tmp_path / "hf")
    for text in ("HI  ok!", "x\nok __cake__ hi"):
        assert one(text).input_ids == other(text).input_ids
    assert json.loads((tmp_path / "parlai" / "model.opt").read_text())["dict_tokenizer"] == kind


@pytest.mark.parametrize("split", [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.CharDelimiterSplit(" ")])
@pytest.mark.parametrize("lower", [False, True])
def test_words_between_spaces_go_there_and_back(student, tmp_path, split, lower):
    folder = student("blenderbot", words(split, normalizers.Lowercase() if lower else None))
    export_parlai(folder, tmp_path / "parlai")
    told = json.loads((tmp_path / "parlai" / "model.opt").read_text())
    assert (told["dict_tokenizer"], told["dict_lower"]) == ("space", lower)
    import_parlai(SourceFiles(tmp_path / "parlai" / "model"), tmp_path / "hf")
    again = AutoTokenizer.from_pretrained(tmp_path / "hf")
    # AA is out of reach once texts are in lower case
    wanted = ["hi", "i'm", "<unk>", "<unk>" if lower else "AA", "</s>.", "<unk>"]
    for tokenizer in (AutoTokenizer.from_pretrained(folder), again):
        ids = tokenizer("hi i'm hi, AA </s>. hi!", split_special_tokens=True).input_ids
        assert tokenizer.convert_ids_to_tokens(ids) == wanted
    names = AutoTokenizer.from_pretrained(folder).convert_ids_to_tokens(list(range(8)))
    (ours,), (theirs,) = (logits_of(one, ["hi AA"], ["AA hi"]) for one in (folder, tmp_path / "hf"))
    assert torch.equal(ours, theirs[:, again.convert_tokens_to_ids(names)])
    export_parlai(tmp_path / "hf", tmp_path / "again")  # from an import it goes back as it came
    assert (tmp_path / "again" / "model.dict").read_text() == (tmp_path / "parlai" / "model.dict").read_text()


def test_markers_are_found_in_texts_by_parlai_as_well(student, tmp_path):
    tokenizer = blenderbot_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<you>"]})
    folder = student("blenderbot", tokenizer)
    export_parlai(folder, tmp_path / "parlai")
    import_parlai(SourceFiles(tmp_path / "parlai" / "model"), tmp_path / "hf")
    again = AutoTokenizer.from_pretrained(tmp_path / "hf")
    (marker,) = again("<you>", add_special_tokens=False).input_ids
    assert again.convert_ids_to_tokens(marker) == "<you>"
    assert "<you>" in json.loads((tmp_path / "parlai" / "model.opt").read_text())["special_tok_lst"].split(",")


def words(split=None, normalizer=None):
    """Its special tokens are not where ParlAI has them, and one of its words could end a line of the dictionary."""
    names = ["hi", "<pad>", "<s>", "</s>", "<unk>", "i'm", "</s>.", "AA"]
    backend = Tokenizer(WordLevel({name: number for number, name in enumerate(names)}, "<unk>"))
    if split is not None:
        backend.pre_tokenizer = split
    if normalizer is not None:
        backend.normalizer = normalizer
    return PreTrainedTokenizerFast(tokenizer_object=backend, **BLENDERBOT)


def with_step(**steps):
    """The Blenderbot tokenizer with another step in its pipeline."""
    tokenizer = blenderbot_tokenizer()
    for name, step in steps.items():
        setattr(tokenizer.backend_tokenizer, name, step)
    return tokenizer


def digits(individual=True, prefix=False):
    steps = [pre_tokenizers.Digits(individual_digits=individual), pre_tokenizers.ByteLevel(add_prefix_space=prefix)]
    return pre_tokenizers.Sequence(steps)


def test_digits_that_no_merge_touches_may_be_split_off(student, tmp_path):
    assert export_parlai(student("blenderbot", with_step(pre_tokenizer=digits())), tmp_path / "parlai").vocabulary


def twice():
    tokenizer = blenderbot_tokenizer()
    tokenizer.add_tokens([AddedToken("__null__", special=False)])
    return tokenizer


REFUSED_TOKENIZERS = {
    "whole texts": (words, "its model is WordLevel, and it splits texts with nothing"),
    "words and marks": (lambda: words(pre_tokenizers.Whitespace()), "splits texts with Whitespace, not at spaces"),
    "other words": (lambda: words(pre_tokenizers.WhitespaceSplit(), normalizers.NFKC()), "normalizer"),
    "normalizer": (lambda: with_step(normalizer=normalizers.NFKC()), "normalizer"),
    "splitting": (lambda: with_step(pre_tokenizer=pre_tokenizers.Whitespace()), "splits texts with Whitespace"),
    "numbers": (lambda: with_step(pre_tokenizer=digits(individual=False)), "splits texts with Digits"),
    "digits": (lambda: with_step(pre_tokenizer=digits(prefix=True)), "splits numbers into digits"),
    "no unknown": (lambda: blenderbot_tokenizer(unk_token=None), "special tokens are"),
    "one for two": (lambda: blenderbot_tokenizer(unk_token="</s>"), "four different ones"),
    "taken name": (twice, "'__null__'"),
}


@pytest.mark.parametrize("tokenizer, said", REFUSED_TOKENIZERS.values(), ids=REFUSED_TOKENIZERS)
def test_tokenizers_that_parlai_does_not_have_are_refused(student, tmp_path, tokenizer, said):
    with pytest.raises(ParlaiError, match=said):
        export_parlai(student("blenderbot", tokenizer()), tmp_path / "parlai")
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


REFUSED_CONFIGS = {
    "heads": ({"decoder_attention_heads": 4}, "attention heads differ"),
    "ffn": ({"decoder_ffn_dim": 12}, "feed-forward widths differ"),
    "activation": ({"activation_function": "silu"}, "activation_function is silu"),
    "start": ({"decoder_start_token_id": 2}, "decoder_start_token_id is 2, not 1"),
}


@pytest.mark.parametrize("config, said", REFUSED_CONFIGS.values(), ids=REFUSED_CONFIGS)
def test_networks_that_parlai_does_not_have_are_refused(student, tmp_path, config, said):
    with pytest.raises(ParlaiError, match=said):
        export_parlai(student("blenderbot", blenderbot_tokenizer(), **config), tmp_path / "parlai")
    assert not (tmp_path / "parlai").exists()


def test_a_bias_other_families_and_no_folder_are_refused(imported, tmp_path):
    biased = tmp_path / "biased"
    model = AutoModelForSeq2SeqLM.from_pretrained(imported)
    model.final_logits_bias[0, 9] = 0.5
    model.save_pretrained(biased)
    AutoTokenizer.from_pretrained(imported).save_pretrained(biased)
    with pytest.raises(ParlaiError, match="final_logits_bias is not zero"):
        export_parlai(biased, tmp_path / "parlai")
    T5Config(vocab_size=9).save_pretrained(biased)
    with pytest.raises(ParlaiError, match="is a t5 model"):
        export_parlai(biased, tmp_path / "parlai")
    with pytest.raises(ParlaiError, match="is no folder"):
        export_parlai(tmp_path / "nothing", tmp_path / "parlai")


def test_a_failed_export_leaves_nothing(imported, tmp_path, monkeypatch):
    target = tmp_path / "parlai"
    target.mkdir()
    with pytest.raises(ParlaiError, match="exists already"):
        export_parlai(imported, target)
    shutil.rmtree(target)
    full = OSError(28, "No space left on device")
    monkeypatch.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(full))
    with pytest.raises(OSError, match="No space left"):
        export_parlai(imported, target)
    assert list(tmp_path.iterdir()) == []

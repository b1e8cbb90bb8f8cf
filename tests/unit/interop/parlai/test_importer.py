"""ParlAI models as Hugging Face folders: the same numbers, the same ids, or a clear refusal and nothing written."""

import json
import os
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig

from distill_engine.data.tokens.tokenize import load_tokenizer
from distill_engine.interop.parlai.importer import import_parlai
from distill_engine.interop.parlai.options.errors import ParlaiError
from distill_engine.interop.parlai.source import SourceFiles
from distill_engine.models.adapter import adapt
from distill_engine.values import Batch, FeatureRequest, Tokens

TASKDATA = Path(os.environ.get("TASKDATA_DIR") or Path(__file__).parents[3] / "fixtures" / "taskdata")
REFERENCES = sorted(TASKDATA.glob("tiny_parlai/*/reference_forward.json"))


def parlai_batch(reference, start, end, agent) -> Batch:
    """ParlAI's tensors as the engine's batch: labels shifted behind START, or behind END, START."""
    contexts, labels = torch.tensor(reference["xs"]), torch.tensor(reference["ys"])
    first = torch.tensor([end, start] if agent == "bart" else [start]).expand(len(labels), -1)
    targets = labels.masked_fill(labels == 0, -100)
    if agent == "bart":
        targets = torch.cat([targets.new_full((len(labels), 1), -100), targets], 1)
    decoder = torch.cat([first, labels[:, :-1]], 1)
    return Batch.of(Tokens(contexts, (contexts != 0).long()), decoder, targets)


def test_there_are_references():
    assert REFERENCES, f"{TASKDATA} holds no tiny_parlai/*/reference_forward.json"


@pytest.mark.parametrize("file", REFERENCES, ids=lambda file: file.parent.name)
def test_imported_models_score_as_parlai_does(file, tmp_path):
    reference = json.loads(file.read_text())
    import_parlai(SourceFiles(file.parent / "model"), tmp_path / "hf")
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "hf").eval()
    config = model.config
    batch = parlai_batch(reference, config.bos_token_id, config.eos_token_id, config.model_type)
    with torch.no_grad():
        seen = adapt(model)(batch, FeatureRequest(logits=True, encoder_output=True))
    extra = batch.labels.shape[1] - len(reference["ys"][0])
    logits, labels = seen.logits[:, extra:], batch.labels[:, extra:]
    real = labels >= 0
    nll = -logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0] * real
    torch.testing.assert_close(nll, torch.tensor(reference["token_nll"]), atol=1e-5, rtol=0)
    loss = float(nll.sum() / real.sum())
    assert loss == pytest.approx(reference["loss"], abs=1e-5)
    first = torch.tensor(reference["logits_row0_step0_first16"])
    torch.testing.assert_close(logits[0, 0, :16], first, atol=1e-5, rtol=1e-6)
    encoded = torch.tensor(reference["enc_out_row0_tok0_first8"])
    torch.testing.assert_close(seen.encoder_output[0, 0, :8], encoded, atol=1e-5, rtol=1e-6)
    assert torch.equal(logits.argmax(-1)[real], torch.tensor(reference["preds"])[real])


def test_every_tensor_is_unchanged(blender, imported):
    stored = torch.load(blender / "model", weights_only=True)["model"]
    loaded = AutoModelForSeq2SeqLM.from_pretrained(imported).state_dict()
    assert torch.equal(loaded["model.shared.weight"], stored["embeddings.weight"])
    pairs = {
        "encoder.layers.1.attention.out_lin.bias": "model.encoder.layers.1.self_attn.out_proj.bias",
        "encoder.layers.0.norm2.weight": "model.encoder.layers.0.final_layer_norm.weight",
        "decoder.layers.2.encoder_attention.k_lin.weight": "model.decoder.layers.2.encoder_attn.k_proj.weight",
        "decoder.layers.1.norm2.bias": "model.decoder.layers.1.encoder_attn_layer_norm.bias",
        "decoder.layers.1.norm3.bias": "model.decoder.layers.1.final_layer_norm.bias",
        "decoder.norm_embeddings.weight": "model.decoder.layer_norm.weight",
        "encoder.position_embeddings.weight": "model.encoder.embed_positions.weight",
        "decoder.layers.0.ffn.lin2.weight": "model.decoder.layers.0.fc2.weight",
    }
    assert all(torch.equal(stored[theirs], loaded[ours]) for theirs, ours in pairs.items())
    own = [value for name, value in loaded.items() if "embed_tokens" not in name and "lm_head" not in name]
    tied = ("encoder.embeddings.weight", "decoder.embeddings.weight", "START")
    expected = sum(value.numel() for name, value in stored.items() if name not in tied)
    assert sum(value.numel() for value in own) == expected + loaded["final_logits_bias"].numel()


def test_the_folder_says_how_the_model_is_used(imported):
    config, tokenizer = AutoConfig.from_pretrained(imported), AutoTokenizer.from_pretrained(imported)
    assert (config.model_type, config.scale_embedding, config.activation_function) == ("blenderbot", True, "gelu")
    assert (config.decoder_start_token_id, config.pad_token_id, config.eos_token_id) == (1, 0, 2)
    assert tokenizer("hi").input_ids[-1] == 2 and len(tokenizer) == config.vocab_size
    assert GenerationConfig.from_pretrained(imported).suppress_tokens == [1]
    assert "never predicts the start token" in (imported / "README.md").read_text()
    assert {oct(file.stat().st_mode & 0o777) for file in imported.iterdir()} == {oct(0o644)}


def test_generation_options_are_carried_over(changed, tmp_path):
    options = {"inference": "beam", "beam_size": 10, "beam_min_length": 20, "beam_block_ngram": 3}
    import_parlai(SourceFiles(changed(options | {"beam_context_block_ngram": 3})), tmp_path / "hf")
    config = GenerationConfig.from_pretrained(tmp_path / "hf")
    assert (config.num_beams, config.min_new_tokens, config.no_repeat_ngram_size) == (10, 20, 3)
    assert (config.encoder_no_repeat_ngram_size, config.length_penalty, config.do_sample) == (3, 0.65, False)


def test_ids_are_those_of_the_dictionary_in_the_published_layout(imported):
    ours = load_tokenizer(str(imported)).backend_tokenizer
    theirs = load_tokenizer(str(TASKDATA / "toy_dict" / "hf")).backend_tokenizer
    texts = ["hello there, you!", "  two spaces", "", "Ünïcode 漢\n字", "people study cheese in the Canal"]
    for text in texts:
        assert ours.encode(text, add_special_tokens=False).ids == theirs.encode(text, add_special_tokens=False).ids


def test_half_precision_stays_half(changed, tmp_path):
    model = changed(state=lambda state: {k: v.half() if v.is_floating_point() else v for k, v in state.items()})
    report = import_parlai(SourceFiles(model), tmp_path / "hf")
    stored = torch.load(model, weights_only=True)["model"]
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "hf")
    assert report.dtype == "float16" and loaded.dtype == torch.float16
    assert torch.equal(loaded.get_input_embeddings().weight, stored["embeddings.weight"])


def test_projections_of_a_distilled_student_are_left_out(changed, tmp_path):
    def add(state):
        names = (
            "encoder_proj_layer.weight",
            "hidden_proj_layers.decoder.0.bias",
            "embedding_proj_layers.encoder.weight",
        )
        return state | {name: torch.ones(3) for name in names}

    agent = "projects.anti_scaling.distillation:DistillNarrowTransformerAgent"
    report = import_parlai(SourceFiles(changed({"model": agent}, state=add)), tmp_path / "hf")
    assert report.projections_left_out == 3


def test_relu_and_unscaled_embeddings_are_imported(changed, tmp_path):
    import_parlai(SourceFiles(changed({"activation": "relu", "embeddings_scale": False})), tmp_path / "hf")
    config = AutoConfig.from_pretrained(tmp_path / "hf")
    assert (config.activation_function, config.scale_embedding) == ("relu", False)


def test_a_checkpoint_uses_the_finished_models_dictionary(changed, tmp_path):
    model = changed()
    for part in ("", ".opt"):
        model.with_name(f"model{part}").rename(model.with_name(f"model.checkpoint{part}"))
    assert import_parlai(SourceFiles(model.with_name("model.checkpoint")), tmp_path / "hf").vocabulary == 608


def test_rows_padded_for_fp16_get_names(changed, tmp_path):
    model = changed({"fp16": True})
    dictionary = model.with_name("model.dict")
    lines = dictionary.read_text().splitlines(keepends=True)
    last = lines[-1].split("\t")[0]
    dictionary.write_text("".join(lines[:-1]))
    vocab = json.loads(model.with_name("model.dict-vocab.json").read_text())
    vocab.pop(last)
    model.with_name("model.dict-vocab.json").write_text(json.dumps(vocab))
    merges = model.with_name("model.dict-merges.txt").read_text().splitlines(keepends=True)
    model.with_name("model.dict-merges.txt").write_text(
        "".join(m for m in merges if m.replace(" ", "").strip() != last)
    )
    import_parlai(SourceFiles(model), tmp_path / "hf")
    assert AutoTokenizer.from_pretrained(tmp_path / "hf").convert_ids_to_tokens(607) == "__FP16_PAD_0__"


REFUSED = {
    "variant-xlm": ({"variant": "xlm"}, ["variant", "'xlm'", "positions"]),
    "variant-aiayn": ({"variant": "aiayn"}, ["'aiayn'", "no norm"]),
    "bart-order": ({"variant": "bart"}, ["variant", "'bart'"]),
    "segments": ({"n_segments": 2}, ["n_segments is 2"]),
    "scaling": ({"output_scaling": 0.5}, ["output_scaling is 0.5"]),
    "activation": ({"activation": "swish"}, ["activation is 'swish'"]),
    "no-scale": ({"embeddings_scale": None}, ["embeddings_scale is None"]),
    "heads": ({"n_heads": 5}, ["embedding_size is 32", "n_heads 5"]),
    "sizes": ({"ffn_size": "64"}, ["ffn_size is '64'"]),
    "agent": ({"model": "transformer/ranker"}, ["model is 'transformer/ranker'", "transformer/generator"]),
    "dictionary": ({"dict_class": "parlai.x:Y"}, ["dict_class", "number their tokens"]),
    "subword": ({"dict_tokenizer": "bpe"}, ["dict_tokenizer is 'bpe'", "subword-nmt"]),
    "nltk": ({"dict_tokenizer": "nltk"}, ["dict_tokenizer is 'nltk'", "NLTK"]),
    "ngrams": ({"dict_max_ngram_size": 3}, ["dict_max_ngram_size is 3"]),
    "no-null": ({"dict_nulltoken": None}, ["dict_nulltoken is None"]),
    "depth": ({"n_decoder_layers": 2}, ["unknown", "decoder.layers.2"]),
    "width": ({"ffn_size": 48}, ["fc1.weight has shape (64, 32)", "(48, 32)"]),
    "positions": ({"n_positions": 64}, ["position", "(128, 32)", "(64, 32)"]),
}


@pytest.mark.parametrize("options, said", REFUSED.values(), ids=REFUSED)
def test_what_has_no_exact_counterpart_is_refused(changed, tmp_path, options, said):
    with pytest.raises(ParlaiError) as refusal:
        import_parlai(SourceFiles(changed(options)), tmp_path / "hf")
    assert all(word in str(refusal.value) for word in said), refusal.value
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_several_reasons_are_told_at_once(changed, tmp_path):
    with pytest.raises(ParlaiError, match=r"(?s)variant.*n_segments.*activation"):
        import_parlai(SourceFiles(changed({"variant": "xlm", "n_segments": 1, "activation": "x"})), tmp_path / "hf")


STATES = {
    "untied": (lambda state: state | {"decoder.embeddings.weight": torch.zeros(608, 32)}, "decoder.embeddings.weight"),
    "mixed": (lambda state: state | {"encoder.norm_embeddings.bias": torch.zeros(32).half()}, "float16, torch.float32"),
    "missing": (lambda state: {k: v for k, v in state.items() if k != "encoder.layers.0.norm1.bias"}, "norm1.bias"),
    "unknown": (lambda state: state | {"encoder.segment_embeddings.weight": torch.zeros(2, 32)}, "segment_embeddings"),
    "start": (lambda state: state | {"START": torch.tensor([7])}, r"token \[7\]"),
    "no embedding": (lambda state: {"a": torch.zeros(1)}, "no tensor 'embeddings.weight'"),
}


@pytest.mark.parametrize("state, said", STATES.values(), ids=STATES)
def test_tensors_that_do_not_belong_are_refused(changed, tmp_path, state, said):
    with pytest.raises(ParlaiError, match=said):
        import_parlai(SourceFiles(changed(state=state)), tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def damaged_files():
    def shorten_dict(folder):
        lines = (folder / "model.dict").read_text().splitlines(keepends=True)
        (folder / "model.dict").write_text("".join(lines + [f"more{n}\t1\n" for n in range(20)]))

    def cut(name, keep):
        return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:keep])

    def write(name, data):
        return lambda folder: (folder / name).write_bytes(data)

    return {
        "dictionary does not fit": (shorten_dict, ["model.dict", "628 tokens", "608 rows"]),
        "no model": (lambda folder: (folder / "model").unlink(), ["model: there is no such file"]),
        "no opt": (lambda folder: (folder / "model.opt").unlink(), ["model.opt: there is no such file"]),
        "no dict": (lambda folder: (folder / "model.dict").unlink(), ["model.dict: there is no such file", "--dict"]),
        "no merges": (lambda folder: (folder / "model.dict-merges.txt").unlink(), ["merges.txt", "--bpe-merges"]),
        "empty model": (cut("model", 0), ["model cannot be read", "copy it again"]),
        "half a model": (cut("model", 700_000), ["model cannot be read", "incomplete"]),
        "half an opt": (cut("model.opt", 300), ["model.opt, line ", "not JSON"]),
        "opt is a list": (write("model.opt", b"[1]"), ["model.opt holds [1]"]),
        "opt is a pickle": (write("model.opt", b"\x80\x03}q\x00."), ["model.opt is not JSON", "--allow-pickle"]),
        "empty dict": (cut("model.dict", 0), ["model.dict is empty"]),
        "bytes in dict": (write("model.dict", b"__null__\t1\na\xff\t1\n"), ["model.dict, line 2", "0xff"]),
        "count in dict": (write("model.dict", b"__null__\t1\nb\tmany\n"), ["model.dict, line 2", "number"]),
        "vocab is no JSON": (cut("model.dict-vocab.json", 50), ["vocab.json cannot be read"]),
        "vocab is a list": (write("model.dict-vocab.json", b"[]"), ["vocab.json is no vocabulary"]),
        "foreign merge": (write("model.dict-merges.txt", b"#version: 0.2\nqq zz\n"), ["merges.txt, line 2", "'qq zz'"]),
        "no weights": (lambda folder: torch.save({"optimizer": {}}, folder / "model"), ["'optimizer'", "no weights"]),
        "no tensor": (lambda folder: torch.save({"model": {"a": 3}}, folder / "model"), ["'a' under 'model' is int"]),
    }


@pytest.mark.parametrize("damage, said", damaged_files().values(), ids=damaged_files())
def test_bad_files_are_named_and_nothing_is_left(changed, tmp_path, damage, said):
    model = changed()
    damage(model.parent)
    with pytest.raises(ParlaiError) as refusal:
        import_parlai(SourceFiles(model), tmp_path / "hf")
    assert all(word in str(refusal.value) for word in said), refusal.value
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_an_existing_folder_is_not_touched(blender, tmp_path):
    target = tmp_path / "hf"
    target.mkdir()
    (target / "mine").write_text("keep")
    with pytest.raises(ParlaiError, match="exists already"):
        import_parlai(SourceFiles(blender / "model"), target)
    assert [path.name for path in target.iterdir()] == ["mine"]

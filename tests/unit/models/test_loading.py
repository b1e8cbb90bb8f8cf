"""One loader: teacher and copied student are what plain transformers makes of a folder, or the folder is refused."""

import copy

import pytest
import teacher_folders as wild
import tiny_models
import torch
from transformers import AutoModelForSeq2SeqLM

from distill_engine.evaluate import measure as evaluate
from distill_engine.families.lookup import family_named
from distill_engine.families.shape import Sizes
from distill_engine.models.adapter import adapt
from distill_engine.models.loading import Checkpoint, local_copy
from distill_engine.models.weight_files import WeightsError
from distill_engine.student.build import TeacherLayers, build_student, student_config
from distill_engine.values import FeatureRequest, Stack

LAYERS = {Stack.ENCODER: range(tiny_models.ENCODER_LAYERS), Stack.DECODER: range(tiny_models.DECODER_LAYERS)}
GONE = "model.decoder.layers.1.fc1.weight"
POSITIONS = "model.decoder.embed_positions.weight"
# Each way to tie in three kinds of files, and both plain ways in all of them.
TABLE = [(tying, files) for tying in wild.TYINGS for files in ("one file", "shards", "pickle")]
TABLE += [pair for files in wild.FILES for tying in ("tied", "untied") if (pair := (tying, files)) not in TABLE]


def logits(model, family):
    batch = tiny_models.batch(tiny_models.examples(4, family), family)
    with torch.no_grad():
        whole = adapt(model.eval())(batch, FeatureRequest()).logits
        head = adapt(copy.deepcopy(model))(batch, FeatureRequest(logits=False, head=True)).head
    factors = head.hidden @ head.embedding.T + (0 if head.bias is None else head.bias)
    if head.masked_id is not None:
        factors[..., head.masked_id] = -1e20
    torch.testing.assert_close(factors, whole, rtol=1e-5, atol=1e-5)  # what fused prediction computes from
    return whole


@pytest.mark.parametrize(("tying", "files"), TABLE)
def test_teacher_and_copied_student_are_what_transformers_loads(family, tmp_path, tying, files):
    right = wild.make(tmp_path, family, tying, files)
    plain = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, dtype=torch.float32)
    checkpoint = Checkpoint(tmp_path)
    loaded = checkpoint.load(torch.float32)
    measured = evaluate.load_model(tmp_path, torch.device("cpu"))
    config = student_config(plain.config, Sizes())
    student = build_student(family_named(family), config, TeacherLayers(checkpoint, LAYERS), seed=0)
    for model in (plain, loaded, measured, student):
        found = model.state_dict()
        assert found.keys() == right.keys()
        assert [name for name in right if not torch.equal(found[name], right[name])] == []
    assert [name for name in right if not torch.equal(checkpoint.read(name), right[name])] == []
    tables = {id(student.get_parameter(name)) for name in wild.TABLES}
    assert len(tables) == (1 if wild.TYINGS[tying][0] else 4)
    wanted = logits(plain, family)
    assert torch.equal(logits(loaded, family), wanted) and torch.equal(logits(student, family), wanted)


def without(*names):
    return lambda stored: {name: tensor for name, tensor in stored.items() if name not in names}


def moved(name, change):
    return lambda stored: stored | {name: change(stored.get(name, stored.get(wild.SHARED)))}


NORM = "model.encoder.layers.0.final_layer_norm.bias"

# tied by config.json, change of the stored tensors, what is said
WRONG = {
    "a layer's tensor missing": (True, without(GONE), ["1 tensor is missing", GONE]),
    "a norm missing": (True, without(NORM), ["1 tensor is missing", NORM]),
    "all twins missing": (True, without(wild.SHARED), ["4 tensors are missing", *wild.TABLES]),
    "untied, no head": (False, without(wild.HEAD), ["1 tensor is missing", wild.HEAD]),
    "untied, no encoder embedding": (False, without(wild.ENCODER), ["1 tensor is missing", wild.ENCODER]),
    "untied, no decoder embedding": (False, without(wild.DECODER), ["1 tensor is missing", wild.DECODER]),
    "untied, no shared embedding": (False, without(wild.SHARED), ["1 tensor is missing", wild.SHARED]),
    "a layer more": (
        True,
        lambda s: s | {n.replace("layers.3.", "layers.4."): t for n, t in s.items() if ".decoder.layers.3." in n},
        ["tensors are no part of it", "model.decoder.layers.4."],
    ),
    "another head": (True, moved("classifier.weight", torch.clone), ["1 tensor is no part", "classifier.weight"]),
    "a foreign prefix": (True, lambda s: {f"module.{n}": t for n, t in s.items()}, ["missing", "no part", "module."]),
    "a shorter vocabulary": (False, moved(wild.HEAD, lambda t: t[:-3]), [wild.HEAD, "[93, 32]", "[96, 32]"]),
    "a longer position table": (True, moved(POSITIONS, lambda t: torch.cat([t, t])), [POSITIONS, "has shape [1"]),
    "a bias of another shape": (True, moved(wild.BIAS, lambda t: t.flatten()), [wild.BIAS, "[96]", "[1, 96]"]),
    "a tied head that differs": (True, moved(wild.HEAD, lambda t: t + 1), [wild.HEAD, wild.SHARED, "tie_word"]),
    "a tied embedding that differs": (True, moved(wild.ENCODER, lambda t: t + 1), [wild.ENCODER, "tie_word"]),
    "a tied head that differs in one number": (
        True,
        moved(wild.HEAD, lambda t: t + torch.eye(*t.shape) * (torch.arange(96) == 31)[:, None]),
        [wild.HEAD, "differ"],
    ),
    "one tensor under two names": (True, moved("shared.weight", torch.clone), ["stored twice", "shared.weight"]),
}  # fmt: skip


@pytest.mark.parametrize("file", [wild.WHOLE, wild.PICKLE])
@pytest.mark.parametrize("case", WRONG)
def test_what_is_not_exactly_the_model_is_refused_by_name(family, tmp_path, case, file):
    tied, change, said = WRONG[case]
    tiny_models.save_teacher(tmp_path, family, tie_word_embeddings=tied)
    stored = change(wild.tensors_of(tmp_path))
    (tmp_path / wild.WHOLE).unlink()
    wild.put(tmp_path, stored, file)
    with pytest.raises(WeightsError) as caught:
        Checkpoint(tmp_path)
    assert [part for part in (str(tmp_path), *said) if part not in str(caught.value)] == []
    with pytest.raises(evaluate.ModelError, match="cannot be loaded"):
        evaluate.load_model(tmp_path, torch.device("cpu"))


def test_every_reason_is_told_at_once(tmp_path):
    tiny_models.save_teacher(tmp_path, "bart")
    lacking = without(GONE)(wild.tensors_of(tmp_path))
    wild.put(tmp_path, moved("extra", torch.clone)(moved(POSITIONS, lambda t: t[:-1])(lacking)))
    with pytest.raises(WeightsError, match=rf"{GONE}.*extra.*{POSITIONS} has shape \[65, 32\], not \[66, 32\]"):
        Checkpoint(tmp_path)


def test_a_bart_with_its_old_version_numbers_is_loaded_as_transformers_does(tmp_path):
    right = wild.make(tmp_path, "bart")
    wild.put(tmp_path, wild.tensors_of(tmp_path) | {"model.encoder.version": torch.tensor([3.0])})
    found = Checkpoint(tmp_path).load().state_dict()
    assert all(torch.equal(found[name], right[name]) for name in right)


def test_the_configurations_own_dtype_unless_one_is_asked_for(tmp_path):
    tiny_models.save_teacher(tmp_path, "bart")
    AutoModelForSeq2SeqLM.from_pretrained(tmp_path, dtype=torch.bfloat16).save_pretrained(tmp_path)
    assert Checkpoint(tmp_path).load().dtype == torch.bfloat16
    assert Checkpoint(tmp_path).load(torch.float32).dtype == torch.float32


def test_a_loader_that_reads_otherwise_than_was_checked_is_found_out(tmp_path):
    wild.make(tmp_path, "bart")
    checkpoint = Checkpoint(tmp_path)
    wild.put(tmp_path, without(GONE)(wild.tensors_of(tmp_path)))  # as another version of transformers might choose
    with pytest.raises(WeightsError, match=rf"transformers missing_keys {GONE}"):
        checkpoint.load()


@pytest.mark.parametrize(
    ("stored", "left_out"),
    [
        ([wild.WHOLE, wild.PICKLE], True),
        ([f"{wild.WHOLE}.index.json", "part-1.safetensors", wild.PICKLE], True),
        (["model.fp16.safetensors", wild.PICKLE], False),  # a variant is not what from_pretrained takes
        ([wild.PICKLE], False),
    ],
)
def test_pickles_are_downloaded_where_transformers_would_take_them(monkeypatch, tmp_path, stored, left_out):
    asked = {}
    monkeypatch.setattr("distill_engine.models.loading.list_repo_files", lambda name, revision: stored)
    monkeypatch.setattr(
        "distill_engine.models.loading.snapshot_download", lambda name, **how: asked.update(how) or str(tmp_path)
    )
    assert local_copy("somebody/some-model", "abc") == tmp_path
    assert ("*.bin" in asked["ignore_patterns"], asked["revision"]) == (left_out, "abc")

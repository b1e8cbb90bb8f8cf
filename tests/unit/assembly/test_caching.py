"""A cache of teacher outputs: made, broken off and continued, extended, refused; the losses are the teacher's."""

import errno
import json
import resource
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoTokenizer, BlenderbotConfig, BlenderbotForConditionalGeneration

from distill_engine.assembly import caching
from distill_engine.assembly.builder import supervision_of
from distill_engine.assembly.caching import ALONE, CacheMaker, Settings, Share
from distill_engine.assembly.ending import exit_code_of
from distill_engine.assembly.frozen_teacher import Frozen, teacher_alone
from distill_engine.assembly.made_of import made_of
from distill_engine.cluster.exit_codes import may_pass
from distill_engine.cluster.other_ranks import OtherRanks, OthersFailedError
from distill_engine.cluster.ranks import Alone
from distill_engine.data.order.collate import Picks, filler_batch
from distill_engine.data.order.loader import picked_batch
from distill_engine.losses.objective import Objective
from distill_engine.models.adapter import adapt
from distill_engine.recipe.schema import Recipe
from distill_engine.recipe.shipped import DEFAULT_DS_CONFIG, DEFAULT_TEACHER_DS_CONFIG
from distill_engine.setup.prepare import Prepared, prepare
from distill_engine.teachers.cache import CACHE
from distill_engine.teachers.columns import CacheError
from distill_engine.teachers.protocol import TeacherParts
from distill_engine.values import FeatureRequest, Stack
from launcher.cache_size import cache_size
from launcher.hardware import GPUS
from launcher.job_files import read_job

TOKENIZER = Path(__file__).parents[3] / "recipes" / "demo" / "tokenizer"
CPU = torch.device("cpu")
WEIGHTS = {"task": 1.0, "encoder": 1.0, "embedding": 1.0, "hidden": 2.0, "self_attention": 0.5, "cross_attention": 0.5}
WORDS = ["hello", "do you have a dog", "my name is bo", "rain", "cats i like cats today"]


def model(seed: int = 7, **sizes) -> BlenderbotForConditionalGeneration:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        common = {
            "vocab_size": 1024, "d_model": 16, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "init_std": 0.2,
            "encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 64,
            "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
            "encoder_layers": 2, "decoder_layers": 3,
        }  # fmt: skip
        return BlenderbotForConditionalGeneration(BlenderbotConfig(**common | sizes)).eval()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A teacher and two files of small talk."""
    folder = tmp_path_factory.mktemp("cached")
    model().save_pretrained(folder / "teacher")
    AutoTokenizer.from_pretrained(TOKENIZER).save_pretrained(folder / "teacher")
    for name, count in (("train", 23), ("valid", 5), ("more", 4)):
        said = [(f"{name} {WORDS[n % 5]} {n}", f"{WORDS[n * n % 5]} {n}") for n in range(count)]
        lines = [f"text:{text}\tlabels:{label}\tepisode_done:True" for text, label in said]
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return folder


def recipe_of(place: Path, tasks=("train",), **changed) -> Recipe:
    sources = [
        {"name": "parlai_text", "label": task, "train": f"{place / task}.txt", "valid": str(place / "valid.txt")}
        for task in tasks
    ]
    data = {"datasets": sources, "tokenizer": str(TOKENIZER), "context_tokens": 32, "label_tokens": 16}
    data["cache_dir"] = str(place / "tokens")
    return Recipe.model_validate(
        {
            "name": "tiny",
            "teacher": {"path": str(place / "teacher")},
            "student": {"encoder_layers": 1, "decoder_layers": 2},
            "losses": {"weights": {**WEIGHTS, "prediction": 3.0}},
            "data": data | changed,
            "batch": {"per_rank": 4},
            "optimizer": {"learning_rate": 0.01},
        }
    )


@pytest.fixture(scope="module")
def ready(place):
    return prepare(recipe_of(place), "r.yaml")


@pytest.fixture(scope="module")
def teacher(place):
    return Frozen(place / "teacher", "fp32", CPU)


@pytest.fixture(scope="module")
def goal(ready):
    return Objective(ready.recipe.losses.weights, supervision_of(ready))


def maker(ready, teacher, goal, folder, k=None, dtype="fp32", shard_bytes=20_000, share=ALONE):
    settings = Settings(k, dtype, "fp32", 4, shard_bytes)
    return CacheMaker(ready, made_of(ready, Alone()), teacher, goal.teacher_request(), folder, settings, CPU, share)


def opened(ready, folder, dtype=torch.float32):
    parts = TeacherParts(
        ready.teacher_folder, lambda: pytest.fail("nothing is loaded"), False, 1024, 0, 1, CPU, dtype, folder,
        lambda: made_of(ready, Alone()),
    )  # fmt: skip
    return CACHE.open(parts)


@pytest.fixture(scope="module")
def whole(ready, teacher, goal, tmp_path_factory):
    """A finished cache of all logits."""
    folder = tmp_path_factory.mktemp("caches") / "all"
    maker(ready, teacher, goal, folder).write(lambda _: None)
    return folder


def batch_of(ready, numbers, multiple=1):
    picks = Picks(np.zeros(len(numbers), np.int64), np.array(numbers))
    return picked_batch(ready.train_datasets, picks, ready.layout, multiple)


def losses(goal, features, batch):
    """Every term's sum, and the student's gradients."""
    student = adapt(model(seed=1, encoder_layers=1, decoder_layers=2))
    values = goal.terms(student(batch, goal.student_request()), features, batch)
    goal.total(values, goal.divisors([batch], lambda one: one, 1)[0]).backward()
    gradients = [parameter.grad.flatten() for parameter in student.parameters() if parameter.grad is not None]
    return torch.stack([one.sum.detach() for one in values.values()]), torch.cat(gradients)


def tree(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and ".work" not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_losses_and_gradients_are_those_of_the_teacher(ready, teacher, goal, tmp_path):
    """To the bit where batches have one shape, because sums over padded lengths round in an order of their own."""
    fixed = replace(ready, recipe=ready.recipe.model_copy(deep=True))
    fixed.recipe.batch.__dict__["pad_to_multiple_of"] = 32
    maker(fixed, teacher, goal, tmp_path / "all").write(lambda _: None)
    cached = opened(fixed, tmp_path / "all")
    for multiple, exact in ((32, True), (1, False)):
        group = [batch_of(ready, numbers, multiple) for numbers in ([22, 3, 7, 1], [0, 4, 3, 9])]
        for batch, features in zip(group, cached.features(group, goal.teacher_request()), strict=True):
            live = losses(goal, teacher.features(batch, goal.teacher_request()), batch)
            for one, other in zip(losses(goal, features, batch), live, strict=True):
                if exact:
                    assert torch.equal(one, other)
                torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_several_teachers_are_cached_as_their_mean_with_the_features_of_one(place, goal, tmp_path):
    model(seed=5).save_pretrained(tmp_path / "second")
    AutoTokenizer.from_pretrained(TOKENIZER).save_pretrained(tmp_path / "second")

    def read(temperature: float, features: bool = True) -> Prepared:
        content = recipe_of(place).model_dump()
        second = {"path": str(tmp_path / "second"), "weight": 3.0, "features": features}
        content |= {"teachers": [{"path": content["teacher"]["path"]}, second]}
        content["losses"]["temperature"] = temperature
        content["batch"]["pad_to_multiple_of"] = 32
        return prepare(Recipe.model_validate(content), "r.yaml")

    ready = read(2.0)
    several = teacher_alone(ready, "fp32", CPU)
    maker(ready, several, goal, tmp_path / "mean").write(lambda _: None)
    cached = opened(ready, tmp_path / "mean")
    assert json.loads((tmp_path / "mean" / "manifest.json").read_text())["form"]["head"] is False
    assert cached.lacking(goal.teacher_request()) == [] and cached.lacking(FeatureRequest(head=True)) == ["head"]
    batch = batch_of(ready, [0, 1, 2, 3], 32)
    live = several.features(batch, goal.teacher_request())
    alone = Frozen(tmp_path / "second", "fp32", CPU).features(batch, goal.teacher_request())
    assert torch.equal(live.encoder_output, alone.encoder_output) and not torch.equal(live.logits, alone.logits)
    (kept,) = cached.features([batch], goal.teacher_request())
    for one, other in zip(losses(goal, live, batch), losses(goal, kept, batch), strict=True):
        assert torch.equal(one, other)
    (half,) = opened(ready, tmp_path / "mean", torch.bfloat16).features([batch], goal.teacher_request())
    assert torch.equal(half.logits, kept.logits) and half.encoder_output.dtype == torch.bfloat16
    for other in (read(1.0), read(2.0, features=False)):
        with pytest.raises(CacheError, match=r"made by another teacher: .* shares and losses\.temperature"):
            opened(other, tmp_path / "mean")


def test_some_tokens_and_half_precision_are_near(ready, teacher, goal, whole, tmp_path):
    """The prediction term, the last, needs many tokens of a random teacher, who finds all nearly alike."""
    maker(ready, teacher, goal, tmp_path / "few", k=64, dtype="bf16").write(lambda _: None)
    maker(ready, teacher, goal, tmp_path / "many", k=1000).write(lambda _: None)
    batch, found = batch_of(ready, [0, 1, 2, 3]), {}
    for folder in (whole, tmp_path / "few", tmp_path / "many"):
        (features,) = opened(ready, folder).features([batch], goal.teacher_request())
        found[folder.name] = losses(goal, features, batch)[0]
    torch.testing.assert_close(found["few"][:-1], found["all"][:-1], rtol=0.02, atol=0.02)
    torch.testing.assert_close(found["many"], found["all"], rtol=1e-2, atol=1e-4)
    assert not torch.equal(found["many"][-1], found["all"][-1])
    size, left, _ = maker(ready, teacher, goal, tmp_path / "few", k=64, dtype="bf16").missing()
    assert left == 0 and size < 0.7 * maker(ready, teacher, goal, tmp_path / "many", k=64).missing()[0]
    (half,) = opened(ready, tmp_path / "few", torch.bfloat16).features([batch], goal.teacher_request())
    true = teacher.features(batch, goal.teacher_request()).logits.log_softmax(dim=-1).topk(64, dim=-1)
    found = half.logits.gather(-1, true.indices)[batch.label_mask]
    torch.testing.assert_close(found, true.values[batch.label_mask], rtol=0, atol=3e-3)  # not those 8 bits
    assert half.encoder_output.dtype == torch.bfloat16
    assert opened(ready, whole).identity != opened(ready, tmp_path / "few").identity


def test_broken_off_it_goes_on_and_ends_with_the_same_bytes(ready, teacher, goal, whole, tmp_path):
    folder, done = tmp_path / "broken", []

    def until_the_fifth(examples: int) -> None:
        done.append(examples)
        if len(done) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        maker(ready, teacher, goal, folder).write(until_the_fifth)
    with pytest.raises(CacheError, match=r"does not hold, .*train, train.*it was not finished"):
        opened(ready, folder)
    (key,) = {path.parent for path in folder.glob("*/00000")}
    left = key / f".{len(list(key.glob('0*'))):05d}.0.new"  # by a kill
    left.mkdir()
    (left / "keys.npy").write_bytes(b"half")
    (folder / ".work" / ".rank-1.failed.77-0123abcd.new").touch()  # a mark
    before = maker(ready, teacher, goal, folder).missing()
    assert 0 < before[1] < before[0]
    rest: list[int] = []
    maker(ready, teacher, goal, folder).write(rest.append)
    assert sum(rest) == before[2] < 28
    assert tree(folder) == tree(whole)
    assert len(list(key.glob("0*"))) > 3
    shutil.rmtree(key / "00001")
    with pytest.raises(CacheError, match=r"lacks shards: .* of 28 examples are there"):
        opened(ready, folder)


def test_three_ranks_make_the_same_bytes_and_tell_each_other_when_they_cannot(ready, teacher, goal, whole, tmp_path):
    def of(rank: int) -> CacheMaker:
        return maker(ready, teacher, goal, tmp_path / "shared", share=Share(rank, 3))

    def fails(_examples: int) -> None:
        raise OSError(errno.EIO, "a broken wire")

    assert of(0).missing()[0] == of(2).missing()[0]
    begun: list[int] = []
    with pytest.raises(OthersFailedError, match=r"shards will not come: rank-1: OSError: .* a broken wire") as error:
        of(0).write(lambda examples: begun.append(examples) or (len(begun) == 1 and not others_fail(of, fails)))
    assert may_pass(error.value) and "nothing to do" not in of(0).require_fit()
    with OtherRanks(tmp_path / "step", 2, 3) as entered:
        (tmp_path / "step" / "rank-0.failed").write_text("\nValueError: while it loaded")
        of(2).write(lambda _: None, entered)
        with pytest.raises(OthersFailedError, match="rank-0: ValueError: while it loaded"):
            of(0).write(lambda _: None, entered)
    of(1).write(lambda _: None)
    of(0).write(lambda _: pytest.fail("rank 0 had made its share"))
    assert tree(tmp_path / "shared") == tree(whole)


def others_fail(of, fails) -> None:
    with pytest.raises(OSError, match="a broken wire"):
        of(1).write(fails)


def test_a_full_disk_loses_nothing_and_goes_on(ready, teacher, goal, whole, tmp_path):
    """The disk is full for files of more than so many bytes; what is finished stays, what is not leaves nothing."""
    folder, limit = tmp_path / "full", resource.getrlimit(resource.RLIMIT_FSIZE)
    sizes = [path.stat().st_size for path in whole.glob("*/0*/*.npy")]
    shutil.copytree(whole / "constants", folder / "constants")  # larger than any table of so tiny a model, as is
    shutil.copy(whole / "manifest.json", folder)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max(sizes) - 1, limit[1]))
    try:
        with pytest.raises(OSError) as error:
            maker(ready, teacher, goal, folder).write(lambda _: None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert may_pass(error.value) and not list(folder.glob("*/.*"))
    assert 0 < maker(ready, teacher, goal, folder).missing()[2] < 28
    maker(ready, teacher, goal, folder).write(lambda _: None)
    assert tree(folder) == tree(whole)


def test_its_size_is_said_and_a_disk_too_small_refused_before_a_byte_is_written(
    ready, teacher, goal, whole, tmp_path, monkeypatch
):
    folder = tmp_path / "new" / "cache"
    one = maker(ready, teacher, goal, folder)
    assert "are to be written for 28 examples" in one.require_fit()
    held = sum(len(content) for name, content in tree(whole).items() if name.endswith(".npy"))
    headers = 128 * sum(1 for name in tree(whole) if name.endswith(".npy"))
    assert held - headers == one.missing()[0]
    monkeypatch.setattr(caching, "free_bytes", lambda _place: 1000)
    with pytest.raises(CacheError, match=r"1000 bytes are free there\. Keep fewer tokens"):
        one.require_fit()
    assert not folder.parent.exists()


def test_the_plan_says_the_same_sizes(place, ready, teacher, goal, tmp_path):
    file = tmp_path / "recipe.yaml"
    content = recipe_of(place).model_dump(mode="json", exclude_defaults=True) | {"validation": {"every_steps": 5}}
    file.write_text(yaml.safe_dump(content))
    job = read_job(
        file, [], 1, 1, DEFAULT_DS_CONFIG.with_name("zero2_fp32.json"), DEFAULT_TEACHER_DS_CONFIG, GPUS["h100"]
    )
    for k in (None, 8):
        columns = maker(ready, teacher, goal, tmp_path / "none", k=k)._columns
        written = {stack: sum(one.row_bytes for one in columns if one.stack == stack.value) for stack in Stack}
        assert cache_size(job, k).token == written
    assert cache_size(job, None).once == 4 * 1024 * 17 and cache_size(job, 8).once == 0


def test_another_teacher_other_limits_and_another_form_are_refused_with_the_difference(
    place, ready, teacher, goal, whole, tmp_path
):
    with pytest.raises(
        CacheError, match=r"holds another cache:\n  k: there null, wanted 8\n  head: there true, .*\n  column top_ids"
    ):
        maker(ready, teacher, goal, whole, k=8).require_fit()
    squared = ready.recipe.model_copy(deep=True)
    squared.losses.__dict__["divergence"] = "logit_mse"
    with pytest.raises(CacheError, match=r"--k is 8, but losses\.divergence is logit_mse, which compares every logit"):
        maker(replace(ready, recipe=squared), teacher, goal, tmp_path / "none", k=8)
    shorter = prepare(recipe_of(place, label_tokens=3), "r.yaml")
    with pytest.raises(CacheError, match=r"does not hold, .*: train, train; train, valid\. It holds: train, "):
        opened(shorter, whole)
    with pytest.raises(CacheError, match=r"holds no manifest\.json: it is no teacher cache"):
        opened(ready, tmp_path)
    model(seed=8).save_pretrained(tmp_path / "other")
    other = replace(ready, teacher_folder=tmp_path / "other")
    with pytest.raises(CacheError, match="made by another teacher"):
        opened(other, whole)
    damaged = Frozen(place / "teacher", "fp32", CPU)
    damaged.model.get_encoder().layers[0].fc1.bias.data[3] = torch.nan
    with pytest.raises(CacheError, match=r"computed in fp32, has values that are not finite\. Its weights are damaged"):
        maker(ready, damaged, goal, tmp_path / "damaged", dtype="bf16").write(lambda _: None)
    manifest = json.loads((whole / "manifest.json").read_text())
    deeper = Objective(ready.recipe.losses.weights, dict.fromkeys(goal.supervision, (0,)))
    assert "hidden.encoder.0" in opened(ready, whole).lacking(deeper.teacher_request())
    assert opened(ready, whole).lacking(goal.teacher_request()) == [] and manifest["form"]["k"] is None


def test_further_data_come_beside_the_earlier_ones(place, teacher, goal, whole, ready, tmp_path):
    folder = tmp_path / "both"
    maker(ready, teacher, goal, folder).write(lambda _: None)
    both = prepare(recipe_of(place, ("train", "more")), "r.yaml")
    again = maker(both, teacher, goal, folder)
    assert again.missing()[2] == 4, "the shared validation examples come once"
    again.write(lambda _: None)
    assert tree(whole).items() <= tree(folder).items()
    opened(ready, folder)
    picks = Picks(np.array([1, 0]), np.array([3, 3]))
    batch = picked_batch(both.train_datasets, picks, both.layout, 1)
    (shown,) = opened(both, folder).features([batch], goal.teacher_request())
    torch.testing.assert_close(shown.logits[0], teacher.features(batch, goal.teacher_request()).logits[0])


def test_more_files_than_may_be_open_and_a_cut_one_is_named(ready, goal, whole, tmp_path):
    """Every shard has a file for each column; all of them are looked at in any order."""
    shutil.copytree(whole, tmp_path / "cut")
    cached, files = opened(ready, tmp_path / "cut"), Path("/proc/self/fd")
    before = len(list(files.iterdir()))
    next(cached.features([batch_of(ready, range(23))], goal.teacher_request()))
    assert len(list(files.iterdir())) == before
    for cut in (tmp_path / "cut").glob("*/00000/head.npy"):
        cut.write_bytes(cut.read_bytes()[:-1])
    with pytest.raises(CacheError, match=r"head\.npy cannot be read: .* bytes are no .*Remove its folder"):
        next(opened(ready, tmp_path / "cut").features([batch_of(ready, range(23))], goal.teacher_request()))


def test_other_text_is_refused_and_fillers_are_nothing(ready, goal, whole):
    batch = batch_of(ready, [0, 1])
    batch.decoder_input_ids[1, 1] += 1
    with pytest.raises(CacheError, match=r"Example 1 of dataset 0 \(.*its context is there with other labels") as error:
        next(opened(ready, whole).features([batch], goal.teacher_request()))
    assert exit_code_of(error.value) == 78
    batch.inputs.input_ids[1, 1] += 1
    with pytest.raises(CacheError, match="no example there has its context"):
        next(opened(ready, whole).features([batch], goal.teacher_request()))
    (shown,) = opened(ready, whole).features([filler_batch(ready.layout)], goal.teacher_request())
    assert shown.vocabulary == 1024 and not any(states.any() for states in shown.hidden.values())

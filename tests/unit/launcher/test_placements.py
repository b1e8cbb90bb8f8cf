"""Where the teacher lives: what each placement costs in memory and on the links, and which one makes a run fit."""

import json
from dataclasses import replace

import pytest

from distill_engine.families.lookup import fresh_shape
from distill_engine.families.shape import Sizes
from distill_engine.recipe.load import load_recipe
from distill_engine.recipe.problem import RecipeError
from launcher.hardware import GPUS
from launcher.job import Job, kernel
from launcher.job_files import read_job
from launcher.memory_model import gathered, host_memory, memory, teacher_shard
from launcher.plan import fits, make_plan
from launcher.remedies import remedies
from launcher.traffic import HOOK_SECONDS, hook_seconds, traffic

GPU = GPUS["h100"]
TEACHER = 2_696_268_800  # BlenderBot 3B


@pytest.fixture
def job(root):
    def make(nodes: int = 4, *overrides: str, gpu: str = "h100", ds: str = "zero2") -> Job:
        files = root / "ds_configs" / f"{ds}.json", root / "ds_configs" / "teacher_zero3.json"
        return read_job(root / "recipes" / "bb3b_tinybert.yaml", list(overrides), nodes, 8, *files, GPUS[gpu])

    return make


def placed(job, placement: str, *more: str, nodes: int = 4) -> Job:
    return job(nodes, f"teacher.placement={placement}", *more)


@pytest.mark.parametrize(
    ("placement", "shard", "within", "between"),
    [
        ("zero3", 1 / 32, 31 / 32, 31 / 32),
        ("node", 1 / 8, 7 / 8, 0),
        ("replica", 1, 0, 0),
        ("offload", 0, 31 / 32, 31 / 32),
    ],
)  # fmt: skip
def test_shard_and_bytes_per_step(job, placement, shard, within, between):
    one = placed(job, placement)
    whole = 2 * TEACHER
    assert teacher_shard(one) == pytest.approx(whole * shard, rel=1e-3)
    moved = traffic(one)["teacher gathering"]
    assert moved.within == pytest.approx(whole * within, rel=1e-3)
    assert moved.between == pytest.approx(whole * between, rel=1e-3)
    assert moved.host == pytest.approx(whole / 32 if placement == "offload" else 0, rel=1e-3)
    assert (gathered(one) == 0) is (placement == "replica")
    host = {"teacher shards": pytest.approx(whole / 4, rel=1e-3)} if placement == "offload" else {}
    assert host_memory(one) == host


def test_a_cached_teacher_takes_no_memory_no_links_and_no_time(job):
    one = job(4, "teacher.source=cache", "teacher.cache=d")
    assert teacher_shard(one) == gathered(one) == hook_seconds(one) == traffic(one)["teacher gathering"].within == 0
    assert host_memory(one) == {}
    assert memory(one)["teacher shard"] == 0 and make_plan(one, GPU).times["teacher"] == 0


def test_a_deepspeed_json_that_offloads_is_the_same_as_the_switch(job):
    one = job(4)
    block = {**one.teacher_ds["zero_optimization"], "offload_param": {"device": "cpu"}}
    assert memory(replace(one, teacher_ds={"zero_optimization": block})) == memory(placed(job, "offload"))


def test_a_window_gathers_once_and_holds_all_features(job):
    each = placed(job, "zero3", "batch.accumulation_steps=4")
    once = placed(job, "zero3", "batch.accumulation_steps=4", "teacher.window=true")
    assert traffic(each)["teacher gathering"].between == 4 * traffic(once)["teacher gathering"].between
    assert traffic(each)["gradient reduction"] == traffic(once)["gradient reduction"]
    assert memory(once)["captured features"] == 4 * memory(each)["captured features"]
    alone = placed(job, "zero3", "teacher.window=true")
    assert memory(alone) == memory(placed(job, "zero3")), "without accumulation it changes nothing"


def test_a_teacher_ahead_holds_the_features_of_two_micro_batches(job):
    for accumulation in (1, 4):
        one = f"batch.accumulation_steps={accumulation}"
        plain, ahead = placed(job, "replica", one), placed(job, "replica", one, "teacher.overlap=true")
        assert memory(ahead)["captured features"] == 2 * memory(plain)["captured features"]
        assert ahead.teacher_passes == plain.teacher_passes
    with pytest.raises(RecipeError, match=r"teacher.placement is auto, which is zero3 here \(32 ranks\), but"):
        placed(job, "auto", "teacher.overlap=true")


def test_gradients_are_reduced_at_every_micro_batch(job):
    """ZeRO-2 keeps no whole gradient between them; all-reduce moves twice the bytes."""
    one, four = job(4), job(4, "batch.accumulation_steps=4")
    assert traffic(one)["gradient reduction"].between == pytest.approx(2 * 2 * one.trained * 31 / 32)
    assert traffic(four)["gradient reduction"].between == 4 * traffic(one)["gradient reduction"].between
    assert traffic(four)["student weights"] == traffic(one)["student weights"]


def test_the_network_decides_between_placements_at_scale(job):
    """On many nodes the ring of zero3 is longer than the teacher's own arithmetic; inside a node it is not."""
    waiting = "waiting for the teacher's weights"
    spread, within, copied = (make_plan(placed(job, p, nodes=64), GPU) for p in ("zero3", "node", "replica"))
    assert spread.times[waiting] > 0 and within.times[waiting] == copied.times[waiting] == 0
    hooks = within.times["waiting for ZeRO-3's hooks"]
    assert spread.seconds > within.seconds == pytest.approx(copied.seconds + hooks)


def test_offloading_the_optimizer_moves_it_to_the_host(job):
    one, offloaded = job(4), job(4, ds="zero2_offload")
    assert memory(offloaded)["optimizer"] == 0 < memory(one)["optimizer"]
    assert host_memory(offloaded)["optimizer"] > memory(one)["optimizer"] * 8
    plans = [make_plan(each, GPU) for each in (one, offloaded)]
    assert plans[0].times["optimizer"] < plans[1].times["optimizer"], "the host's memory is slower"
    assert all(plans[1].traffic[who].host > 0 for who in ("gradient reduction", "student weights"))


def test_a_sparer_placement_is_among_the_remedies(job):
    """A replica beside a batch that fills the GPU: sharing it is enough, and each named knob really is."""
    one = placed(job, "replica", "batch.per_rank=24")
    shared = placed(job, "node", "batch.per_rank=24")
    small = replace(GPU, memory=(sum(memory(one).values()) + sum(memory(shared).values())) / 2 / 0.92)
    assert not fits(one, small)
    found = remedies(one, small)
    assert {"teacher.placement: node", "teacher.placement: zero3", "teacher.placement: offload"} <= set(found)
    for placement in ("node", "zero3", "offload"):
        assert fits(placed(job, placement, "batch.per_rank=24"), small)
    already = remedies(placed(job, "zero3", "batch.per_rank=60"), small)
    assert not any("replica" in text or "placement: node" in text for text in already)


def test_reference_kernels_are_among_the_remedies(job):
    whole = job(4, "losses.kernels.attention=reference", "batch.per_rank=32")
    fused = job(4, "batch.per_rank=32")
    between = (sum(memory(whole).values()) + sum(memory(fused).values())) / 2
    small = replace(GPU, memory=between / 0.92)
    assert fits(fused, small) and "losses.kernels.attention: fused" in remedies(whole, small)


def test_a_token_budget_is_planned_and_remedied_as_one(job):
    """batch.max_tokens: as many full examples as fit into it."""
    one = job(4, "batch.per_rank=16", "batch.max_tokens=8192")
    assert one.micro_batch == 8192 // 256
    small = replace(GPU, memory=sum(memory(one).values()) * 0.9 / 0.92)
    text = remedies(one, small)[0]
    assert text.startswith("batch.max_tokens: ")
    tokens, accumulation = (int(part.split(": ")[1]) for part in text.split(", "))
    assert accumulation > 1
    assert fits(job(4, f"batch.max_tokens={tokens}", f"batch.accumulation_steps={accumulation}"), small)


def test_older_gpus_have_no_triton_kernels(job):
    assert memory(job(4, gpu="v100"))["losses"] > memory(job(4))["losses"]


def test_tensors_add_up_to_the_parameters():
    for family in ("blenderbot", "bart"):
        shape = fresh_shape(family, 101, Sizes(2, 3, 24, 36, 4, 40))
        assert sum(size * count for size, count in shape.tensors.items()) == shape.parameters


def test_the_recipe_knows_the_placements(root):
    recipe = load_recipe(root / "recipes" / "demo.yaml", ["teacher.placement=node", "teacher.window=true"])
    assert (recipe.teacher.placement, recipe.teacher.window) == ("node", True)


def test_hooks_of_a_gathered_teacher_cost_the_host_tens_of_milliseconds_a_pass(job, root):
    """Whatever the GPU does meanwhile is not counted twice; a copy has no hooks."""
    name = "waiting for ZeRO-3's hooks"
    one, four = placed(job, "node"), placed(job, "node", "batch.accumulation_steps=4")
    assert hook_seconds(one) == (2 + 24 + 4) * HOOK_SECONDS and 0.01 < hook_seconds(one) < 0.1
    assert hook_seconds(four) == 4 * hook_seconds(one)
    assert hook_seconds(placed(job, "node", "batch.accumulation_steps=4", "teacher.window=true")) == hook_seconds(one)
    times = make_plan(one, GPU).times
    assert times["teacher"] + times["waiting for the teacher's weights"] + times[name] == pytest.approx(
        max(hook_seconds(one), times["teacher"] + times["waiting for the teacher's weights"])
    )
    assert hook_seconds(placed(job, "replica")) == make_plan(placed(job, "replica"), GPU).times[name] == 0
    measured = json.loads((root / "benchmarks" / "results" / "hooks_cpu.json").read_text(encoding="utf-8"))
    assert pytest.approx(measured["seconds"]["hooks_of_a_layer"], rel=0.1) == HOOK_SECONDS


def test_gradient_norms_move_what_the_recipe_says(job):
    """`logging.gradient_norm_every_steps`: an fp32 gradient per term (nine: six weights, three of two stacks)."""
    assert 9 * 4 * job().trained / 1e9 == pytest.approx(43, abs=0.5)


def test_several_teachers_are_all_counted(job):
    """The second one's weights, bytes and time beside the first one's; whole logits, for a mean has no factors."""
    small = "facebook/blenderbot-400M-distill"
    alone = job(4, f"teacher.path={small}", "losses.kernels.prediction=reference")
    first = job(4, "losses.kernels.prediction=reference")
    both = job(4, f"teachers=[{{path: {first.recipe.teacher.path}}}, {{path: {small}, weight: 2}}]")
    assert [one.parameters for one in both.all_loaded] == [first.teacher.parameters, alone.teacher.parameters]
    assert kernel(both, "prediction") == "reference"
    assert teacher_shard(both) == pytest.approx(teacher_shard(first) + teacher_shard(alone))
    assert gathered(first) < gathered(both) < gathered(first) + gathered(alone)
    assert hook_seconds(both) == pytest.approx(hook_seconds(first) + hook_seconds(alone))
    moved = [traffic(one)["teacher gathering"].within for one in (first, alone, both)]
    assert moved[2] == pytest.approx(moved[0] + moved[1])
    times = [make_plan(one, GPU).times["teacher"] for one in (first, alone, both)]
    assert times[2] == pytest.approx(times[0] + times[1])
    assert memory(both)["captured features"] > memory(first)["captured features"]
    assert not any("prediction" in text for text in remedies(both, GPU))


def test_samples_cost_a_pass_of_the_decoder_for_each_token(job):
    """The decoder's weights, once for each of 20 tokens, at half of the micro-batches."""
    one, other = (job(4, "rollout.source=student", f"rollout.new_tokens={n}") for n in (10, 20))
    shape, name = one.student, "the student's own samples"
    weights = 2 * (shape.decoder_layers * shape.decoder_layer + shape.embedding) / GPU.hbm
    more = make_plan(other, GPU).times[name] - make_plan(one, GPU).times[name]
    assert 0.5 * 10 * weights * one.accumulation < more < 0.5 * 10 * weights * one.accumulation * 3
    assert make_plan(job(4), GPU).times[name] == 0

"""DeepSpeed JSON + recipe -> final dict: who owns what, what is refused, what is substituted."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from distill_engine.engine.ds_config import (
    DsConfigError,
    DsConfigFile,
    load_ds_config,
    precision_of,
    student_config,
    teacher_config,
)
from distill_engine.engine.ds_keys import BF16_KEYS, FP16_KEYS, OFFLOAD_OPTIMIZER_KEYS, OFFLOAD_PARAM_KEYS, ZERO_KEYS

ZERO2: dict[str, Any] = {"zero_optimization": {"stage": 2}}
ZERO3: dict[str, Any] = {"zero_optimization": {"stage": 3}}
FP16: dict[str, Any] = {**ZERO2, "fp16": {"enabled": True, "initial_scale_power": 15}}
OPTIMIZER = {"name": "adam", "learning_rate": 1e-4, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}


def student(base: dict[str, Any], **changes: Any) -> tuple[dict[str, Any], list[str]]:
    arguments: dict[str, Any] = {
        "batch_per_rank": 16,
        "accumulation_steps": 2,
        "world_size": 4,
        "clip_norm": 0.1,
        "fp16_supported": True,
        "bf16_supported": True,
        "optimizer": OPTIMIZER,
    }
    return student_config(base, **{**arguments, **changes})


def refusal(base: dict[str, Any], **changes: Any) -> str:
    with pytest.raises(DsConfigError) as caught:
        student(DsConfigFile("my.json", base), **changes)
    text = str(caught.value)
    assert text.startswith("my.json: ")
    return text


# --- the student -----------------------------------------------------------------------------------------------


def test_the_final_dict_has_the_only_batch_arithmetic():
    final, notes = student(FP16)
    assert final == {
        "zero_optimization": {"stage": 2},
        "fp16": {"enabled": True, "initial_scale_power": 15},
        "train_micro_batch_size_per_gpu": 16,
        "gradient_accumulation_steps": 2,
        "train_batch_size": 128,
        "gradient_clipping": 0.1,
        "gradient_allreduce_op": "sum",
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    assert notes == []


def test_the_given_dict_is_left_alone_and_not_shared():
    base = copy.deepcopy(FP16)
    final, _ = student(base)
    final["zero_optimization"]["stage"] = 0
    assert base == FP16


def test_no_clipping_is_0():
    assert student(ZERO2, clip_norm=None)[0]["gradient_clipping"] == 0.0


OWNED = [
    ("train_micro_batch_size_per_gpu", 16, 8, "batch.per_rank"),
    ("gradient_accumulation_steps", 2, 1, "batch.accumulation_steps"),
    ("train_batch_size", 128, 64, "batch.per_rank x batch.accumulation_steps x 4 ranks"),
    ("gradient_clipping", 0.1, 1.0, "optimizer.clip_norm"),
]


@pytest.mark.parametrize("key, equal, other, recipe_key", OWNED)
def test_a_value_in_both_places_must_be_equal(key, equal, other, recipe_key):
    assert student({**ZERO2, key: equal})[0][key] == equal
    text = refusal({**ZERO2, key: other})
    assert f"{key} is {other}, but the recipe says {equal} ({recipe_key})" in text
    assert f"Remove {key} from this file" in text


def test_an_equal_optimizer_block_is_accepted_and_dropped():
    params = {"lr": 0.0001, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0}
    final, _ = student({**ZERO2, "optimizer": {"type": "Adam", "params": params}})
    assert "optimizer" not in final


@pytest.mark.parametrize(
    "block, said",
    [
        ({"type": "AdamW"}, "optimizer.type is 'AdamW', but the recipe says 'adam' (optimizer.name)"),
        ({"params": {"lr": 0.1}}, "optimizer.params.lr is 0.1, but the recipe says 0.0001 (optimizer.learning_rate)"),
        ({"params": {"betas": [0.9, 0.95]}}, "optimizer.params.betas is [0.9, 0.95], but the recipe says (0.9, 0.999)"),
        ({"params": {"torch_adam": True}}, "optimizer.params.torch_adam is not accepted"),
        ("Adam", "optimizer is 'Adam'. The recipe owns it"),
    ],
)
def test_another_optimizer_is_refused(block, said):
    assert said in refusal({**ZERO2, "optimizer": block})


def test_an_optimizer_block_is_refused_when_there_is_nothing_to_compare_with():
    assert "The recipe owns it" in refusal({**ZERO2, "optimizer": {"type": "Adam"}}, optimizer=None)


@pytest.mark.parametrize(
    "extra, said",
    [
        (
            {"zero_optimization": {"stage": 3}},
            "zero_optimization.stage is 3. The student runs under ZeRO-2. Set it to 2.",
        ),
        ({"zero_optimization": {"stage": 1}}, "zero_optimization.stage is 1"),
        ({"zero_optimization": {"stage": True}}, "zero_optimization.stage is True"),
        ({"zero_optimization": {}}, "zero_optimization.stage is missing"),
        ({"zero_optimization": True}, "zero_optimization is True. It should be an object"),
        ({"fp16": {"enabled": True}, "bf16": {"enabled": True}}, "fp16.enabled and bf16.enabled are both true"),
        ({"fp16": {"enabled": "true"}}, "fp16.enabled is 'true'. It should be true or false"),
        ({"fp16": True}, "fp16 is True. It should be an object"),
        ({"train_batch_size": "auto"}, "train_batch_size is 'auto'. Two places would decide it"),
        (
            {"zero_optimization": {"stage": 2, "reduce_bucket_size": "auto"}},
            "zero_optimization.reduce_bucket_size is 'auto'",
        ),
        ({"gradient_allreduce_op": "mean"}, "gradient_allreduce_op is 'mean'"),
        (
            {"gradient_acumulation_steps": 2},
            "is not a key that DeepSpeed has here. Did you mean gradient_accumulation_steps?",
        ),
        ({"zero_optimization": {"stage": 2, "overlap_com": 1}}, "zero_optimization.overlap_com is not a key"),
        ({"fp16": {"enabled": True, "hystersis": 2}}, "Did you mean hysteresis?"),
        ({"xyzzy": 1}, "The keys are: activation_checkpointing, aio,"),
        ({"scheduler": {"type": "WarmupLR"}}, "scheduler is not accepted. The recipe owns the learning rate's course"),
        ({"wandb": {"enabled": False}}, "wandb is not accepted. Metrics are logged by this engine"),
        ({"tensorboard": {}}, "tensorboard is not accepted"),
        ({"flops_profiler": {"enabled": True}}, "flops_profiler is not accepted"),
        ({"comms_logger": {"enabled": True}}, "comms_logger is not accepted"),
        ({"data_types": {"param_dtype": "bf16"}}, "data_types.param_dtype is not accepted"),
        ({"compile": {"deepcompile": True}}, "compile.deepcompile is not accepted"),
        (
            {"zero_optimization": {"stage": 2, "zero_hpz_partition_size": 8}},
            "zero_optimization.zero_hpz_partition_size is not accepted",
        ),
        (
            {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "nvme"}}},
            "offload_optimizer.device is 'nvme'. ZeRO-2 offloads to the CPU only",
        ),
        ({"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}}, "offload_param is not accepted"),
        (
            {"zero_optimization": {"stage": 2, "elastic_checkpoint": True}},
            "elastic_checkpoint is true. DeepSpeed cannot read such a checkpoint back",
        ),
        (
            {"zero_optimization": {"stage": 2, "load_from_fp32_weights": False}},
            "load_from_fp32_weights is false. Every restart would round the fp32 weights",
        ),
    ],
)
def test_what_is_refused(extra, said):
    assert said in refusal({**ZERO2, **extra})


def test_all_problems_come_at_once():
    text = refusal({"zero_optimization": {"stage": 3}, "train_batch_size": 1, "wandb": {}, "fp61": {}})
    assert text.startswith("my.json: 4 problems\n  - ")


# --- precision -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "asked, fp16, bf16, got",
    [
        ("fp16", True, True, "fp16"),
        ("fp16", False, True, "bf16"),
        ("fp16", False, False, "fp32"),
        ("bf16", True, True, "bf16"),
        ("bf16", True, False, "fp32"),
        (None, True, True, "fp32"),
    ],
)
def test_precision_is_what_the_accelerator_can_do(asked, fp16, bf16, got):
    base = {**ZERO2, asked: {"enabled": True}} if asked else ZERO2
    final, notes = student(base, fp16_supported=fp16, bf16_supported=bf16)
    assert precision_of(final) == got
    assert [name for name in ("fp16", "bf16") if name in final] == ([got] if got != "fp32" else [])
    if asked in (got, None):
        assert notes == []
    else:
        assert len(notes) == 1 and f"training in {got}" in notes[0] and "\n" not in notes[0]


def test_a_substituted_precision_is_substituted_everywhere():
    base = {**FP16, "communication_data_type": "fp16", "data_types": {"grad_accum_dtype": "fp16"}}
    final, _ = student(base, fp16_supported=False)
    assert final["communication_data_type"] == "bf16"
    assert final["data_types"] == {"grad_accum_dtype": "bf16"}
    assert base["data_types"] == {"grad_accum_dtype": "fp16"}


def test_a_disabled_block_is_left_out():
    final, _ = student({**FP16, "bf16": {"enabled": False}})
    assert precision_of(final) == "fp16"
    assert "bf16" not in final


# --- the teacher -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype, block", [("fp16", "fp16"), ("bf16", "bf16"), ("fp32", None)])
def test_the_teacher_has_the_students_precision(dtype, block):
    final = teacher_config(ZERO3, dtype=dtype, batch_per_rank=16, world_size=4)
    assert final == {
        # else DeepSpeed would replace torch.nn.functional.linear for the student as well
        "zero_optimization": {"stage": 3, "memory_efficient_linear": False},
        **({block: {"enabled": True}} if block else {}),
        "train_micro_batch_size_per_gpu": 16,
        "gradient_accumulation_steps": 1,
        "train_batch_size": 64,
    }


@pytest.mark.parametrize(
    "base, said",
    [
        (ZERO2, "zero_optimization.stage is 2. The teacher runs under ZeRO-3. Set it to 3."),
        ({**ZERO3, "optimizer": {}}, "optimizer is not accepted. The teacher is never trained"),
        ({**ZERO3, "gradient_allreduce_op": "sum"}, "gradient_allreduce_op is not accepted"),
        ({**ZERO3, "train_batch_size": 8}, "The teacher reads the student's batches"),
        ({**ZERO3, "bf16": {"enabled": True}}, "bf16.enabled is true, but the student trains in fp16"),
        ({**ZERO3, "wandb": {}}, "wandb is not accepted"),
    ],
)
def test_what_a_teacher_refuses(base, said):
    with pytest.raises(DsConfigError) as caught:
        teacher_config(base, dtype="fp16")
    assert said in str(caught.value)


@pytest.mark.parametrize("placement", ["zero3", "node", "replica"])
def test_shards_are_not_offloaded_by_the_file_when_the_recipe_keeps_them(placement):
    base = {**ZERO3, "zero_optimization": {**ZERO3["zero_optimization"], "offload_param": {"device": "cpu"}}}
    with pytest.raises(DsConfigError) as caught:
        teacher_config(base, dtype="fp16", placement=placement)
    said = f"offload_param.device is 'cpu', but the recipe says teacher.placement: {placement}"
    assert said in str(caught.value) and "or set teacher.placement: offload" in str(caught.value)


@pytest.mark.parametrize("given", [None, {"pin_memory": False}, {"device": "cpu", "buffer_count": 3}])
def test_offloaded_shards_wait_in_host_memory_with_the_files_other_settings(given):
    base = copy.deepcopy(ZERO3)
    if given is not None:
        base["zero_optimization"]["offload_param"] = given
    final = teacher_config(base, dtype="fp16", placement="offload")
    assert final["zero_optimization"]["offload_param"] == {**(given or {}), "device": "cpu"}
    assert "offload_param" not in teacher_config(ZERO3, dtype="fp16")["zero_optimization"]


@pytest.mark.parametrize("device", ["nvme", "none"])
def test_offloading_elsewhere_contradicts_the_recipe(device):
    base = {**ZERO3, "zero_optimization": {**ZERO3["zero_optimization"], "offload_param": {"device": device}}}
    with pytest.raises(DsConfigError, match="keeps the shards in host memory"):
        teacher_config(base, dtype="fp16", placement="offload")


# --- files -----------------------------------------------------------------------------------------------------


def test_a_file_is_read_and_remembered(tmp_path):
    path = tmp_path / "zero2.json"
    path.write_text('{"zero_optimization": {"stage": 3}}')
    config = load_ds_config(path)
    assert config == {"zero_optimization": {"stage": 3}}
    with pytest.raises(DsConfigError) as caught:
        student(config)
    assert caught.value.source == str(path)


@pytest.mark.parametrize(
    "content, said",
    [
        (b"", "line 1, column 1: this is not valid JSON"),
        (b'{"a": 1,\n "b": }', "line 2, column 7: this is not valid JSON"),
        (b"[1]", "the file holds [1]. It should hold one JSON object"),
        (b'{"a": {"b": 1, "b": 2}}', "b is given twice"),
        (b'{"a": "\xff"}', "utf-8"),
    ],
)
def test_files_that_are_no_configs(tmp_path, content, said):
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(DsConfigError) as caught:
        load_ds_config(path)
    assert said in str(caught.value)


@pytest.mark.parametrize("name", ["", "missing.json"])
def test_files_that_cannot_be_read(tmp_path: Path, name):
    with pytest.raises(DsConfigError, match="the file cannot be read"):
        load_ds_config(tmp_path / name)


# --- the vocabulary is the installed DeepSpeed's ---------------------------------------------------------------


def names_of(model: Any) -> set[str]:
    return {field.alias or name for name, field in model.model_fields.items()}


def test_the_key_lists_are_those_of_the_installed_deepspeed():
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.runtime.zero.offload_config import (
        DeepSpeedZeroOffloadOptimizerConfig,
        DeepSpeedZeroOffloadParamConfig,
    )

    assert names_of(DeepSpeedZeroConfig) == ZERO_KEYS
    assert names_of(DeepSpeedZeroOffloadOptimizerConfig) == OFFLOAD_OPTIMIZER_KEYS
    assert names_of(DeepSpeedZeroOffloadParamConfig) == OFFLOAD_PARAM_KEYS
    assert names_of(DeepSpeedFP16Config) == FP16_KEYS
    assert names_of(DeepSpeedBF16Config) == BF16_KEYS

"""What has changed in a DeepSpeed configuration, and what of it counts."""

import json

from distill_engine.engine.ds_changes import changes_since, config_changes

OLD = {
    "train_batch_size": 8,
    "gradient_clipping": 1.0,
    "fp16": {"enabled": True, "initial_scale_power": 15, "hysteresis": 2},
    "zero_optimization": {"stage": 2, "reduce_bucket_size": 500, "offload_optimizer": {}},
}


def test_nothing_changed_is_nothing_said():
    assert config_changes("ds_config", OLD, dict(OLD), resumes=True) == []


def test_each_change_is_named_and_what_the_checkpoint_decides_has_no_effect():
    new = OLD | {
        "train_batch_size": 16,
        "gradient_clipping": 0.5,
        "fp16": {"enabled": True, "initial_scale_power": 8, "loss_scale_window": 500},
        "zero_optimization": {"stage": 2, "reduce_bucket_size": 900, "offload_optimizer": {"device": "cpu"}},
    }
    scaler = " (no effect: the loss scaler goes on as it is in the checkpoint)"
    said = config_changes("ds_config", OLD, new, resumes=True)
    assert said == [
        "ds_config gradient_clipping: 1.0 -> 0.5 (no effect: the clipping goes on as it is in the checkpoint)",
        f"ds_config fp16.initial_scale_power: 15 -> 8{scaler}",
        f"ds_config fp16.hysteresis: 2 -> (absent){scaler}",
        "ds_config zero_optimization.reduce_bucket_size: 500 -> 900",
        "ds_config zero_optimization.offload_optimizer: {} -> (absent)",
        f"ds_config fp16.loss_scale_window: (absent) -> 500{scaler}",
        'ds_config zero_optimization.offload_optimizer.device: (absent) -> "cpu"',
    ]
    fresh = config_changes("ds_config", OLD, new, resumes=False)
    assert len(fresh) == len(said) and not any("no effect" in line for line in fresh)


def test_the_file_of_an_earlier_start_may_be_absent_or_damaged(tmp_path):
    file = tmp_path / "ds_config.json"
    assert changes_since(file, OLD, resumes=True) == []
    file.write_text("{")
    assert changes_since(file, OLD, resumes=True) == []
    file.write_text(json.dumps(OLD | {"gradient_clipping": 2.0}))
    (line,) = changes_since(file, OLD, resumes=False)
    assert line == "ds_config gradient_clipping: 2.0 -> 1.0"

"""W&B as a user meets it: no key, or a server that is not there. Training goes on and nobody learns the key."""

import time

from distill_engine.telemetry.jsonl import read_history

KEY = "fedcba9876543210" * 2 + "beef4321"
DELAY_SECONDS = 90  # it gives up after 20; the rest is for a machine that is busy with other things


def short(base_recipe, write_recipe, mode: str):
    recipe = base_recipe(None)
    recipe["stop"] = {"max_steps": 3}
    recipe["logging"]["wandb"] = {"mode": mode}
    return write_recipe(recipe)


def everything_is_there(folder, ended) -> None:
    ended.well()
    kinds = [record.kind for record in read_history(folder / "metrics.jsonl")]
    assert [kind for kind in kinds if kind in ("train", "valid")] == ["train"] * 3 + ["valid"]
    assert (folder / "best" / "model.safetensors").is_file()
    run_id = (folder / "wandb_run_id").read_text().strip()
    assert len(list((folder / "wandb").glob(f"offline-run-*-{run_id}"))) == 1
    assert ended.said.count("wandb sync") == 1 and f"offline-run-*-{run_id}" in ended.said


def test_without_a_key_the_run_is_offline_and_one_line_says_how_to_upload_it(
    program, base_recipe, write_recipe, fp32, tmp_path
):
    folder, home = tmp_path / "run", tmp_path / "home"
    home.mkdir()
    recipe = short(base_recipe, write_recipe, "auto")
    ended = program.run(
        "--recipe", recipe, "--ds_config", fp32, "--run-dir", folder, env={"HOME": str(home), "NETRC": str(home / "n")}
    )
    everything_is_there(folder, ended)
    assert "no API key found" in ended.said


def test_a_server_that_is_not_there_costs_a_bounded_time(program, base_recipe, write_recipe, fp32, tmp_path):
    folder, home = tmp_path / "run", tmp_path / "home"
    home.mkdir()
    recipe = short(base_recipe, write_recipe, "online")
    nowhere = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": KEY, "HOME": str(home), "TMPDIR": str(home)}
    run = program.start("--recipe", recipe, "--ds_config", fp32, "--run-dir", folder, env=nowhere)
    run.until(lambda: "starting" in run.said(), "starting")
    started = time.monotonic()
    run.until(lambda: "wandb sync" in run.said(), "going offline")
    assert time.monotonic() - started < DELAY_SECONDS
    ended = run.ended()
    everything_is_there(folder, ended)
    files = [path for top in (folder, home) for path in top.rglob("*") if path.is_file()]
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []
    assert KEY not in ended.said

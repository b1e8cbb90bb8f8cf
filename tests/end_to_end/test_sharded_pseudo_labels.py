"""`distill pseudo-label` on any ranks: killed again and again, or with a model in shards, the same bytes."""

import json
import random
import socket
import subprocess
import sys


def test_two_ranks_with_shards_of_one_model_write_what_one_process_writes(
    program, base_recipe, make_teacher, write_recipe, tmp_path
):
    """Five batches on two ranks: one takes a turn that does not count. Sampled answers end at any length."""
    made = base_recipe(make_teacher(tmp_path / "teacher", "blenderbot", d_model=16, decoder_layers=2))
    rows = [json.dumps({"source": "do you " * (1 + n % 4), "target": "yes"}) for n in range(9)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows) + "\n")
    made["data"]["datasets"] = [{"kind": "pairs", "label": "asked", "train": str(tmp_path / "rows.jsonl")}]
    made["validation"] = {"patience": None}
    recipe = write_recipe(made)

    def labels(out, *more, ranks=1):
        sampled = ("--generation", "do_sample=true", "--generation", "max_new_tokens=12", "--batch-size", "2")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        torchrun = ["torch.distributed.run", "--nproc-per-node", str(ranks), "--master-port", port, "-m"]
        command = [sys.executable, "-m", *(torchrun if ranks > 1 else []), "distill_engine.cli", "pseudo-label"]
        command += [str(recipe), "--out", str(out), *sampled, *more]
        done = subprocess.run(command, capture_output=True, text=True, env=program.environment())
        assert done.returncode == 0, done.stdout + done.stderr
        return (out / "1-asked.jsonl").read_bytes()

    whole = labels(tmp_path / "whole")
    assert labels(tmp_path / "shards", "--placement", "zero3", ranks=2) == whole
    lengths = {len(json.loads(line)["target"].split()) for line in whole.splitlines()}
    assert len(whole.splitlines()) == 9 and len(lengths) > 1


def test_ten_kills_of_one_two_or_three_ranks_leave_the_bytes_of_one(
    starts, base_recipe, make_teacher, write_recipe, tmp_path
):
    """Sampled texts, as beams draw nothing. A start has one, two or three ranks, whatever the one before it had."""
    made = base_recipe(make_teacher(tmp_path / "teacher", "blenderbot", d_model=16, decoder_layers=2))
    rows = [json.dumps({"source": "do you " * (1 + n % 5) + str(n), "target": "yes"}) for n in range(20)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows) + "\n")
    made["data"]["datasets"] = [{"kind": "pairs", "label": "asked", "train": str(tmp_path / "rows.jsonl")}]
    made["validation"] = {"patience": None}
    recipe = str(write_recipe(made))
    sampled = ["--generation", "do_sample=true", "--generation", "max_new_tokens=6", "--batch-size", "2"]

    def arguments(name: str) -> list[str]:
        return ["pseudo-label", recipe, "--out", str(tmp_path / name), *sampled]

    def written(name: str) -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in sorted((tmp_path / name).glob("*.json*"))}

    def batches(name: str) -> int:
        return sum(file.read_bytes().count(b"\n") for file in (tmp_path / name).glob("work/*/*.jsonl"))

    whole = starts(arguments("one"), [0])
    assert whole["codes"] == [0], whole
    wanted, total = written("one"), batches("one")
    assert sorted(wanted) == ["1-asked.jsonl", "summary.json"] and total == 10
    assert starts(arguments("three"), [0] * 3)["codes"] == [0] * 3
    assert written("three") == wanted and batches("three") == total, "each example once"

    draw = random.Random(3)
    for kill in range(10):
        ranks, left = {3: 2, 6: 3}.get(kill, 1), 1 - batches("killed") / total
        last = max(40, int(0.3 * left * whole["lines"][0] / ranks))
        ended = starts(arguments("killed"), [draw.randrange(1, last) for _ in range(ranks)])
        assert set(ended["codes"]) == {-9}, ended
    assert 0 < batches("killed") < total and written("killed") == {}
    assert starts(arguments("killed"), [0])["codes"] == [0]
    assert written("killed") == wanted and batches("killed") == total

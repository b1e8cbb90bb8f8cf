"""`distill pseudo-label --placement zero3`: a model in shards over two ranks says what the whole one says."""

import json
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

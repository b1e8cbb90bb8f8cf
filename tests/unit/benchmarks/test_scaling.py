"""benchmarks/scaling.py on its smallest preset: real ranks, all three files, and numbers that hang together."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    found = tmp_path_factory.mktemp("scaling")
    command = [sys.executable, str(ROOT / "benchmarks" / "scaling.py"), "--preset", "tiny", "--rounds", "2"]
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    done = subprocess.run(
        [*command, "--steps", "2", "--results", str(found)],
        capture_output=True, text=True, timeout=600, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout) == json.loads((found / "scaling.json").read_text())
    return found


@pytest.mark.multiprocess
def test_one_and_two_ranks_are_measured(folder):
    here = json.loads((folder / "scaling.json").read_text())["measured"]
    one, weak, strong = (here["samples"][f"seconds_{name}"]["median"] for name in ("one", "weak", "strong"))
    assert here["efficiency"] == {"weak": pytest.approx(one / weak), "strong": pytest.approx(one / strong / 2)}
    assert here["tokens_per_second"]["weak"] == pytest.approx(2 * 4 * (16 + 8) / weak)
    ceilings = [here["samples"][name]["median"] for name in ("gflops_one", "gflops_two", "latency", "bandwidth")]
    assert all(value > 0 for value in ceilings)
    assert all(0 < value < 2 for value in here["predicted_efficiency"].values())
    assert here["machine"]["versions"]["torch"] and here["load_average"]["before"]


@pytest.mark.multiprocess
def test_the_model_reaches_512_gpus_in_every_placement(folder):
    result = json.loads((folder / "scaling.json").read_text())
    rows = {(row["placement"], row["gpus"]): row for row in result["modelled"]}
    assert {gpus for _, gpus in rows} == {2**power for power in range(10)}
    largest = {placement: rows[placement, 512] for placement in ("zero3", "node", "replica", "offload")}
    teacher = {name: row["bytes_between_nodes"]["teacher gathering"] for name, row in largest.items()}
    assert teacher["node"] == teacher["replica"] == 0
    assert teacher["zero3"] == teacher["offload"] == pytest.approx(2 * 2.696e9 * 511 / 512, rel=1e-3)
    assert all(rows[name, 1]["efficiency"] == 1 for name in ("zero3", "node", "replica"))
    assert rows["offload", 1]["efficiency"] < 1, "every weight comes from the host"
    assert largest["zero3"]["efficiency"] < largest["node"]["efficiency"] < 1
    assert {"arithmetic", "links", "latency", "overlap"} <= set(result["assumptions"])


@pytest.mark.multiprocess
def test_page_and_plot(folder):
    page = (folder / "scaling.md").read_text()
    assert page.count("| 512 |") == 4 and "Assumed:" in page and "2 ranks, half the examples each" in page
    picture = (folder / "scaling.svg").read_text()
    assert picture.startswith("<?xml") and "</svg>" in picture

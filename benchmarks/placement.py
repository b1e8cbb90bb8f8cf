"""What each home of the teacher costs: bytes that move within and between nodes in a step, and the teacher's seconds.

    python benchmarks/placement.py [--steps 5] [--json benchmarks/results/placement_cpu.json]

Starts four real ranks as two nodes of two, and lets the teacher's engine teach steps of four micro-batches from each
`teacher.placement`, with and without `teacher.window`. Bytes are counted at every collective (engine/traffic.py). Where
this user may make network namespaces (root on Linux), each node is one, and what crosses the cable between the two is
read off its counters too: no assumption about any algorithm is left in that number.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from distill_engine.telemetry.quiet import quiet_libraries  # noqa: E402

quiet_libraries(int(os.environ.get("RANK", "0")))  # before anything imports torch

import torch  # noqa: E402
from runs import free_port  # noqa: E402
from step import FIRST_WORD, START, write_teacher  # noqa: E402
from step_presets import PRESETS  # noqa: E402

from distill_engine.engine import distributed  # noqa: E402
from distill_engine.engine.config import Placement  # noqa: E402
from distill_engine.engine.distributed import Ranks  # noqa: E402
from distill_engine.engine.ds_config import load_ds_config, teacher_config  # noqa: E402
from distill_engine.engine.node_group import nodes_of  # noqa: E402
from distill_engine.engine.teacher import TeacherEngine  # noqa: E402
from distill_engine.engine.traffic import Traffic  # noqa: E402
from distill_engine.losses.config import LossWeights  # noqa: E402
from distill_engine.losses.objective import Objective  # noqa: E402
from distill_engine.models.adapter import adapt  # noqa: E402
from distill_engine.student.projections import feature_tensors  # noqa: E402
from distill_engine.teachers.live import LiveTeacher  # noqa: E402
from distill_engine.telemetry.machine import machine_record  # noqa: E402
from distill_engine.values import Batch, Stack, Tokens  # noqa: E402

NODES, PER_NODE, MICRO_BATCHES, ROWS = 2, 2, 4, 4
PLACEMENTS: tuple[Placement, ...] = ("zero3", "node", "replica", "offload")
PRESET = PRESETS["demo"]
ADDRESSES = ("10.231.77.1", "10.231.77.2")
ALL_TERMS = LossWeights(encoder=1, embedding=1, hidden=1, self_attention=1, cross_attention=1, prediction=1)


# ---- one rank ----------------------------------------------------------------------------------------------------


def work(folder: Path, steps: int, cable: str) -> None:
    """Measure every case in this rank's process and write what it found."""
    ranks = distributed.start()
    torch.set_num_threads(1)
    nodes = nodes_of(ranks)
    found = {}
    for placement in PLACEMENTS:
        config = teacher_config(_shipped(), dtype="fp32", world_size=ranks.world_size, placement=placement)
        teacher = TeacherEngine(folder / "teacher", config, torch.float32, ranks, adapt, placement)
        for window in (False, True):
            found[f"{placement}/{window}"] = _measured(teacher, window, ranks, nodes, steps, cable)
    (folder / f"rank_{ranks.rank}.json").write_text(json.dumps(found), encoding="utf-8")
    ranks.barrier()
    distributed.stop()


def _shipped() -> dict[str, Any]:
    base = load_ds_config(ROOT / "ds_configs" / "teacher_zero3.json")
    base["zero_optimization"]["stage3_param_persistence_threshold"] = 300  # all but norms and biases, as in a 3B model
    return base


def _measured(
    teacher: TeacherEngine, window: bool, ranks: Ranks, nodes: Sequence[Sequence[int]], steps: int, cable: str
) -> dict[str, float]:
    group = [_batch(1000 * ranks.rank + number) for number in range(MICRO_BATCHES)]
    for _ in range(3):  # DeepSpeed learns the order of the layers
        _teach(teacher, group, window)
    with Traffic(ranks.rank, nodes) as moved:
        held = _teach(teacher, group, window)
    seconds = []
    ranks.barrier()
    before = _from_cable(cable)
    for _ in range(steps):
        started = time.perf_counter()
        _teach(teacher, group, window)
        seconds.append(time.perf_counter() - started)
    ranks.barrier()
    first_of_node = ranks.local_rank == 0  # the ranks of a node see the same counter
    return {
        "within": moved.within,
        "between": moved.between,
        "on_cable": (_from_cable(cable) - before) / steps if first_of_node else 0.0,
        "seconds": statistics.median(seconds),
        "feature_bytes": held,
    }


def _teach(teacher: TeacherEngine, group: list[Batch], window: bool) -> int:
    """One optimizer step's teacher features, dropped as the loop does; the most bytes of them that lived at a time."""
    layers = {Stack.ENCODER: (1,), Stack.DECODER: (2, 5)}
    request = Objective(ALL_TERMS, layers).teacher_request()
    largest = 0
    for features in LiveTeacher(teacher, window=window).features(group, request):
        found = [one.untyped_storage() for one in feature_tensors(features)]
        storages = {storage.data_ptr(): storage.nbytes() for storage in found}
        largest = max(largest, sum(storages.values()))
        del features, found
    return largest


def _batch(seed: int) -> Batch:
    """Random words; lengths differ between micro-batches and rows."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(PRESET.context_tokens // 2, PRESET.context_tokens + 1, (ROWS, 1), generator=draw)
    context = torch.randint(FIRST_WORD, PRESET.vocabulary, (ROWS, int(lengths.max())), generator=draw)
    mask = (torch.arange(context.shape[1]) < lengths).long()
    labels = torch.randint(FIRST_WORD, PRESET.vocabulary, (ROWS, PRESET.label_tokens), generator=draw)
    read = torch.cat([torch.full((ROWS, 1), START), labels[:, :-1]], dim=1)
    return Batch.of(Tokens(context * mask, mask), read, labels)


def _from_cable(cable: str) -> int:
    """Bytes that have come in over this node's end of the cable; 0 where there is none."""
    return int(Path(f"/sys/class/net/{cable}/statistics/rx_bytes").read_text()) if cable else 0


# ---- all ranks ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Node:
    """How a process is started on a simulated node, and its end of the cable (empty without namespaces)."""

    prefix: tuple[str, ...] = ()
    cable: str = ""


@contextmanager
def two_nodes() -> Iterator[tuple[list[Node], str]]:
    """Two network namespaces with a cable between them, or two nodes on the loopback device; and rank 0's address."""
    names = [f"placement{os.getpid()}{end}" for end in "ab"]
    cables = [f"pl{os.getpid() % 100_000}{end}" for end in "ab"]
    try:
        if not _plug_in(names, cables):
            yield [Node(), Node()], "127.0.0.1"
            return
        prefixes = [("ip", "netns", "exec", name) for name in names]
        yield [Node(*pair) for pair in zip(prefixes, cables, strict=True)], ADDRESSES[0]
    finally:
        for name in names:
            _ip("netns", "del", name)


def _plug_in(names: Sequence[str], cables: Sequence[str]) -> bool:
    made = all(_ip("netns", "add", name) for name in names)
    one, other = ((cable, "netns", name) for cable, name in zip(cables, names, strict=True))
    made = made and _ip("link", "add", *one, "type", "veth", "peer", *other)
    for name, cable, address in zip(names, cables, ADDRESSES, strict=True):
        made = made and _ip("-n", name, "addr", "add", f"{address}/24", "dev", cable)
        made = made and all(_ip("-n", name, "link", "set", device, "up") for device in (cable, "lo"))
    return made


def _ip(*arguments: str) -> bool:
    try:
        return subprocess.run(["ip", *arguments], capture_output=True, check=False).returncode == 0
    except OSError:  # no such program
        return False


def measure(steps: int) -> dict[str, Any]:
    """Start the ranks, wait for them, and add up what they found."""
    with tempfile.TemporaryDirectory() as mine, two_nodes() as (nodes, address):
        folder = Path(mine)
        write_teacher(PRESET, folder / "teacher")
        teacher_bytes = (folder / "teacher" / "model.safetensors").stat().st_size
        where = (folder, steps, address, free_port())
        ranks = [_start(rank, nodes[rank // PER_NODE], *where) for rank in range(NODES * PER_NODE)]
        codes = [rank.wait() for rank in ranks]
        if any(codes):
            raise SystemExit(f"the ranks ended with the codes {codes}")
        found = [json.loads((folder / f"rank_{rank}.json").read_text()) for rank in range(len(ranks))]
    return {
        "nodes": NODES,
        "ranks_per_node": PER_NODE,
        "micro_batches": MICRO_BATCHES,
        "examples_per_micro_batch": ROWS,
        "teacher_bytes": teacher_bytes,
        "cable": bool(nodes[0].cable),
        "cases": [_case(name, [one[name] for one in found], bool(nodes[0].cable)) for name in found[0]],
        "machine": machine_record(),
    }


def _start(rank: int, node: Node, folder: Path, steps: int, address: str, port: int) -> subprocess.Popen[bytes]:
    local = {"RANK": rank, "LOCAL_RANK": rank % PER_NODE, "GROUP_RANK": rank // PER_NODE}
    shared = {"WORLD_SIZE": NODES * PER_NODE, "LOCAL_WORLD_SIZE": PER_NODE, "GROUP_WORLD_SIZE": NODES}
    own = {name: str(value) for name, value in (local | shared).items()}
    own |= {"MASTER_ADDR": address, "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    own |= {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    if node.cable:
        own["GLOO_SOCKET_IFNAME"] = node.cable
    command = [*node.prefix, sys.executable, __file__, "--steps", str(steps), "--work", str(folder)]
    return subprocess.Popen([*command, "--cable", node.cable], env=os.environ | own)


def _case(name: str, ranks: list[dict[str, float]], cable: bool) -> dict[str, Any]:
    placement, window = name.split("/")
    return {
        "placement": placement,
        "window": window == "True",
        "bytes_within_nodes": sum(one["within"] for one in ranks),
        "bytes_between_nodes": sum(one["between"] for one in ranks),
        "bytes_on_cable": sum(one["on_cable"] for one in ranks) if cable else None,
        "teacher_seconds": max(one["seconds"] for one in ranks),
        "feature_bytes": max(one["feature_bytes"] for one in ranks),
    }


def table(report: dict[str, Any]) -> str:
    """The cases, per optimizer step of all ranks; ratios to `zero3` without a window."""
    first = report["cases"][0]
    bytes_of_first, seconds_of_first = first["bytes_between_nodes"], first["teacher_seconds"]
    lines = ["placement  window  MB within  MB between  ratio  MB on cable  teacher s  ratio  features MB"]
    for case in report["cases"]:
        cable = case["bytes_on_cable"]
        lines.append(
            f"{case['placement']:9}  {'on' if case['window'] else 'off':6}  {case['bytes_within_nodes'] / 1e6:9.2f}  "
            f"{case['bytes_between_nodes'] / 1e6:10.2f}  {case['bytes_between_nodes'] / bytes_of_first:5.2f}  "
            f"{'-' if cable is None else format(cable / 1e6, '.2f'):>11}  {case['teacher_seconds']:9.3f}  "
            f"{case['teacher_seconds'] / seconds_of_first:5.2f}  {case['feature_bytes'] / 1e6:11.2f}"
        )
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each case")
    parser.add_argument("--json", type=Path, help="write the numbers there")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--cable", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work is not None:
        work(given.work, given.steps, given.cable)
        return
    report = measure(given.steps)
    print(table(report))
    if given.json is not None:
        given.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Looks at every node before models are loaded, and reports all bad ones together, by name.

Each node prints one line of JSON; one process compares them. What a node can only know itself (its GPUs, its clock
against the file server's, whether the run folder is really the shared one) it finds out; what must be equal on all
nodes (versions, driver) is compared. Whether nodes reach each other they try out together (reachability.py).
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from distill_engine.checkpoint.space import Space
from distill_engine.cluster.facts import ClusterError, read_cluster
from distill_engine.cluster.files import replace_text
from distill_engine.cluster.hostlist import expand_hostlist
from distill_engine.cluster.ranks import first_of
from launcher import disk
from launcher.reachability import MEETING_SECONDS, unreached_nodes

PACKAGES = ("torch", "deepspeed", "transformers", "numpy")
MAX_SKEW_SECONDS = 60.0
LATE_SECONDS = 30.0  # beyond the first node: worth a line
_GPU_QUERY = "--query-gpu=name,driver_version,memory.total,ecc.errors.uncorrected.volatile.total"
_FOLDER = ".preflight"  # in the run folder
_NAMED = 4  # nodes in one sentence


@dataclass(frozen=True)
class NodeFacts:
    """What one node found.

    gpus        one line for each GPU: name, driver, memory, uncorrected memory errors
    skew        seconds by which this node's clock is ahead of the one that stamps files in the run folder
    free_bytes  in the run folder; -1 if it cannot be written, see `problem`
    began       when it looked, by the clock that stamps files in the run folder; 0 if unknown
    unreached   node that this one cannot connect to -> why
    """

    node: str
    gpus: tuple[str, ...]
    versions: dict[str, str]
    skew: float = 0.0
    free_bytes: int = -1
    problem: str = ""
    seen: tuple[str, ...] = field(default=())
    unreached: dict[str, str] = field(default_factory=dict)
    began: float = 0.0

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))


def look(run_dir: Path, node: str, environment: Mapping[str, str]) -> NodeFacts:
    """Everything about this node. Never raises for a bad node: that is what it reports.

    `environment` is that of a step with one task on each node; all of them look at the same time.
    """
    skew, began, free, problem = 0.0, 0.0, -1, ""
    seen: tuple[str, ...] = ()
    try:
        skew, began, free, seen = _try_folder(run_dir, node)
    except OSError as error:
        problem = f"cannot use the run folder {run_dir}: {error.strerror or error}"
    try:
        unreached = unreached_nodes(read_cluster(environment), node, asked_nodes(environment) or [node], tell=_tell)
    except ClusterError as error:
        unreached = {node: str(error)}
    return NodeFacts(node, _gpus(), _versions(), skew, free, problem, seen, unreached, began)


def _tell(missing: Sequence[str], waited: float) -> None:
    """While nodes are waited for; standard output is the report's."""
    how_long = f"not here after {waited:.0f} s, up to {MEETING_SECONDS:.0f} s"
    sys.stderr.write(f"preflight: waiting for {first_of(missing, _NAMED)}: {how_long}\n")


def heed_warning(run_dir: Path) -> None:
    """The time limit's SIGUSR1 does not end the look at the nodes: it is written down for the job script."""

    def note(_number: int, _frame: object) -> None:
        with suppress(OSError):
            (run_dir / _FOLDER).mkdir(parents=True, exist_ok=True)
            (run_dir / _FOLDER / f".told{_of_this_start()}").touch()

    signal.signal(signal.SIGUSR1, note)


def _of_this_start() -> str:
    return f"@{os.environ.get('SLURM_JOB_ID', '')}.{os.environ.get('SLURM_RESTART_COUNT', '0')}"


def asked_nodes(environment: Mapping[str, str]) -> list[str]:
    """Names of the job's nodes in the order of their numbers; empty outside Slurm."""
    nodelist = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "")
    try:
        return expand_hostlist(nodelist) if nodelist else []
    except ValueError:
        return []


def compare(
    lines: Iterable[str], nodes: int, gpus_per_node: int, asked: Sequence[str] = (), space: Space | None = None
) -> tuple[list[NodeFacts], list[str]]:
    """The nodes' facts, and every problem as a sentence that names the node and says what to do.

    asked  the nodes' names, where they are known: those that said nothing are named
    space  what this run keeps in its folder; None: unknown here, the start will compute it
    """
    found, problems = _parse(lines)
    answered = {one.node for one in found}
    if not found and not problems and nodes > 1:  # hardly the fault of all of them
        problems.append(
            f"none of the {nodes} nodes answered: the look at them was ended from outside, or PYTHON does not start "
            "there. Read the lines above, in this file."
        )
    elif silent := [node for node in asked if node not in answered]:
        named = ",".join(silent)
        problems.append(f"{', '.join(silent)} said nothing. Exclude (sbatch --exclude={named}) or repair it.")
    elif len(found) < nodes:
        answers = f"{len(found)} answered ({', '.join(one.node for one in found) or 'none'})"
        problems.append(f"{nodes} nodes were asked, {answers}. Exclude the silent one (--exclude).")
    for one in found:
        problems += _own_problems(one, gpus_per_node, space)
    problems += _odd_ones_out(found)
    missed = {one.node: seconds for one, seconds in _lateness(found) if seconds >= MEETING_SECONDS}
    problems += [_too_late(node, seconds) for node, seconds in missed.items()]
    problems += _unreached(found, missed)
    return found, problems


def late(found: Sequence[NodeFacts]) -> list[str]:
    """A line about each node that came much later than the first one but was waited for: nothing is wrong yet."""
    what = "it was waited for and the start goes on. Look at it if it happens again"
    return [
        f"{one.node} came {seconds:.0f} s after the first node; {what}"
        for one, seconds in _lateness(found)
        if LATE_SECONDS <= seconds < MEETING_SECONDS
    ]


def _lateness(found: Sequence[NodeFacts]) -> list[tuple[NodeFacts, float]]:
    """Each node with the seconds that it came after the first one."""
    known = [one for one in found if one.began]
    first = min((one.began for one in known), default=0.0)
    return [(one, one.began - first) for one in known]


def _too_late(node: str, seconds: float) -> str:
    return (
        f"{node} came {seconds:.0f} s after the first node, too late to be tried with the others, which waited "
        f"{MEETING_SECONDS:.0f} s. Nothing else is known to be wrong with it. Exclude it (sbatch --exclude={node}) or "
        "have it looked at."
    )


def _try_folder(run_dir: Path, node: str) -> tuple[float, float, int, tuple[str, ...]]:
    """Write, force to disk, rename and read back; how far the clock is off, the file server's time, free bytes, files
    of other nodes seen."""
    folder = run_dir / _FOLDER
    run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.mkdir(exist_ok=True)
    # files of an earlier start must not make two folders look like one
    start = _of_this_start()
    for old in folder.iterdir():
        if start not in old.name:  # a node may be writing its own this very moment
            old.unlink(missing_ok=True)
    own = folder / f"{node}{start}"
    before = time.time()
    replace_text(own, node, sync=True)
    after = time.time()
    stamped = own.stat().st_mtime
    if own.read_bytes() != node.encode():
        raise OSError(None, "a file that was just written reads differently")
    skew = before - stamped if stamped < before else min(0.0, after - stamped)
    seen = tuple(sorted(path.name.removesuffix(start) for path in folder.iterdir()))
    return round(skew, 1), stamped, shutil.disk_usage(folder).free, seen


def _gpus() -> tuple[str, ...]:
    try:
        command = ["nvidia-smi", _GPU_QUERY, "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return tuple(line.strip() for line in done.stdout.splitlines() if line.strip()) if done.returncode == 0 else ()


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def _parse(lines: Iterable[str]) -> tuple[list[NodeFacts], list[str]]:
    found, problems = [], []
    for line in lines:
        if not line.strip():
            continue
        try:
            content = json.loads(line)
            content |= {"gpus": tuple(content["gpus"]), "seen": tuple(content["seen"])}
            found.append(NodeFacts(**content))
        except (ValueError, TypeError, KeyError):
            problems.append(f"a node said {line.strip()[:200]!r}, which is no report. Look at that node.")
    return found, problems


def _own_problems(one: NodeFacts, gpus_per_node: int, space: Space | None) -> list[str]:
    problems = []
    if len(one.gpus) < gpus_per_node:
        problems.append(f"{one.node} shows {len(one.gpus)} GPUs, the job asks for {gpus_per_node}. {_exclude(one)}")
    bad = [gpu for gpu in one.gpus if gpu.split(",")[-1].strip() not in ("0", "[N/A]", "N/A")]
    problems += [f"{one.node} has a GPU with uncorrected memory errors ({gpu}). {_exclude(one)}" for gpu in bad]
    if one.problem:
        problems.append(f"{one.node} {one.problem}. It must be shared and writable on every node (RUN_DIR).")
        return problems
    if space is not None and one.free_bytes < space.least:
        problems.append(disk.too_little(one.node, one.free_bytes, space))
    if abs(one.skew) > MAX_SKEW_SECONDS:
        problems.append(f"{one.node}'s clock is {one.skew:+.0f} s off the file server's. Repair its time service.")
    return problems


def _odd_ones_out(found: list[NodeFacts]) -> list[str]:
    problems = []
    drivers = {
        one.node: ", ".join(sorted({gpu.split(",")[1].strip() for gpu in one.gpus if "," in gpu})) for one in found
    }
    tables = {name: {one.node: one.versions.get(name, "absent") for one in found} for name in ("python", *PACKAGES)}
    for name, values in {**tables, "driver": drivers}.items():
        counts = Counter(values.values())
        if len(counts) > 1:
            usual = counts.most_common(1)[0][0]
            odd = ", ".join(f"{node} has {value or 'none'}" for node, value in values.items() if value != usual)
            problems.append(f"{name} is {usual or 'none'} on most nodes, but {odd}. Use one environment on all nodes.")
    # the last node to write has seen every file, if the folder is one folder
    names = {one.node for one in found if not one.problem}
    if names and not any(names <= set(one.seen) for one in found):
        problems.append(
            f"no node saw the files of all others ({', '.join(sorted(names))}): the run folder is not one shared "
            "folder. Choose one on the shared file system (RUN_DIR)."
        )
    return problems


def _unreached(found: list[NodeFacts], missed: Collection[str]) -> list[str]:
    """Each node that others cannot connect to, with them; and which nodes to suspect: those in most of the pairs.

    Who missed the meeting reached nobody, and nobody it, which says nothing about the network.
    """
    callers: dict[str, list[NodeFacts]] = {}
    for one in found:
        for node in one.unreached:
            if not {one.node, node} & set(missed):
                callers.setdefault(node, []).append(one)
    problems = []
    for node, failed in callers.items():
        callers_named = first_of([one.node for one in failed], _NAMED)
        problems.append(f"{callers_named} cannot connect to {node} ({failed[0].unreached[node]}).")
    pairs = {frozenset((one.node, node)) for node, failed in callers.items() for one in failed}
    suspects: list[str] = []
    while pairs:
        counts = Counter(node for pair in pairs for node in sorted(pair))
        most = max(counts.values())
        suspects += [node for node, count in counts.items() if count == most]
        pairs = {pair for pair in pairs if not pair & set(suspects)}
    if suspects:
        problems[-1] += (
            f" In most of these pairs: {', '.join(suspects)}. Exclude (sbatch --exclude={','.join(suspects)}), or let "
            "nodes reach each other on all ports from 1024 up; MASTER_ADDR chooses another network for the head node."
        )
    return problems


def _exclude(one: NodeFacts) -> str:
    return f"Exclude it (sbatch --exclude={one.node}) or have it repaired."

"""The four homes of a teacher: its features, what a rank holds, and what crosses the border of a node."""

from dataclasses import replace
from typing import Any

import tiny_models as tiny
import torch
from engine_worker_bench import Bench, PlainTeacher, rank_groups, weights
from engine_worker_trainer import make_trainer

from distill_engine.cluster.facts import ClusterFacts, read_cluster
from distill_engine.engine.distributed import Ranks
from distill_engine.engine.node_group import nodes_of
from distill_engine.engine.teacher import TeacherEngine
from distill_engine.engine.teacher_weights import TeacherError
from distill_engine.engine.traffic import Traffic
from distill_engine.student.projections import feature_tensors
from distill_engine.teachers.live import LiveTeacher
from distill_engine.values import FeatureRequest

HOMES = {"zero3": "zero3", "node": "node", "uneven": "node", "replica": "replica", "offload": "offload"}


def features(bench: Bench) -> dict:
    """What each teacher gives of this rank's own batch: Blenderbot in fp32, BART in bf16."""
    found: dict[str, Any] = {home: _story(bench, home) for home in HOMES}
    found["bart"] = {home: _features(bench, _teacher(bench, home, "bart", "bf16"), "bart") for home in HOMES}
    plain = PlainTeacher(bench.teachers / "blenderbot")
    found["plain"] = _features(bench, plain, "blenderbot")
    found["parameters"] = sum(p.numel() for p in plain.model.parameters())
    return found


def _teacher(bench: Bench, home: str, family: str = "blenderbot", precision: str = "fp32") -> TeacherEngine:
    ranks = _in_three_and_one(bench) if home == "uneven" else bench.ranks
    return bench.load_teacher(bench.teachers / family, precision, HOMES[home], ranks)


def _in_three_and_one(bench: Bench) -> Ranks:
    """These ranks as if the last one had a node of its own."""
    facts: ClusterFacts = read_cluster({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"} | _address())
    rank, last = bench.ranks.rank, bench.ranks.world_size - 1
    place = (1, 0, 1) if rank == last else (0, rank, last)
    node, local_rank, local_size = place
    ranks = Ranks(replace(facts, rank=rank, world_size=last + 1, local_rank=local_rank, local_size=local_size, nodes=2))
    ranks.node = node
    return ranks


def _address() -> dict[str, str]:
    return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


def _batch(bench: Bench, family: str):
    return tiny.batch(tiny.examples(4, family, seed=bench.ranks.rank), family)


def _features(bench: Bench, teacher: Any, family: str) -> list[torch.Tensor]:
    """Everything that losses ask for; of the logits' factors their product."""
    batch, request = _batch(bench, family), tiny.objective().teacher_request()
    head = teacher.features(batch, FeatureRequest(logits=False, head=True)).head
    return [*feature_tensors(teacher.features(batch, request)), head.hidden @ head.embedding.T]


def _story(bench: Bench, home: str) -> dict:
    stream = torch.get_rng_state()
    teacher = _teacher(bench, home)
    parameters = list(teacher._module.model.parameters())
    features = _features(bench, teacher, "blenderbot")
    for _ in range(3):  # DeepSpeed finds out in which order layers come, and ranks compare that
        teacher.features(_batch(bench, "blenderbot"), FeatureRequest())
    nodes = nodes_of(_in_three_and_one(bench) if home == "uneven" else bench.ranks)
    with Traffic(bench.ranks.rank, nodes) as moved:
        teacher.features(_batch(bench, "blenderbot"), FeatureRequest())
    return {
        "features": features,
        "nodes": nodes,
        "calls": moved.calls,
        "within": moved.within,
        "between": moved.between,
        "held": sum(getattr(p, "ds_tensor", p).numel() for p in parameters),
        "on_host": all(getattr(p, "ds_tensor", p).device.type == "cpu" for p in parameters),
        "whole_after_the_pass": sum(p.numel() for p in parameters),
        "frozen": not any(p.requires_grad for p in parameters) and not teacher._module.training,
        "engine": type(teacher._engine).__name__,
        "same_random_stream": torch.equal(stream, torch.get_rng_state()),
    }


def losses(bench: Bench) -> dict:
    """Two optimizer steps of two micro-batches each, with the teacher in each of its homes."""
    return {home: _steps(bench, _teacher(bench, home)) for home in HOMES if home != "uneven"}


def _steps(bench: Bench, teacher: TeacherEngine) -> dict:
    goal = tiny.objective()
    module = tiny.student(bench.teachers / "blenderbot", goal)
    student = bench.student(module, bench.student_ds(accumulation=2))
    taken = [bench.take_step(student, teacher, goal, group) for group in rank_groups(5, bench.ranks, 2, 2)]
    return {
        "losses": [loss for loss, _ in taken],
        "norms": [outcome.grad_norm for _, outcome in taken],
        "weights": weights(module),
    }


def unlike_files(bench: Bench) -> dict:
    """Nodes that have different files under one path."""
    if bench.ranks.rank == 0:  # on the other ranks save_pretrained writes nothing
        for node in (0, 1):
            tiny.save_teacher(bench.folder / f"files_of_node_{node}", "blenderbot", seed=node)
    bench.ranks.barrier()
    folder = bench.folder / f"files_of_node_{bench.ranks.node}"
    common = tiny.batch(tiny.examples(2, "blenderbot"), "blenderbot")
    said = {}
    for home in ("node", "replica"):
        try:
            bench.load_teacher(folder, placement=home).probe(common)
            said[home] = "nothing"
        except TeacherError as error:
            said[home] = str(error)
    return said


def window(bench: Bench) -> dict:
    """Steps of the real loop with and without a window; this rank's micro-batches have sizes of their own."""
    return {at_once: _windowed_run(bench, at_once) for at_once in (False, True)}


def _windowed_run(bench: Bench, at_once: bool) -> dict:
    ranks = bench.ranks
    trainer = make_trainer(bench, f"window_{at_once}", bench.student_ds(accumulation=2), max_steps=3)
    trainer.batches.close()
    trainer.batches = _Groups(ranks.rank)
    counted = _Counted(trainer.teacher.engine, ranks.rank, nodes_of(ranks))
    trainer.teacher = LiveTeacher(counted, window=at_once)
    steps = []
    for _ in range(3):
        trainer._step()
        steps.append(trainer.hooks.train_values(1.0)["train/total"])
    return {
        "losses": steps,
        "norms": [entry["norm"] for entry in trainer.student.diary],
        "weights": weights(trainer.student.module),
        "passes": len(counted.received),
        "received_in_the_last_step": sum(counted.received[-1 if at_once else -2 :]),
        "sizes": [tuple(batch.inputs.input_ids.shape) for batch in _Groups(ranks.rank).next_group()],
    }


class _Groups:
    """The same three steps of two micro-batches; other sizes and lengths in each, and on each rank."""

    epoch, examples = 0.0, 0

    def __init__(self, rank: int) -> None:
        chosen = tiny.examples(40, "blenderbot", seed=rank)
        sizes = iter([2 + rank, 1, 3, 2, 1, 4 + rank])
        parts = [tiny.batch([chosen.pop() for _ in range(next(sizes))], "blenderbot") for _ in range(6)]
        self._groups = [parts[:2], parts[2:4], parts[4:]]

    def next_group(self):
        return self._groups.pop(0)


class _Counted:
    """A teacher for which the bytes that come to this rank are counted, pass by pass."""

    def __init__(self, teacher: Any, rank: int, nodes: list[list[int]]) -> None:
        self._teacher, self._rank, self._nodes = teacher, rank, nodes
        self.received: list[int] = []

    def features(self, batch: Any, request: Any) -> Any:
        with Traffic(self._rank, self._nodes) as moved:
            features = self._teacher.features(batch, request)
        self.received.append(moved.within + moved.between)
        return features

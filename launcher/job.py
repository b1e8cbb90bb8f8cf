"""What a plan is made for: a recipe, the sizes of both models, the DeepSpeed configurations and a number of GPUs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from distill_engine.families.lookup import family_named
from distill_engine.families.shape import Shape
from distill_engine.recipe.batch_rules import longest_example
from distill_engine.recipe.cache_rules import holds_head
from distill_engine.recipe.placement import placement_of
from distill_engine.recipe.schema import Recipe
from distill_engine.values import FeatureRequest, Stack

FULL = 4  # bytes of a 32-bit number

# Of distill_engine.losses, which a login node without torch cannot import; a test keeps them equal.
SMALL_LOGITS_BYTES = 64 * 2**20
LARGEST_HEAD = 256

Implementation = Literal["reference", "chunked", "triton"]


@dataclass(frozen=True)
class Job:
    """What is run and on how many ranks.

    student_ds, teacher_ds  the two DeepSpeed JSONs, as read
    others                  teachers beside the first
    triton                  whether the GPU can run the Triton kernels of the losses
    """

    recipe: Recipe
    student: Shape
    teacher: Shape | None
    student_ds: Mapping[str, Any]
    teacher_ds: Mapping[str, Any]
    ranks: int
    ranks_per_node: int
    micro_batch: int
    accumulation: int
    triton: bool = True
    others: tuple[Shape, ...] = ()

    @property
    def word(self) -> int:
        """Bytes of a number in both models."""
        return 2 if any(self.student_ds.get(name, {}).get("enabled") for name in ("fp16", "bf16")) else FULL

    @property
    def fp16(self) -> bool:
        """Whether that is float16, whose range some layers guard with a clamp."""
        return bool(self.student_ds.get("fp16", {}).get("enabled"))

    @property
    def nodes(self) -> int:
        """How many nodes the ranks are spread over."""
        return -(-self.ranks // self.ranks_per_node)

    @property
    def offloaded(self) -> bool:
        """Whether the optimizer lives in the host's memory."""
        return zero(self.student_ds).get("offload_optimizer", {}).get("device") in ("cpu", "nvme")

    @property
    def cached(self) -> bool:
        """Whether the teacher's outputs come from files."""
        return self.recipe.teacher.source == "cache"

    @property
    def loaded(self) -> Shape | None:
        """The teacher that is in memory and computes."""
        return None if self.cached else self.teacher

    @property
    def compared(self) -> Shape | None:
        """The teacher whose hidden states and attention are compared."""
        number = self.recipe.features_of
        return self.others[number - 1] if number else self.teacher

    @property
    def all_loaded(self) -> tuple[Shape, ...]:
        """All teachers that are in memory, the first one first."""
        return () if self.loaded is None else (self.loaded, *self.others)

    @property
    def placement(self) -> str:
        """Where the teacher's weights live. A DeepSpeed JSON that offloads them is the same as asking for it."""
        asked, _ = placement_of(self.recipe, self.ranks, self.teacher_ds)
        device = zero(self.teacher_ds).get("offload_param", {}).get("device")
        return "offload" if asked == "zero3" and device in ("cpu", "nvme") else asked

    @property
    def sharers(self) -> int:
        """Ranks that share one copy of the teacher."""
        return {"node": min(self.ranks, self.ranks_per_node), "replica": 1}.get(self.placement, self.ranks)

    @property
    def teacher_passes(self) -> int:
        """Teacher passes of an optimizer step."""
        return 1 if self.recipe.teacher.window else self.accumulation

    @property
    def held_batches(self) -> int:
        """Micro-batches whose teacher features are held at a time."""
        teacher = self.recipe.teacher
        return self.accumulation if teacher.window else 2 if teacher.overlap and self.placement == "replica" else 1

    @property
    def weights(self) -> int:
        """Parameters of student and projections."""
        return self.student.parameters + projection_parameters(self.recipe, self.student, self.compared)

    @property
    def trained(self) -> int:
        """Those that have a gradient."""
        student, frozen = self.student, Counter[Stack]()
        for stack in Stack:
            if student.computes(stack) or not self.recipe.student.train_position_tables:
                frozen[stack] = student.position_table(stack)
        if self.recipe.student.encoder_is_frozen:
            frozen[Stack.ENCODER] = student.encoder
        return self.weights - frozen.total()

    @property
    def asked(self) -> FeatureRequest:
        """What the loss terms look at in the student."""
        return self.recipe.losses.weights.request(layers_of(self.student))

    def positions(self, stack: Stack) -> int:
        """Positions of a stack in a micro-batch."""
        return self.contexts if stack is Stack.ENCODER else self.labels

    @property
    def context_length(self) -> int:
        """Positions of a context: tokens, or what a window of sound becomes."""
        window = self.student.window
        return self.recipe.data.context_tokens if window is None else window.positions

    @property
    def example_length(self) -> int:
        """Positions that the longest example takes up of batch.max_tokens, as the run counts them."""
        return longest_example(self.recipe, self.context_length, family_named(self.student.family).decoder_skips)

    @property
    def contexts(self) -> int:
        """Context positions of a micro-batch."""
        return self.micro_batch * self.context_length

    @property
    def shared(self) -> int:
        """Parameters that student and teacher have together."""
        return self.student.encoder if self.recipe.student.share_encoder and self.loaded is not None else 0

    @property
    def labels(self) -> int:
        """Label positions of a micro-batch."""
        return self.micro_batch * self.recipe.data.label_tokens


def zero(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The ZeRO block of a DeepSpeed JSON; empty where there is none."""
    block = config.get("zero_optimization", {})
    return block if isinstance(block, Mapping) else {}


def kernel(job: Job, group: str) -> Implementation:
    """Who computes a group of loss terms (attention, hidden, prediction): the rule of losses.kernels.dispatch."""
    choice = getattr(job.recipe.losses.kernels, group)
    lacks = choice == "auto" and job.cached and not holds_head(job.recipe)
    if group == "prediction" and (lacks or job.others):
        choice = "reference"
    small = group == "prediction" and FULL * _logit_rows(job) * job.student.vocab < SMALL_LOGITS_BYTES
    if choice == "reference" or (choice == "auto" and small):
        return "reference"
    heads = [shape.largest_head for shape in (job.student, job.compared) if shape is not None]
    fits = group != "attention" or max(heads) <= LARGEST_HEAD
    return "triton" if job.triton and fits else "chunked"


def _logit_rows(job: Job) -> int:
    return job.recipe.batch.max_tokens or job.labels


def layers_of(shape: Shape) -> dict[Stack, tuple[int, ...]]:
    """Numbers of all layers of each stack."""
    return {Stack.ENCODER: tuple(range(shape.encoder_layers)), Stack.DECODER: tuple(range(shape.decoder_layers))}


def has_projections(recipe: Recipe, student: Shape, teacher: Shape | None) -> bool:
    """Whether linear maps stand between the student's features and the teacher's."""
    return teacher is not None and (student.width != teacher.width or recipe.student.projections == "always")


def projection_parameters(recipe: Recipe, student: Shape, teacher: Shape | None) -> int:
    """Linear maps beside the student, one for each feature that is compared at the teacher's width."""
    if teacher is None or not has_projections(recipe, student, teacher):
        return 0
    asked = recipe.losses.weights.request(layers_of(student))
    maps = int(asked.encoder_output) + len(asked.embeddings) + sum(len(layers) for layers in asked.hidden.values())
    return maps * (student.width * teacher.width + teacher.width)

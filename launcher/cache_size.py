"""What `distill cache` takes on the disk, from the sizes of a recipe's models; a test keeps it equal to the files."""

from __future__ import annotations

from dataclasses import dataclass

from distill_engine.checkpoint.files import readable_bytes
from distill_engine.values import Stack
from launcher.job import Job
from launcher.loss_memory import different_layers, key_stack

_KEY_BYTES = 32  # of each example: key and lengths
_ID_BYTES = 4


@dataclass(frozen=True)
class CacheSize:
    """Bytes.

    token  of each position of a stack
    once   of what is the same for all examples
    """

    token: dict[Stack, int]
    once: int

    def of(self, examples: int, contexts: int, labels: int) -> int:
        """So many examples of so many context and label tokens."""
        one = contexts * self.token[Stack.ENCODER] + labels * self.token[Stack.DECODER] + _KEY_BYTES
        return examples * one + self.once


def cache_size(job: Job, k: int | None) -> CacheSize | None:
    """Of a cache with k tokens of each position (None: all logits) in the run's precision; None without a teacher."""
    teacher, word = job.compared, job.word
    if teacher is None:
        return None
    width = {Stack.ENCODER: 0, Stack.DECODER: 0}
    asked = job.recipe.losses.weights.request(different_layers(job), of_teacher=True)
    width[Stack.ENCODER] += teacher.width * asked.encoder_output
    for stack in asked.embeddings:
        width[stack] += teacher.width
    for stack, layers in asked.hidden.items():
        width[stack] += teacher.width * len(layers)
    for kind, layers in asked.attention.items():
        for stack in (kind.query_stack, key_stack(kind)):
            width[stack] += teacher.attention_width * len(layers)
    once = 0
    if k is None or k >= teacher.vocab - 1:
        head = teacher.width < teacher.vocab and not job.others
        width[Stack.DECODER] += teacher.width if head else teacher.vocab
        once = teacher.vocab * (teacher.width + 1) * word if head else 0
        top = 0
    else:
        top = k * (_ID_BYTES + word) + word
    token = {stack: numbers * word for stack, numbers in width.items()}
    token[Stack.DECODER] += top
    return CacheSize(token, once)


def in_words(size: CacheSize, job: Job, k: int | None, examples: int | None) -> str:
    """A line about it: of the longest example, and of all if their number is known."""
    data = job.recipe.data
    kept = "all logits" if k is None else f"{k} tokens of each position"
    one = size.of(1, job.context_length, data.label_tokens) - size.once
    line = f"teacher cache with {kept}: {readable_bytes(one)} for an example of {job.context_length} context and "
    line += f"{data.label_tokens} label tokens" + (f", and {readable_bytes(size.once)} once" if size.once else "")
    if examples is None:
        return line + " (--examples N: of all)"
    return line + f"; up to {readable_bytes(size.of(examples, job.context_length, data.label_tokens))} for {examples:,}"

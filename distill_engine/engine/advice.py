"""What to do about gradients that are never finite."""

from __future__ import annotations

from collections.abc import Sequence

from distill_engine.cluster.ranks import first_of

NAMED = 4  # weights in one line


def advice(dtype: str, bad_weights: Sequence[str]) -> str:
    """What to do about gradients that are never finite, by the student's floating type and its weights that are not
    finite: a step that is skipped changes none, so these were so from the start or in the checkpoint."""
    if bad_weights:
        return (
            f"The student's own weights are not finite: {first_of(bad_weights, NAMED)}. Skipped steps do not "
            "change weights: they came from the teacher (student.init) or out of the checkpoint. No precision or "
            "learning rate repairs them: use a teacher without them, or remove the checkpoint that has them."
        )
    rest = "Lower optimizer.learning_rate, or look for bad data or a teacher whose outputs are not finite."
    if dtype == "float16":
        return (
            "The run has diverged or does not fit fp16: use a bf16 config (ds_configs/zero2_bf16.json) in a new run "
            f"folder. {rest}"
        )
    return f"In {dtype} large numbers do not overflow before the run has diverged, so no other precision helps. {rest}"

"""What the validation's numbers say against a teacher: that it knows nothing, or less than its student."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from distill_engine.metrics.scores import Scores

# the last: squares of how much less an example's summed loss is for the student
COLUMNS = ("tokens", "examples", "loss", "teacher_loss", "gain_squares")

# A trained model's perplexity is far below half its vocabulary; all-zero, random or foreign weights are at or above it.
_UNIFORM_SHARE = 0.5
# The student's advantage has to be beyond chance over the examples, and worth a word: 2 % of perplexity.
_STANDARD_ERRORS = 3.0
_LEAST_NATS = 0.02


def chance(vocabulary: int) -> float:
    """The mean loss of a token, in nats, above which a model of so many tokens knows nothing."""
    return math.log(_UNIFORM_SHARE * vocabulary)


@torch.no_grad()
def doubt_sums(scores: Scores) -> Tensor:
    """[len(COLUMNS)] float64 sums of one micro-batch."""
    gain = scores.teacher_loss - scores.loss
    return torch.stack([scores.tokens, scores.examples, scores.loss, scores.teacher_loss, gain.square()]).sum(dim=1)


def teacher_doubt(sums: Tensor, vocabulary: int) -> str | None:
    """A warning with what it probably means, or None.

    sums        [len(COLUMNS)], over all datasets and ranks
    vocabulary  tokens that the teacher chooses from
    """
    of = dict(zip(COLUMNS, sums.tolist(), strict=True))
    tokens, examples = of["tokens"], of["examples"]
    if not tokens:
        return None
    loss = of["teacher_loss"] / tokens
    if not math.isfinite(loss):
        return (
            f"WARNING: the teacher's predictions of validation labels are not finite (mean loss {loss}). In fp16 its "
            "activations may overflow on some texts: use a bf16 DeepSpeed config (ds_configs/zero2_bf16.json)."
        )
    if loss > chance(vocabulary):
        return (
            f"WARNING: the teacher predicts validation labels no better than chance: perplexity {_ppl(loss)} with a "
            f"vocabulary of {vocabulary} tokens. Probably its weights are not those that it was trained to (look into "
            "teacher.path), or the data's tokenizer or language is another one. Its outputs are noise."
        )
    gain = of["teacher_loss"] - of["loss"]
    spread = examples * of["gain_squares"] - gain**2  # examples^2 times the variance of an example's gain
    error = math.sqrt(max(spread, 0.0) / max(examples - 1, 1.0))
    if gain / tokens > _LEAST_NATS and examples > 1 and gain > _STANDARD_ERRORS * error:
        return (
            f"WARNING: the student predicts validation labels better than its teacher: perplexity "
            f"{_ppl(of['loss'] / tokens)} against {_ppl(loss)}. Probably labels do not belong to their contexts "
            "(shuffled targets), or the teacher was never trained on such data, or with another layout (delimiter, "
            "special tokens). Then its outputs hold the student back: correct the data, or fine-tune the teacher first."
        )
    return None


def _ppl(loss: float) -> str:
    return f"{math.exp(loss):.4g}" if loss < 700 else "inf"

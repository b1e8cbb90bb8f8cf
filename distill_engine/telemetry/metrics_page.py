"""`docs/metrics.md`, printed from the registry of metrics."""

from __future__ import annotations

import sys

from distill_engine.registry import markdown
from distill_engine.telemetry.metrics import Metric, sections, terms

_HEADER = """# Metrics

Generated from `distill_engine/telemetry/metrics.py`; do not edit, run

    python -m distill_engine.telemetry.metrics_page > docs/metrics.md

The same names appear in W&B and in `metrics.jsonl`. `train/...` averages over the steps since the last
record, `valid/...` covers every validation example exactly once. A recipe's `validation.metric` is a
validation name without `valid/`: `ppl`, `ppl_micro`, `token_accuracy`, `my_dataset/ppl`.

`valid/teacher_...` come from the teacher passes that validation makes anyway where a term needs the teacher. They do
not change from one validation to the next (rounding aside) and say what to expect of the student. A warning is
recorded where the teacher is no better than chance (perplexity above half its vocabulary), or where the student is
better than its teacher beyond chance (three standard errors over the examples, and 2 % of perplexity).

With `validation.generate_examples` the first N examples of each dataset are answered at each validation, shared by the
ranks, and every metric of texts becomes a value that `validation.metric` may name (`f1`, `my_dataset/f1`).

`valid/sample/...` are of a few fixed prompts (`validation.samples`) that the student answers with its own
generation settings: an alarm, too few to decide by. The texts are in `samples` records, in `distill watch`, in
`distill report` and in the W&B table `valid/samples`, beside the teacher's replies. The teacher answers once, before
the first step of a run folder (`teacher_samples.json`), with its own settings: about as many teacher passes as its
longest replies have tokens, for each dataset.

`train/gradient_...` are measured at one step in `logging.gradient_norm_every_steps`, from the step's first
micro-batch on all ranks, before clipping, without the loss scale. With N micro-batches a norm is about 1/N of the
whole step's; shares do not depend on it. Weights are the student's own, projections left out. With
`losses.balance: gradient_norm` or `gradient_alignment` they are measured whenever factors are updated, too;
docs/balancing.md has more.
"""


_CHOICE = """`distill list metrics` prints what `validation.metric` may name; `ppl_micro`, `total` and terms come beside
them. Another is a class in one file, in this repository or outside (`--plugin`, or an entry point of the group
`distill_engine.metrics`): distill_engine/metrics/protocol.py says what it must have."""


def _table(metrics: list[Metric]) -> list[str]:
    rows = [f"| `{m.name}` | {m.unit or '-'} | {m.better} | {m.meaning} |" for m in metrics]
    return ["| name | unit | better | meaning |", "|---|---|---|---|", *rows]


def render_markdown() -> str:
    """The text of `docs/metrics.md`."""
    lines = [_HEADER, "## What can be chosen", "", _CHOICE, "", markdown("metrics"), ""]
    for section, metrics in sections().items():
        lines += [f"## {section}", "", *_table(metrics), ""]
    listed = [f"| `{name}` | {meaning} |" for name, meaning in terms().items()]
    lines += ["## Values of `{term}`", "", "| term | what it measures |", "|---|---|", *listed, ""]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(render_markdown())

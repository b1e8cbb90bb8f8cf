"""After a job's ranks have ended: start the job again, or stop, and say why. Pure decisions (facts: attempts.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from distill_engine.cluster.exit_codes import BAD_INPUT, DONE, FAILED, HUNG, NOT_BEGUN, RETRY, STOPPED_AND_SAVED, USAGE
from launcher.worth import too_little

MAX_CRASHES = 3  # starts that ended badly at one step, whatever came between them
MAX_STARTS = 4  # starts that ended at one step, however they ended

# Reasons beside those that ranks leave with their verdict.
PREFLIGHT = "preflight"
NO_VERDICT = "no verdict"  # no rank got that far
LOST = "lost"  # nobody wrote its end down
ENDED_FROM_OUTSIDE = "ended from outside"  # scancel, preemption, requeue, the time limit

_SIGNAL_BASE = 128
_WORDS = {
    HUNG: "hung: a rank stood still, RUN_DIR/hang says where",
    PREFLIGHT: "the preflight failed",
    LOST: "its end is on no record: a node died, or the job script was killed",
}


@dataclass(frozen=True)
class Attempt:
    """How one start of a run ended.

    job     Slurm's job id; a requeued job keeps it
    code    exit code of the ranks, None where they left none
    step    step of the newest complete checkpoint afterwards, -1 if there is none
    reason  a word beside the code: what the verdict says, or one of those above
    seconds that it lasted, pace: seconds of one of its steps; 0 where unknown
    """

    job: str
    code: int | None
    step: int
    reason: str = ""
    seconds: float = field(default=0.0, compare=False)
    pace: float = field(default=0.0, compare=False)

    @property
    def stopped(self) -> bool:
        """Whether it did as it was told."""
        return self.code == STOPPED_AND_SAVED and self.reason != HUNG


@dataclass(frozen=True)
class Decision:
    """What happens next, and the code that the batch script ends with."""

    action: Literal["done", "requeue", "stop"]
    code: int
    reason: str


def decide(attempts: Sequence[Attempt], log: str = "RUN_DIR/logs/*.log") -> Decision:
    """Look at the last attempt, and at the ones before it for progress. `attempts` is not empty, oldest first.

    log  where the ranks' last words are
    """
    last = attempts[-1]
    code = FAILED if last.code is None else last.code
    if last.code == DONE:
        return Decision("done", DONE, "the run has finished")
    # without the program's own word Python may not have found its file, which may pass
    if last.code == BAD_INPUT or (last.code == USAGE and last.reason != NO_VERDICT):
        what = "the command line" if last.code == USAGE else "recipe, configuration or data"
        reason = f"{what} cannot be used: starting again cannot help. {log} ends with what is wrong"
        return Decision("stop", code, reason)
    standing = _without_progress(attempts)
    crashes = [one for one in standing if not one.stopped]
    if len(crashes) >= MAX_CRASHES or len(standing) >= MAX_STARTS:
        return Decision("stop", code, _why_no_more(standing, log))
    if reason := too_little([one for one in attempts if one.reason != ENDED_FROM_OUTSIDE]):
        return Decision("stop", code, reason)
    if last.stopped:
        if last.reason in (NO_VERDICT, NOT_BEGUN):
            return Decision("requeue", code, f"told to stop; nothing was saved beyond step {max(0, last.step)}")
        return Decision("requeue", code, f"stopped and saved at step {max(0, last.step)}")
    count = f"try {len(crashes) + 1} of {MAX_CRASHES} without progress"
    return Decision("requeue", code, f"it ended with {describe(last)}; now {count}")


def describe(attempt: Attempt) -> str:
    """How an attempt ended, in words: `exit code 1`, `signal 9`, `exit code 75 (hung: ...)`."""
    if attempt.stopped:
        return "told to stop" if attempt.reason in (NO_VERDICT, NOT_BEGUN) else "stopped and saved"
    words = _WORDS.get(attempt.reason, attempt.reason if attempt.reason != NO_VERDICT else "")
    if attempt.code is None:
        return words or "no exit code"
    if attempt.code == RETRY and not words:
        words = "reading or writing failed in a way that may pass"
    signal = attempt.code > _SIGNAL_BASE
    named = f"signal {attempt.code - _SIGNAL_BASE}" if signal else f"exit code {attempt.code}"
    return f"{named} ({words})" if words else named


def _without_progress(attempts: Sequence[Attempt]) -> list[Attempt]:
    """The last ones that ended at one step. Those that Slurm ended from outside show nothing and count for nothing."""
    standing: list[Attempt] = []
    for attempt in reversed(attempts):
        if attempt.step != attempts[-1].step:
            break
        if attempt.reason != ENDED_FROM_OUTSIDE:
            standing.insert(0, attempt)
    return standing


def _why_no_more(standing: Sequence[Attempt], log: str) -> str:
    """One reason for all of `standing`, or each of them where they differ."""
    if all(one.stopped for one in standing):
        return (
            f"it was stopped {len(standing)} times in a row without a step between: the time limit is shorter than one "
            "start. Ask for more time (sbatch --time), or a later signal (sbatch --signal)"
        )
    where = f"step {standing[-1].step}" if standing[-1].step >= 0 else "its start"
    ends = list(dict.fromkeys(describe(one) for one in standing))
    times = f"it ended {len(standing)} times in a row ({', '.join(ends)}) without getting beyond {where}"
    if standing[-1].reason == PREFLIGHT:
        return f"{times}. The preflight's lines above say what is wrong with which node"
    return f"{times}. {log} ends with what happened"

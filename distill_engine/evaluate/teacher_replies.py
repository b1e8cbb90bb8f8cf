"""What the teacher says to the sample prompts, which every validation shows beside the student's replies.

The teacher is frozen: its replies are made once, before the first step, and kept in the run folder; a restart reads
them. It is sharded: each token is a forward pass in which all ranks take part. So all ranks answer the same prompts
with the same draws, and `synced_gpus` keeps a rank in the loop whose own replies ended a token earlier than
another's. That costs as many teacher passes as the longest replies have tokens, for each dataset; memory as one
dataset's prompts need, times the beams.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from distill_engine.cluster.files import digest_of, replace_text
from distill_engine.cluster.ranks import Ranks
from distill_engine.evaluate.generate import GenerationError, own_settings
from distill_engine.evaluate.samples import Prompt, SampleReplies, SampleSinks, answers, recipe_prompts
from distill_engine.setup.prepare import Prepared, fingerprints
from distill_engine.teachers.protocol import Engine

FILE = "teacher_samples.json"


class TeacherRepliesError(RuntimeError):
    """The teacher broke down while it answered, perhaps on this rank alone."""


def sample_guard(
    ready: Prepared, student: PreTrainedModel, teacher: Engine | None, folder: Path, ranks: Ranks, sinks: SampleSinks
) -> SampleReplies | None:
    """The degeneration guard that the recipe asks for; None without prompts, and on ranks other than 0.

    Collective; arguments and errors as `teacher_replies`.
    """
    prompts = recipe_prompts(ready)
    replies = None
    if teacher is not None and prompts:
        replies = teacher_replies(ready, teacher.model, prompts, folder, ranks, sinks.message)
    return SampleReplies(ready, prompts, student, sinks, replies) if prompts and ranks.rank == 0 else None


def teacher_replies(
    ready: Prepared,
    model: PreTrainedModel,
    prompts: Sequence[Sequence[Prompt]],
    folder: Path,
    ranks: Ranks,
    say: Callable[[str], None],
) -> list[str] | None:
    """The teacher's reply to each prompt, in order; None if its generation settings are refused. Collective.

    model   the teacher, in eval mode, perhaps sharded
    folder  of the run; FILE in it is used if it answers the same question, else (over)written

    Raises TeacherRepliesError for any other failure: ranks could not be brought together again after it.
    """
    settings = own_settings(model, ready.recipe.data.label_tokens, ready.told)
    question = _question(ready, model, prompts, settings)
    held: list[str] | None = ranks.broadcast(_read(folder / FILE, question) if ranks.rank == 0 else None)
    if held is not None:
        return held
    count = sum(map(len, prompts))
    say(f"the teacher answers {count} sample prompts, once for this run folder (validation.samples: 0 leaves it out)")
    started = time.perf_counter()
    try:
        together = {"synced_gpus": ranks.world_size > 1}
        said = [one.text for one in answers(ready, model, prompts, settings | together)]
    except GenerationError as error:  # refused before the first pass, on all ranks alike
        say(f"the teacher's replies are left out: {error}")
        return None
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise TeacherRepliesError(
            f"the teacher could not answer the sample prompts: {reason}. Set validation.samples to 0 to train without "
            "sample replies, or to a smaller number if memory ran out."
        ) from error
    if ranks.rank == 0:
        say(f"the teacher's replies took {time.perf_counter() - started:.1f} s and are in {folder / FILE}")
        _write(folder / FILE, question, prompts, said, say)
    return said


def _question(
    ready: Prepared, model: PreTrainedModel, prompts: Sequence[Sequence[Prompt]], settings: Mapping[str, Any]
) -> str:
    """16 hexadecimal digits that change with teacher, precision, prompts or settings."""
    config = model.generation_config
    facts = {
        "teacher": fingerprints(ready).get("teacher"),
        "dtype": str(model.dtype),
        "settings": dict(settings),
        "generation_config": None if config is None else config.to_diff_dict(),
        "prompts": [[prompt.example.context_ids.tolist() for prompt in batch] for batch in prompts],
    }
    if ready.layout.window is not None:
        facts["sounds"] = [[(prompt.context, prompt.example.prompt) for prompt in batch] for batch in prompts]
    return digest_of(facts)[:16]


def _read(file: Path, question: str) -> list[str] | None:
    """The replies that the file holds to this question; None for a missing, damaged or other file."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return [str(row["teacher"]) for row in content["rows"]] if content["question"] == question else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(
    file: Path,
    question: str,
    prompts: Sequence[Sequence[Prompt]],
    said: Sequence[str],
    say: Callable[[str], None],
) -> None:
    """In one step; a file that cannot be written costs the next start some time, and nothing else."""
    flat = [prompt for batch in prompts for prompt in batch]
    rows = [
        {"dataset": prompt.dataset, "context": prompt.context, "reference": prompt.reference, "teacher": text}
        for prompt, text in zip(flat, said, strict=True)
    ]
    try:
        replace_text(file, json.dumps({"question": question, "rows": rows}, indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        say(f"{file} could not be written ({error}); the next start asks the teacher again")

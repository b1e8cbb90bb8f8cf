"""A model's answer to every training example, each generated once by one of the ranks and kept as soon as it is there.

Batches are cut out of all examples by length before they are dealt out, and what a batch draws follows from the seed
and its number: the answers depend neither on the number of ranks nor on where a killed start goes on. The answers are
partial results as those of an evaluation (evaluate/partial_results.py): lines that are complete or absent.

Where every rank holds the whole model, no rank waits for another within a batch. Where it is in shards, each token is a
pass that all ranks make together: they take as many turns, the last ones with a batch that does not count, and
`synced_gpus` keeps a rank in a turn whose answers have ended before another's. So unequal lengths cannot block them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

from distill_engine.cluster.ranks import Ranks
from distill_engine.data.kinds.named import kind_of
from distill_engine.data.order.shuffle import key_of
from distill_engine.evaluate.generate import Reply, own_settings, replies, same_draws
from distill_engine.evaluate.partial_results import BatchResult, PartialResults, question_key
from distill_engine.evaluate.run import Work, all_batches, check_fits, identity_of
from distill_engine.evaluate.set import EvaluationSet
from distill_engine.setup.prepare import Prepared

_FORMAT = 1  # of the partial results; another number makes older files unused


class PseudoLabelError(ValueError):
    """Nothing can be generated like this; the text says what to do."""


@dataclass(frozen=True)
class Job:
    """Who answers what, and how.

    name        of the model, for people
    new_tokens  limit of an answer for a model that names none
    changed     settings that win over the model's own
    seed        of settings that sample: another seed, other answers
    """

    name: str
    model: PreTrainedModel
    examples: EvaluationSet
    tokenizer: Any
    new_tokens: int
    changed: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    @property
    def settings(self) -> dict[str, Any]:
        """What is told to the model's `generate`."""
        return own_settings(self.model, self.new_tokens, self.changed)


def check_language(ready: Prepared, changed: Mapping[str, Any]) -> None:
    """Of a model that is not the recipe's teacher. Raises PseudoLabelError where datasets name other languages than its
    settings can be known to write."""
    sources = ready.recipe.data.datasets
    named = {source.title: kind_of(source).languages(source)[1] for source in sources}
    wanted = set(named.values())
    told = {"forced_bos_token_id", "decoder_start_token_id", "language"} & set(changed)
    if (len(wanted) > 1 and not ready.family.prompts) or (wanted != {None} and not told):
        raise PseudoLabelError(
            f"target languages are {named}, but a model's generation settings begin all texts with one token. Give "
            "datasets of one language, and its token (--generation forced_bos_token_id=ID; language=CODE of sound)."
        )


def generate(job: Job, work: Work, together: Ranks | None = None) -> list[list[Reply]] | None:
    """This rank's batches, but those that an earlier start has finished. `together`: the model is in shards over these
    ranks, and the call is collective.

    Rank 0 waits for the others and returns everybody's answers: for each dataset those to its examples, in their order.

    Raises PseudoLabelError, GenerationError or ModelError for what cannot be generated, OSError for a disk that takes
    no more, OthersFailedError where others have died or given up; the other ranks are told, and what is finished stays.
    """
    check_fits(job.name, job.model, job.examples)
    store = _store(job, work)
    with work.shared(store) as others:
        _generate(job, work, store, together)
        if work.rank != 0:
            return None
        # (those of a model in shards end together, and leave nothing to wait for)
        return _in_order(job.examples, all_batches(store, len(job.examples), work, job.name, others))


def _generate(job: Job, work: Work, store: PartialResults, together: Ranks | None) -> None:
    done, total, settings = set(store.read()), len(job.examples), job.settings
    if together is not None:
        done, settings = together.broadcast(done), settings | {"synced_gpus": together.world_size > 1}
    for number, counts in _turns(done, total, work, equally_many=together is not None):
        work.tell(job.name, len(done), total)
        batch = job.examples.batch(number).to(job.model.device)
        try:
            with same_draws(job.model.device, _draws(job.seed, number)):  # whoever computes the batch, and when
                said = replies(job.model, job.tokenizer, batch.inputs, settings, job.examples.prompts(batch))
        except torch.OutOfMemoryError as error:
            raise PseudoLabelError(
                f"memory ran out at batch {number + 1} of {total} ({batch.inputs.length} tokens a context; the longest "
                "come first). Lower --batch-size or num_beams (--generation num_beams=1), or give --dtype bf16."
            ) from error
        if counts:
            store.add(BatchResult(number, [], said))
            done.add(number)


def _turns(done: set[int], total: int, work: Work, *, equally_many: bool) -> list[tuple[int, bool]]:
    """This rank's batches, and whether they count."""
    if not equally_many:
        return [(number, True) for number in range(work.rank, total, work.world_size) if number not in done]
    left = [number for number in range(total) if number not in done]
    rounds = [left[first : first + work.world_size] for first in range(0, len(left), work.world_size)]
    return [(one[work.rank], True) if work.rank < len(one) else (one[0], False) for one in rounds]


def _draws(seed: int, batch: int) -> int:
    """A seed for torch: 32 bits that both change, because its CPU generator reads no higher ones."""
    return int(key_of(seed, "pseudo-labels", batch)) & 0xFFFF_FFFF


def _in_order(examples: EvaluationSet, found: Sequence[BatchResult]) -> list[list[Reply]]:
    answers: list[dict[int, Reply]] = [{} for _ in examples.datasets]
    for number, result in enumerate(found):
        for (dataset, index), reply in zip(examples.ids(number), result.replies or [], strict=True):
            answers[dataset][index] = reply
    return [[of_dataset[index] for index in range(len(of_dataset))] for of_dataset in answers]


def _store(job: Job, work: Work) -> PartialResults:
    """Where this question's answers are kept: model, precision, data, batches, settings and seed."""
    facts = {
        "format": _FORMAT,
        "model": identity_of(job.model),
        "dtype": str(job.model.dtype),
        "data": job.examples.fingerprint(),
        "settings": job.settings,
        "seed": job.seed,
    }
    return PartialResults(work.folder / question_key(facts), work.rank)

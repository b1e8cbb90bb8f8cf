"""Everything that `distill evaluate` measures: teacher-forced quality and generated replies of several models.

Values have ParlAI's names where ParlAI has the metric (`ppl`, `token_acc`, `token_em`, `teacher_acc`, `f1`, ...).
Without a dataset in front a value is the unweighted mean over datasets, as in ParlAI; `ppl_micro`, and metrics of many
replies together (`bleu`), pool all datasets.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from distill_engine.cluster.other_ranks import OtherRanks
from distill_engine.data.tokens.tokenised import ids_without_row
from distill_engine.evaluate.generate import Reply, own_settings, replies, same_draws
from distill_engine.evaluate.measure import ModelError, adapters_of, labels_alone, measured, prediction_kernel
from distill_engine.evaluate.partial_results import BatchResult, PartialResults, model_identity, question_key
from distill_engine.evaluate.set import EvaluationSet
from distill_engine.families.lookup import shape_of
from distill_engine.metrics.named import by_shown_name
from distill_engine.metrics.replies import Answered, reply_values, values_by_length
from distill_engine.metrics.tally import Tally

_FORMAT = 3  # of the partial results; another number makes older files unused
_LEAST_POLL_SECONDS = 0.2
_SAMPLES = 12  # with their replies, at most
_POLL_SHARE = 0.1  # of the time that is spent reading what others have made


@dataclass(frozen=True)
class ReplySettings:
    """How replies are generated: the model's own configuration with `changed` on top.

    new_tokens  limit of a reply for a model that names none
    """

    new_tokens: int
    changed: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Work:
    """Which part of the work is this process's, and where results are kept.

    folder   of partial results; shared by all processes
    resume   False: begin afresh
    advance  called with (model name, batches done of all, batches) after each batch
    others   the ranks of this start, where they have been entered already
    """

    folder: Path
    rank: int = 0
    world_size: int = 1
    resume: bool = True
    advance: Callable[[str, int, int], None] | None = None
    others: OtherRanks | None = None

    def shared(self, results: PartialResults) -> AbstractContextManager[OtherRanks]:
        """Who else computes them, to be entered around this process's part."""
        return nullcontext(self.others) if self.others else OtherRanks(results.folder, self.rank, self.world_size)

    def owing(self, batches: int, found: Collection[int]) -> set[int]:
        """The ranks whose batches are not among those found."""
        return {number % self.world_size for number in range(batches) if number not in found}

    def tell(self, name: str, done: int, batches: int) -> None:
        """Progress of one model."""
        if self.advance is not None:
            self.advance(name, done, batches)


@dataclass(frozen=True)
class Sample:
    """One example with what each model replied to it."""

    dataset: str
    context: str
    reference: str
    replies: Mapping[str, str]


@dataclass(frozen=True)
class Evaluation:
    """Named values per model, and samples if replies were generated."""

    values: dict[str, dict[str, float]]
    samples: list[Sample]


def run_evaluation(
    models: Mapping[str, PreTrainedModel],
    teacher: PreTrainedModel | None,
    examples: EvaluationSet,
    labels: Sequence[str],
    tokenizer: Any,
    work: Work,
    spoken: ReplySettings | None,
) -> Evaluation:
    """Measure every model on every example once; finished batches of an earlier start are not computed again.

    models   by name, all on one device; `teacher` may be one of them
    labels   the datasets' names
    spoken   None: nothing is generated

    Every process of a launcher calls it with its rank; each computes its batches, waits for the others' files and
    returns the whole. Raises ModelError for a model that does not fit the data or the teacher, GenerationError, and
    OthersFailedError where others have died or given up.
    """
    if work.world_size > 1 and not work.resume:
        raise ModelError(
            f"beginning afresh (--fresh) with {work.world_size} processes: one could take what another has yet to "
            "forget for a result. Start one process, or give a new folder (--partial)."
        )
    for name, model in [*models.items(), *([("teacher", teacher)] if teacher is not None else [])]:
        check_fits(name, model, examples)
    tally = Tally() if teacher is None else Tally("agreement", "divergence")
    stores = _stores(models, teacher, examples, tally, work, spoken)
    with work.shared(next(iter(stores.values()))) as others:
        _compute(models, teacher, examples, tally, len(labels), tokenizer, work, spoken, stores)
        results = {name: all_batches(store, len(examples), work, name, others) for name, store in stores.items()}
    values = {
        name: _values(of_model, examples, labels, tally, spoken is not None) for name, of_model in results.items()
    }
    return Evaluation(values, _samples(results, examples, labels) if spoken is not None else [])


def check_fits(name: str, model: PreTrainedModel, examples: EvaluationSet) -> None:
    """Raises ModelError for a model without rows for the examples' ids, or without positions for their lengths."""
    shape = shape_of(model.config)
    positions = shape.longest
    misfit = ids_without_row(examples.datasets, shape.read_vocab, shape.vocab)
    if misfit is not None:
        table, largest, rows = misfit
        raise ModelError(
            f"the data holds token id {largest}, model {name!r} has {rows} {table} rows. Data and model need one "
            "tokenizer: give the recipe that the model was made with (--recipe)."
        )
    longest = max(examples.longest_context, examples.longest_decoder_input)
    if longest > positions:
        raise ModelError(
            f"the longest example has {longest} tokens, model {name!r} has {positions} positions. Lower "
            "data.context_tokens and data.label_tokens (--set)."
        )


def _stores(
    models: Mapping[str, PreTrainedModel],
    teacher: PreTrainedModel | None,
    examples: EvaluationSet,
    tally: Tally,
    work: Work,
    spoken: ReplySettings | None,
) -> dict[str, PartialResults]:
    data = examples.fingerprint()
    stores = {}
    for name, model in models.items():
        facts = {
            "format": _FORMAT,
            "model": identity_of(model),
            "dtype": str(model.dtype),
            "teacher": None if teacher is None else [*identity_of(teacher), str(teacher.dtype)],
            "metrics": [(metric.name, metric.columns) for metric in tally.metrics],
            "data": data,
            "spoken": None if spoken is None else own_settings(model, spoken.new_tokens, spoken.changed),
        }
        stores[name] = PartialResults(work.folder / question_key(facts), work.rank)
        if not work.resume:
            stores[name].clear(work.world_size)
    return stores


def identity_of(model: PreTrainedModel) -> list[Any]:
    """What partial results know a model by."""
    return model_identity(str(model.name_or_path), getattr(model.config, "_commit_hash", None))


def _compute(
    models: Mapping[str, PreTrainedModel],
    teacher: PreTrainedModel | None,
    examples: EvaluationSet,
    tally: Tally,
    datasets: int,
    tokenizer: Any,
    work: Work,
    spoken: ReplySettings | None,
    stores: Mapping[str, PartialResults],
) -> None:
    """This process's batches of all models; the teacher runs once per batch."""
    done = {name: set(store.read()) for name, store in stores.items()}
    adapters, teacher_adapter = adapters_of(models, teacher)
    for number in range(work.rank, len(examples), work.world_size):
        missing = [name for name in models if number not in done[name]]
        if not missing:
            continue
        batch = examples.batch(number).to(models[missing[0]].device)
        objective = labels_alone().with_prediction(prediction_kernel(models, teacher, batch))
        asked = {name: adapters[name] for name in missing}
        found = measured(asked, teacher_adapter, batch, objective, tally, datasets)
        for name in missing:
            said: list[Reply] | None = None
            if spoken is not None:
                settings = own_settings(models[name], spoken.new_tokens, spoken.changed)
                with same_draws(models[name].device, seed=number):  # whoever computes the batch, and when
                    said = replies(models[name], tokenizer, batch.inputs, settings, examples.prompts(batch))
            stores[name].add(BatchResult(number, found[name].sums.tolist(), said))
            done[name].add(number)
            work.tell(name, len(done[name]), len(examples))


def all_batches(store: PartialResults, batches: int, work: Work, name: str, others: OtherRanks) -> list[BatchResult]:
    """Every batch in order; waits for other processes. Raises OthersFailedError if one has given up or died."""
    while True:
        begun = time.perf_counter()
        found = store.read()
        work.tell(name, len(found), batches)
        if len(found) == batches:
            return [found[number] for number in range(batches)]
        others.require(work.owing(batches, found), f"{batches - len(found)} batches of {name!r}")
        if work.world_size == 1:
            raise OSError(f"{batches - len(found)} batches of {name!r} are not in the partial results just written.")
        time.sleep(max(_LEAST_POLL_SECONDS, (time.perf_counter() - begun) / _POLL_SHARE))


def _values(
    results: Sequence[BatchResult], examples: EvaluationSet, labels: Sequence[str], tally: Tally, spoken: bool
) -> dict[str, float]:
    sums = torch.zeros(len(labels), len(results[0].sums[0]), dtype=torch.float64)
    for result in results:  # always in this order: float sums depend on it
        sums += torch.tensor(result.sums, dtype=torch.float64)
    values = parlai_names(tally.values(sums, labels))
    values["exs"] = float(examples.examples)
    return values | (_reply_values(results, examples, labels) if spoken else {})


def parlai_names(values: Mapping[str, float]) -> dict[str, float]:
    """The same under ParlAI's names, where ParlAI has the metric under another one."""
    other = {metric.name: shown for shown, metric in by_shown_name().items()}
    paths = {name: name.rpartition("/") for name in values}
    return {f"{dataset}{slash}{other.get(last, last)}": values[name] for name, (dataset, slash, last) in paths.items()}


def _reply_values(results: Sequence[BatchResult], examples: EvaluationSet, labels: Sequence[str]) -> dict[str, float]:
    per_dataset: dict[str, list[Answered]] = {label: [] for label in labels}
    by_length: list[tuple[int, Answered]] = []
    for result in results:
        for reply, text in zip(result.replies or [], examples.texts(result.number), strict=True):
            answered = Answered(reply.text, reply.tokens, [text.reference])
            per_dataset[labels[text.dataset]].append(answered)
            by_length.append((text.length, answered))
    return reply_values(per_dataset) | values_by_length(by_length, examples.unit)


def _samples(
    results: Mapping[str, Sequence[BatchResult]], examples: EvaluationSet, labels: Sequence[str]
) -> list[Sample]:
    """Some examples, evenly spread over the batches, each with every model's reply; the same for the same data."""
    chosen = sorted({round(step * (len(examples) - 1) / (_SAMPLES - 1)) for step in range(_SAMPLES)})
    samples = []
    for position, number in enumerate(chosen):
        texts = examples.texts(number)
        row = position * 7 % len(texts)  # not always the longest of its batch
        said = {name: (of_model[number].replies or [])[row].text for name, of_model in results.items()}
        text = texts[row]
        samples.append(Sample(labels[text.dataset], text.context, text.reference, said))
    return samples

"""Several models side by side on one recipe's data: quality, size, and milliseconds per reply."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from transformers import PreTrainedModel

from distill_engine.cluster.facts import read_cluster
from distill_engine.data.episodes import Split
from distill_engine.data.order.collate import collate
from distill_engine.data.tokens.tokenised import Example, TokenisedDataset
from distill_engine.evaluate.latency import measure_latency
from distill_engine.evaluate.measure import load_model, parameter_count
from distill_engine.evaluate.run import Work, run_evaluation
from distill_engine.evaluate.set import EvaluationSet
from distill_engine.models.generation_settings import obey
from distill_engine.recipe.rules import read_recipe
from distill_engine.setup.prepare import Prepared, datasets_of, prepare
from distill_engine.values import Audio

_LATENCY_CONTEXTS = 53  # 3 of them warm up; the median of 50 rounds is steady to about 3 % on a busy machine


class CompareError(ValueError):
    """What was asked cannot be compared."""


@dataclass(frozen=True)
class Loaded:
    """Models of one comparison in memory, by the names they were given, with the data to compare them on.

    `teacher` may be one of `models`; None without one. `datasets`: those of the recipe that have the `split`, by name.
    """

    models: dict[str, PreTrainedModel]
    teacher: PreTrainedModel | None
    ready: Prepared
    device: torch.device
    split: Split
    datasets: dict[str, TokenisedDataset]

    @property
    def first_dataset(self) -> TokenisedDataset:
        """The dataset whose contexts latency is measured with."""
        return next(iter(self.datasets.values()))

    @property
    def without_split(self) -> list[str]:
        """Names of the datasets that are left out."""
        return [label for label in self.ready.dataset_labels if label not in self.datasets]


def load_models(
    models: Sequence[str],
    recipe_file: Path | None,
    overrides: Sequence[str],
    teacher: str | None,
    dtype: torch.dtype = torch.float32,
    split: Split = "valid",
) -> Loaded:
    """Models, teacher and data of a comparison.

    models       model folders, run folders (their `best`), or names on the Hub
    recipe_file  whose data is used; None: the first run folder's recipe.yaml
    teacher      None: the recipe's, if it has one

    Raises CompareError or another ValueError that says what to correct.
    """
    ready = prepared(models, recipe_file, overrides)
    datasets = split_datasets(ready, split)
    device = own_device()
    loaded = {name: load_model(model_folder(name), device, dtype) for name in models}
    teacher_path = teacher or (str(ready.teacher_folder) if ready.teacher_folder else None)
    teacher_model = None if teacher_path is None else _loaded_once(teacher_path, loaded, device, dtype)
    for model in filter(None, (*loaded.values(), teacher_model)):
        assert model.generation_config is not None, "sequence-to-sequence models have one"
        obey(model.generation_config, ready.told)  # students say so already, teachers need not
    return Loaded(loaded, teacher_model, ready, device, split, datasets)


def prepared(models: Sequence[str], recipe_file: Path | None, overrides: Sequence[str]) -> Prepared:
    """The recipe, checked and loaded. Raises CompareError if there is none."""
    file = recipe_file or _recipe_of(models)
    return prepare(read_recipe(file, overrides), file)


def split_datasets(ready: Prepared, split: Split) -> dict[str, TokenisedDataset]:
    """The recipe's datasets that have the split, by name; at least one. Raises CompareError if none has it, DataError
    for bad files."""
    datasets = datasets_of(ready, split)
    if datasets:
        return datasets
    held = ["train", *(["valid"] if ready.valid_datasets else [])]
    raise CompareError(
        f"recipe {ready.recipe.name}: none of its datasets ({', '.join(ready.dataset_labels)}) has a {split} split. A "
        "dataset of files has the splits that the recipe names files for. "
        f"Add `{split}: FILE` to one (data.datasets), or measure on another one (--split {' or '.join(held)})."
    )


def own_device() -> torch.device:
    """The GPU of this process's local rank (the first one without a launcher), or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", read_cluster(os.environ).local_rank % torch.cuda.device_count())


def evaluation_set(loaded: Loaded, per_batch: int) -> EvaluationSet:
    """The examples to compare on, in batches of `per_batch`."""
    return EvaluationSet(tuple(loaded.datasets.values()), loaded.ready.layout, loaded.ready.tokenizer, per_batch)


def compare(
    models: Sequence[str],
    recipe_file: Path | None,
    overrides: Sequence[str],
    teacher: str | None,
    with_latency: bool,
) -> dict[str, dict[str, float]]:
    """One row of named values per model; arguments and errors as `load_models`."""
    loaded = load_models(models, recipe_file, overrides, teacher)
    return compare_loaded(loaded.models, loaded.teacher, loaded.ready, loaded.device, with_latency)


def compare_loaded(
    models: dict[str, PreTrainedModel],
    teacher: PreTrainedModel | None,
    ready: Prepared,
    device: torch.device,
    with_latency: bool,
) -> dict[str, dict[str, float]]:
    """The rows of `compare` for models in memory, under the names of `distill evaluate`."""
    # latency first: evaluating attaches what gives features, which costs a little at every layer
    latency = measure_latency(models, contexts_of(ready.valid_datasets[0], device)) if with_latency else {}
    examples = EvaluationSet(ready.valid_datasets, ready.layout, ready.tokenizer, per_batch=32)
    with TemporaryDirectory() as folder:
        work = Work(Path(folder))
        done = run_evaluation(models, teacher, examples, ready.valid_labels, ready.tokenizer, work, None)
    rows = {name: {"parameters": float(parameter_count(models[name])), **done.values[name]} for name in models}
    for name, timed in latency.items():
        rows[name]["ms_per_reply"] = timed.median_ms
    return rows


def contexts_of(
    dataset: TokenisedDataset, device: torch.device, count: int = _LATENCY_CONTEXTS
) -> list[Tensor | Audio]:
    """At most `count` inputs of a dataset, evenly spread over it: ids [1, S] int64, or a window of sound, each."""
    chosen = spread(dataset, count)
    if dataset.layout.window is not None:
        batches = (collate([one], dataset.layout, 1).to(device) for one in chosen)
        return [batch.inputs for batch in batches if isinstance(batch.inputs, Audio)]
    return [torch.tensor(one.context_ids, dtype=torch.long, device=device)[None] for one in chosen]


def spread(dataset: TokenisedDataset, count: int) -> list[Example]:
    """At most `count` examples, evenly spread over a dataset."""
    count = min(count, len(dataset))
    return [dataset.example(number * max(1, len(dataset) // count)) for number in range(count)]


def _recipe_of(models: Sequence[str]) -> Path:
    for name in models:
        file = Path(name) / "recipe.yaml"
        if file.is_file():
            return file
    raise CompareError(
        f"no recipe given, and none of {', '.join(models)} is a run folder with a recipe.yaml. Name the data with "
        "--recipe FILE."
    )


def model_folder(name: str) -> str:
    """A run folder's best student; any other name as it is. The version, not the link: a run that goes on may publish
    another one while this one is being read."""
    best = Path(name) / "best"
    return str(best.resolve()) if best.is_dir() else name


def _loaded_once(
    name: str, loaded: dict[str, PreTrainedModel], device: torch.device, dtype: torch.dtype
) -> PreTrainedModel:
    """The teacher may be one of the compared models; it need not be in memory twice."""
    for other, model in loaded.items():
        if Path(model_folder(other)).resolve() == Path(model_folder(name)).resolve():
            return model
    return load_model(model_folder(name), device, dtype)

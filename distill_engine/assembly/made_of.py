"""What a run's teacher and data are known by: a cache of teacher outputs is good for these and no others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from distill_engine.cluster.files import digest_of
from distill_engine.cluster.ranks import Ranks
from distill_engine.data.digests import FileDigests
from distill_engine.data.tokens.tokenised import TokenisedDataset
from distill_engine.setup.datasets import cache_folder
from distill_engine.setup.prepare import Prepared
from distill_engine.teachers.protocol import MadeOf


def made_of(ready: Prepared, ranks: Ranks) -> MadeOf:
    """Collective: rank 0 reads the weights, once for a state of their files."""
    return MadeOf(
        str(ranks.broadcast(_teacher_digest(ready) if ranks.rank == 0 else None)),
        {title: dataset_digest(one) for title, one in datasets(ready).items()},
    )


def datasets(ready: Prepared) -> dict[str, TokenisedDataset]:
    """Everything that a run shows its teacher, by title and split."""
    train = zip(ready.dataset_labels, ready.train_datasets, strict=True)
    valid = zip(ready.valid_labels, ready.valid_datasets, strict=True)
    return {f"{label}, train": one for label, one in train} | {f"{label}, valid": one for label, one in valid}


def dataset_digest(dataset: TokenisedDataset) -> str:
    """Of all token ids as models read them: words, limits and what stands around them."""
    facts = [dataset.digest, asdict(dataset.limits), asdict(dataset.layout)]
    return digest_of(facts)[:16]


def _teacher_digest(ready: Prepared) -> str:
    assert ready.teacher_folder is not None
    digests = FileDigests(cache_folder(ready.recipe.data) / "digests")

    def facts(folder: Path, config: Mapping[str, Any]) -> list[Any]:
        weights = [file for file in folder.iterdir() if file.suffix in (".safetensors", ".bin")]
        return [sorted((file.name, digests.of(file)) for file in weights), dict(config)]

    first, recipe = facts(ready.teacher_folder, ready.teacher_config or {}), ready.recipe
    if not ready.others:
        return digest_of(first)[:16]
    # what the mean of several is made of, too
    every = [first, *(facts(one.folder, one.config) for one in ready.others)]
    shares = [one.weight for one in recipe.teachers]
    mean = [[share / sum(shares) for share in shares], recipe.losses.temperature, recipe.features_of]
    return digest_of([*every, *mean])[:16]

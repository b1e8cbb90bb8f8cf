"""What the token cache, the mixture and the loaders yield is what `order.json` says, whatever is moved around them.

The numbers were written before dialogue became one kind of data among others. A change that is meant, for example of
the shuffle, writes them anew: `python tests/golden/test_order.py`. Every checkpoint's data position changes with them.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from distill_engine.assembly.resizing import split_of
from distill_engine.data.tokens.layout import SequenceLayout
from distill_engine.data.tokens.tokenize import DialogueTokenizer, load_tokenizer
from distill_engine.recipe.schema import Recipe
from distill_engine.setup.datasets import load_datasets
from distill_engine.setup.training_data import mixture_of, train_loader, validation_loader

HERE = Path(__file__).parent
FIXTURES = HERE.parent / "fixtures"
LAYOUTS = {
    "blenderbot": SequenceLayout(0, 1, 2, (), (2,), (1,), 0),
    "bart": SequenceLayout(0, 1, 2, (1,), (2,), (2, 1), 1),
}
BATCHES = {"rows": {"per_rank": 3, "accumulation_steps": 2}, "tokens": {"max_tokens": 300, "length_window": 64}}
DRAWS, STEPS, RANKS = 48, 4, 2


def digest(*arrays: object) -> str:
    """A short name of arrays: shapes and values."""
    whole = hashlib.sha256()
    for array in map(np.asarray, arrays):
        whole.update(f"{array.shape}".encode() + np.ascontiguousarray(array, "<i8").tobytes())
    return whole.hexdigest()[:16]


def recipe(batch: str, folder: Path) -> Recipe:
    sources = [
        {"name": "parlai_text", "train": str(FIXTURES / "data/chat_train.txt"),
         "valid": str(FIXTURES / "data/chat_valid.txt")},
        {"name": "conversations", "train": str(FIXTURES / "data/talks_train.jsonl"), "label_turns": "both"},
        {"name": "demo", "train_examples": 90, "valid_examples": 20, "weight": 2.5},
        {"name": "empathetic_dialogues"},
    ]  # fmt: skip
    data = {"datasets": sources, "root": str(FIXTURES / "taskdata/raw"), "cache_dir": str(folder),
            "context_tokens": 40, "label_tokens": 12}  # fmt: skip
    sections = {"name": "order", "seed": 7, "data": data, "batch": BATCHES[batch], "optimizer": {"learning_rate": 1}}
    return Recipe.model_validate(sections)


def yielded(family: str, batch: str, folder: Path) -> dict[str, object]:
    """Names of all tokens, the first draws, and digests of the first batches of both ranks."""
    own, layout = recipe(batch, folder), LAYOUTS[family]
    tokenizer = load_tokenizer(str(HERE.parents[1] / "recipes/demo/tokenizer"))
    encoder = DialogueTokenizer(tokenizer, layout, "\n", own.data.context_tokens, own.data.label_tokens)
    held = load_datasets(own.data, encoder)
    ready = SimpleNamespace(
        recipe=own, layout=layout, train_datasets=held.train, valid_datasets=held.valid, dataset_labels=held.labels,
        valid_labels=held.valid_labels,
    )  # fmt: skip
    mixture = mixture_of(ready)
    found: dict[str, object] = {
        "sizes": [len(dataset) for dataset in (*held.train, *held.valid)],
        "tokens": [digest(dataset.tokens, dataset.bounds) for dataset in (*held.train, *held.valid)],
        "shares": [round(share, 12) for share in mixture.shares],
        "draws": [part.tolist() for part in mixture.window(5000, 5000 + DRAWS)],
    }
    for rank in range(RANKS):
        ranks = SimpleNamespace(rank=rank, world_size=RANKS, device=torch.device("cpu"))
        with train_loader(ready, ranks, lambda _: None, split_of(own, RANKS)) as loader:
            groups = [loader.next_group() for _ in range(STEPS)]
            found[f"train, rank {rank}"] = [[named(one) for one in group] for group in groups]
            found[f"position, rank {rank}"] = loader.position
        found[f"valid, rank {rank}"] = [named(one) for one in validation_loader(ready, ranks)]
    return found


def named(batch) -> str:
    return digest(*batch.inputs.keywords.values(), batch.decoder_input_ids, batch.labels, batch.dataset_ids)


CASES = [(family, batch) for family in LAYOUTS for batch in BATCHES]


@pytest.mark.parametrize("family, batch", CASES)
def test_tokens_draws_and_batches_are_the_golden_ones(family, batch, tmp_path):
    golden = json.loads((HERE / "order.json").read_text())[f"{family}, {batch}"]
    fresh, kept = yielded(family, batch, tmp_path), yielded(family, batch, tmp_path)
    assert fresh == golden
    assert kept == golden  # from the cache


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        numbers = {f"{family}, {batch}": yielded(family, batch, Path(place)) for family, batch in CASES}
    (HERE / "order.json").write_text(json.dumps(numbers, indent=1) + "\n")
    os.write(1, b"written\n")

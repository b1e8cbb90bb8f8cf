"""How long tokenising takes, how much of the batches is padding, and how long a training step waits for its data.

    python benchmarks/data.py [--examples N] [--step-ms MS] [--max-tokens N]

Uses the product's own tokenizer, token cache, mixture and loader, on dialogues of random words whose sizes are those of
the four dialogue datasets. Prints one JSON line; benchmarks/README.md explains its fields.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from dialogue_lengths import FOUR_DATASETS, LAYOUT, PARLAI_WEIGHTS, four_datasets  # noqa: E402
from tokenizers import ByteLevelBPETokenizer  # noqa: E402

from distill_engine.data.episodes import Episode, Turn  # noqa: E402
from distill_engine.data.order.loader import TrainLoader, token_budget_plan  # noqa: E402
from distill_engine.data.order.mixture import Mixture, example_weights  # noqa: E402
from distill_engine.data.tokens.cache import Content, TokenCache  # noqa: E402
from distill_engine.data.tokens.tokenize import DialogueTokenizer  # noqa: E402
from distill_engine.telemetry.machine import machine_record  # noqa: E402

WORDS = 20_000
VOCABULARY = 8008
PER_RANK = 16
GROUPS = 400


class Speaker:
    """Utterances of invented words, frequent ones more often, as in a language."""

    def __init__(self) -> None:
        self._random = random.Random(0)
        letters = "etaoinshrdlucmfwyp"
        self._words = ["".join(self._random.choices(letters, k=self._random.randint(1, 9))) for _ in range(WORDS)]
        self._odds = list(itertools.accumulate(1 / (rank + 1) for rank in range(WORDS)))

    def says(self, mean_tokens: float) -> str:
        """A text of about that many tokens."""
        count = max(1, round(self._random.lognormvariate(0, 0.55) * mean_tokens * 0.5))
        return " ".join(self._random.choices(self._words, cum_weights=self._odds, k=count))


def dialogues(examples: int) -> list[Episode]:
    """Episodes of the four datasets, in proportion, with about that many examples; no text comes twice by design."""
    speaker, episodes = Speaker(), []
    share = examples / sum(dataset.examples for dataset in FOUR_DATASETS.values())
    for dataset in FOUR_DATASETS.values():
        turns = dataset.examples / dataset.episodes
        for _ in range(round(dataset.episodes * share)):
            said = [(speaker.says(dataset.utterance), speaker.says(dataset.utterance)) for _ in range(round(turns))]
            opening = f"{speaker.says(dataset.opening)}\n" if dataset.opening else ""
            first = Turn(opening + said[0][0], said[0][1])
            episodes.append(Episode((first, *(Turn(*pair) for pair in said[1:]))))
    return episodes


def tokenising(examples: int) -> dict[str, float]:
    """Seconds to tokenise into an empty cache, and to open what is there."""
    episodes = dialogues(examples)
    backend = ByteLevelBPETokenizer(add_prefix_space=True)
    texts = (turn.text for episode in episodes[::20] for turn in episode.turns)
    backend.train_from_iterator(texts, vocab_size=VOCABULARY, show_progress=False)
    tokenizer = SimpleNamespace(backend_tokenizer=backend._tokenizer, SPECIAL_TOKENS_ATTRIBUTES=())
    encoder = DialogueTokenizer(tokenizer, LAYOUT, "  ", 128, 128)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "source"
        file.write_text("stands for the files")
        source = Content("dialogues", (file,), {}, lambda: iter(episodes))
        seconds = []
        for _ in range(2):
            started = time.perf_counter()
            dataset = TokenCache(Path(folder) / "cache").dataset(source, encoder, lambda _: None)
            seconds.append(time.perf_counter() - started)
    return {
        "examples": len(dataset),
        "tokens": len(dataset.tokens),
        "tokenising_seconds": seconds[0],
        "seconds_per_300k_examples": seconds[0] * 300_000 / len(dataset),
        "opening_seconds": seconds[1],
    }


def batches(max_tokens: int | None, step_ms: float, seconds: float) -> dict[str, float]:
    """Padding, the loader's own rate, and the share of waiting in so many seconds of steps that take `step_ms` each."""
    datasets = four_datasets()
    sizes = [len(dataset) for dataset in datasets]
    weights = example_weights(PARLAI_WEIGHTS, sizes, [dataset.episodes for dataset in datasets], "episodes")
    mixture = Mixture(sizes, weights, seed=1)
    plan = None
    if max_tokens is not None:
        plan = token_budget_plan(datasets, mixture, LAYOUT, max_tokens=max_tokens, window=8192, pad_to_multiple_of=8)
    with TrainLoader(
        datasets, mixture, LAYOUT, per_rank=PER_RANK, accumulation_steps=1, pad_to_multiple_of=8, rank=0, world_size=1,
        plan=plan, pin_memory=torch.cuda.is_available(),
    ) as loader:  # fmt: skip
        positions = padding = 0
        started = time.perf_counter()
        for batch in (loader.next_group()[0] for _ in range(GROUPS)):
            tokens = int(batch.context_mask.sum() + batch.label_mask.sum())
            positions += batch.inputs.input_ids.numel() + batch.labels.numel()
            padding += batch.inputs.input_ids.numel() + batch.labels.numel() - tokens
        needed = time.perf_counter() - started
        examples = loader.examples
        waited = sorted(waits(loader, step_ms, steps=max(1, round(seconds * 1000 / step_ms))))
    return {
        "examples_per_batch": examples / GROUPS,
        "padding_share": padding / positions,
        "batches_per_second": GROUPS / needed,
        "waiting_ms_median": 1000 * waited[len(waited) // 2],
        "waiting_share": sum(waited) / (sum(waited) + seconds),
    }


def waits(loader: TrainLoader, step_ms: float, steps: int) -> Iterator[float]:
    """Seconds that each step waits for its data, while steps keep this thread busy outside of Python."""
    side = torch.randn(512, 512)
    for _ in range(steps):
        asked = time.perf_counter()
        loader.next_group()
        given = time.perf_counter()
        yield given - asked
        while time.perf_counter() - given < step_ms / 1000:
            torch.mm(side, side)


def main() -> int:
    """Measure and print one JSON line."""
    parser = argparse.ArgumentParser(description="Tokenising, padding, and waiting for data.")
    parser.add_argument("--examples", type=int, default=300_000, help="examples to tokenise")
    parser.add_argument("--step-ms", type=float, default=100.0, help="how long a step takes that waits for data")
    parser.add_argument("--max-tokens", type=int, default=(128 + 128) * PER_RANK, help="token budget of a batch")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {
        "tokenising": tokenising(asked.examples),
        "plain": batches(None, asked.step_ms, seconds=10.0),
        "max_tokens": batches(asked.max_tokens, asked.step_ms, seconds=10.0),
        "step_ms": asked.step_ms,
        "machine": machine_record(),
    }
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())

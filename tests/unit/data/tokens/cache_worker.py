"""A process that tokenises through the cache; run by test_cache.py.

    cache_worker.py ACTION CACHE TOKENIZER SOURCE

build    says `ready`, waits for a line, makes the dataset, says its facts as JSON
hang     begins to make it, says `begun` in the middle, and waits to be killed
bounded  makes a dataset of above 100 MiB and reads examples of it all over, with 72 MiB more memory than it starts with
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

from tokenizers import Tokenizer

from distill_engine.data.episodes import Episode, Turn
from distill_engine.data.formats.parlai_text import read_parlai_text
from distill_engine.data.tokens.cache import Content, TokenCache
from distill_engine.data.tokens.layout import SequenceLayout
from distill_engine.data.tokens.tokenize import DialogueTokenizer

LAYOUT = SequenceLayout(0, 1, 2, (), (2,), (1,), 0)
MIB = 2**20


def encoder_of(file: str) -> DialogueTokenizer:
    roles = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    backend = Tokenizer.from_file(file)
    tokenizer = SimpleNamespace(backend_tokenizer=backend, SPECIAL_TOKENS_ATTRIBUTES=tuple(roles), **roles)
    return DialogueTokenizer(tokenizer, LAYOUT, "\n", 64, 64)


def build(cache: TokenCache, encoder: DialogueTokenizer, file: Path) -> None:
    read: list[int] = []

    def episodes() -> Iterator[Episode]:
        for episode in read_parlai_text(str(file)):
            read.append(1)
            yield episode

    say("ready")
    sys.stdin.readline()
    dataset = cache.dataset(Content("talk", (file,), {}, episodes), encoder, lambda episodes: None)
    say(json.dumps({"examples": len(dataset), "digest": dataset.digest, "read": len(read)}))


def hang(cache: TokenCache, encoder: DialogueTokenizer, file: Path) -> None:
    def episodes() -> Iterator[Episode]:
        yield from list(read_parlai_text(str(file))) * 2000  # more than a chunk, so tokens are on the disk
        say("begun")
        sys.stdin.readline()
        raise AssertionError("killed processes do not get here")

    cache.dataset(Content("talk", (file,), {}, episodes), encoder, lambda episodes: None)


def bounded(cache: TokenCache, encoder: DialogueTokenizer, file: Path) -> None:
    import numpy as np

    from distill_engine.data.order.loader import TrainLoader
    from distill_engine.data.order.mixture import Mixture

    word = "hello there , do you mend clocks ? "
    entries = [word * number for number in range(60, 80)]

    def episodes() -> Iterator[Episode]:
        for number in range(20_000):
            yield Episode((Turn(entries[number % 20], entries[(number + 7) % 20]),))

    encoder.encode(entries)  # so that the tokenizer has its threads and caches
    limit = 1024 * status("VmData") + 72 * MIB
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        np.zeros(100 * MIB, np.int8).fill(1)
    except MemoryError:
        say("the limit holds")
    dataset = cache.dataset(Content("talk", (file,), {}, episodes), encoder, lambda episodes: None)
    with TrainLoader(
        [dataset], Mixture([len(dataset)], [1.0], 1), LAYOUT,
        per_rank=64, accumulation_steps=1, pad_to_multiple_of=1, rank=0, world_size=1,
    ) as loader:  # fmt: skip
        seen = sum(len(loader.next_group()[0].dataset_ids) for _ in range(80))
    say(json.dumps({"examples": len(dataset), "bytes": dataset.tokens.nbytes, "seen": seen}))


def status(name: str) -> int:
    """A line of /proc/self/status, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    action, folder, tokenizer, source = sys.argv[1:]
    {"build": build, "hang": hang, "bounded": bounded}[action](
        TokenCache(Path(folder), say), encoder_of(tokenizer), Path(source)
    )

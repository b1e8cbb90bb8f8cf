"""Two tiny byte-level BPE tokenizers, trained here, and episodes to feed them."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from distill_engine.data.episodes import Episode, Turn
from distill_engine.data.tokens.layout import SequenceLayout, SpecialTokens
from distill_engine.data.tokens.tokenize import load_tokenizer
from distill_engine.families.lookup import family_named

CORPUS = [
    "hello there , do you mend clocks ?",
    "yes i do . the clock runs late",
    "your persona: i have a small brown dog  and a cat",
    "i am fine . how are you today ?",
    "the sea is nice when it rains outside",
] * 4

SPECIALS = ["<pad>", "<s>", "</s>", "<unk>"]


def saved_tokenizer(folder: Path, add_prefix_space: bool) -> Path:
    """A tokenizer folder as transformers writes it; pad 0, start 1, end 2, unk 3."""
    backend = ByteLevelBPETokenizer(add_prefix_space=add_prefix_space)
    backend.train_from_iterator(CORPUS, vocab_size=330, min_frequency=2, special_tokens=SPECIALS)
    PreTrainedTokenizerFast(
        tokenizer_object=backend._tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_tokenizer(tmp_path_factory.mktemp("tokenizer"), add_prefix_space=True)


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder: Path) -> PreTrainedTokenizerBase:
    """Words begin with a space of their own, as Blenderbot's."""
    return load_tokenizer(str(tokenizer_folder))


@pytest.fixture(scope="session")
def bare_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    """The first word has no space, as BART's."""
    return load_tokenizer(str(saved_tokenizer(tmp_path_factory.mktemp("bare"), add_prefix_space=False)))


@pytest.fixture(scope="session")
def blenderbot_layout() -> SequenceLayout:
    return family_named("blenderbot").layout(SpecialTokens(0, 2, 1), True)


@pytest.fixture(scope="session")
def bart_layout() -> SequenceLayout:
    """Hugging Face's BART ids: start 0, pad 1, end 2."""
    return family_named("bart").layout(SpecialTokens(1, 2, 0))


@pytest.fixture(scope="session")
def episode() -> Episode:
    return Episode(
        (
            Turn("your persona: i have a dog\nhello there", "hello , how are you ?"),
            Turn("i am fine .", "do you mend clocks ?"),
            Turn("yes", "nice"),
        )
    )

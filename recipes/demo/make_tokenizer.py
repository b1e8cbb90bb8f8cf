"""Makes recipes/demo/tokenizer again: a byte-level BPE trained on the demo's training dialogues.

    python recipes/demo/make_tokenizer.py [FOLDER]

The same generator gives the same folder, byte for byte. No special token is ever added by the tokenizer
itself: contexts and labels get theirs from the engine, where ParlAI's rules are written down.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from distill_engine.data.corpora.demo import demo_episodes

VOCABULARY = 1024
POSITIONS = 160
SPECIAL_TOKENS = {"pad_token": "__null__", "bos_token": "__start__", "eos_token": "__end__", "unk_token": "__unk__"}


def training_texts() -> Iterator[str]:
    """Every text and label of 20,000 training turns, line by line."""
    for episode in demo_episodes("train", count=20_000, seed=0):
        for turn in episode.turns:
            yield from turn.text.split("\n")
            yield turn.label


def trained_tokenizer() -> PreTrainedTokenizerFast:
    """The demo tokenizer; ids 0 to 3 are padding, start, end and unknown, as in Blenderbot."""
    bpe = Tokenizer(models.BPE(unk_token=SPECIAL_TOKENS["unk_token"]))
    # Digits stand alone, so that 37 + 5 can be worked out digit by digit instead of learnt as a table.
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS.values()],
        show_progress=False,
    )
    bpe.train_from_iterator(training_texts(), trainer=trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        model_max_length=POSITIONS,
        clean_up_tokenization_spaces=False,
        return_token_type_ids=False,
        **SPECIAL_TOKENS,
    )


def main() -> None:
    """Writes the tokenizer's folder, by default next to this file."""
    default = Path(__file__).resolve().parent / "tokenizer"
    trained_tokenizer().save_pretrained(Path(sys.argv[1]) if len(sys.argv) > 1 else default)


if __name__ == "__main__":
    main()

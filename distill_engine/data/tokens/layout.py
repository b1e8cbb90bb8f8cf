"""Where the special tokens go around a context and a label, as plain values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SpecialTokens:
    """Ids that families put around words, by what tokenizer, configuration and generation settings say.

    pad, end       every family needs them
    start          the tokenizer's, where it has one
    decoder_start  what the decoder reads first          forced    what a reply has to begin with (a language)
    source         the language of contexts, where the tokenizer knows languages
    prompt         what `generate` itself puts behind the first, in families that prompt; None: what is not known
    """

    pad: int
    end: int
    start: int | None = None
    decoder_start: int | None = None
    forced: int | None = None
    source: int | None = None
    prompt: tuple[int | None, ...] = ()


@dataclass(frozen=True)
class Window:
    """What an encoder that hears reads at a time: `frames` of `channels` features, of which its first layers make
    `positions`."""

    channels: int
    frames: int
    positions: int

    @property
    def kept_bytes(self) -> int:
        """Of its features on the disk at most, where no frame is left out (data.audio.stored)."""
        return 2 * self.channels * self.frames


@dataclass(frozen=True)
class SequenceLayout:
    """What a model family reads around the words.

    pad_id             fills contexts and decoder inputs on the right
    start_id, end_id   the two special tokens; every label ends with end_id unless it is cut; not all families have the
                       first
    context_prefix     ids before the words of a context; never cut off
    context_suffix     ids after them; never cut off
    decoder_prefix     ids that the decoder reads before the first label token
    label_pad_prefix   leading decoder positions that predict nothing (-100)
    window             of a family that hears: what it reads instead of contexts

    Decoder input is `decoder_prefix + label[:-1]`, labels are `label_pad_prefix * [-100] + label`; both are equally
    long, hence len(decoder_prefix) == label_pad_prefix + 1 (else ValueError).
    """

    pad_id: int
    start_id: int | None
    end_id: int
    context_prefix: tuple[int, ...] = ()
    context_suffix: tuple[int, ...] = ()
    decoder_prefix: tuple[int, ...] = ()
    label_pad_prefix: int = 0
    window: Window | None = None

    def __post_init__(self) -> None:
        if len(self.decoder_prefix) != self.label_pad_prefix + 1:
            raise ValueError(
                f"decoder_prefix {self.decoder_prefix} and label_pad_prefix {self.label_pad_prefix} do not line up: "
                "the decoder reads one token more than it skips predicting. Give len(decoder_prefix) - 1."
            )

    @property
    def largest_ids(self) -> tuple[int, int]:
        """Of what is put around words: around what is read, and what is written."""
        read = max((self.pad_id, *self.context_prefix, *self.context_suffix))
        return read, max(self.pad_id, self.end_id, *self.decoder_prefix)

    @property
    def context_overhead(self) -> int:
        """Tokens of every context that are not words."""
        return len(self.context_prefix) + len(self.context_suffix)

    def decoder_length(self, label_tokens: int) -> int:
        """Decoder positions of a label of that many tokens, end token included."""
        return label_tokens + self.label_pad_prefix

"""Where the special tokens go around a context and a label, as plain values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SequenceLayout:
    """What a model family reads around the words.

    pad_id             fills contexts and decoder inputs on the right
    start_id, end_id   the two special tokens; every label ends with end_id unless it is cut
    context_prefix     ids before the words of a context; never cut off
    context_suffix     ids after them; never cut off
    decoder_prefix     ids that the decoder reads before the first label token
    label_pad_prefix   leading decoder positions that predict nothing (-100)

    Decoder input is `decoder_prefix + label[:-1]`, labels are `label_pad_prefix * [-100] + label`; both are equally
    long, hence len(decoder_prefix) == label_pad_prefix + 1 (else ValueError).
    """

    pad_id: int
    start_id: int
    end_id: int
    context_prefix: tuple[int, ...] = ()
    context_suffix: tuple[int, ...] = ()
    decoder_prefix: tuple[int, ...] = ()
    label_pad_prefix: int = 0

    def __post_init__(self) -> None:
        if len(self.decoder_prefix) != self.label_pad_prefix + 1:
            raise ValueError(
                f"decoder_prefix {self.decoder_prefix} and label_pad_prefix {self.label_pad_prefix} do not line up: "
                "the decoder reads one token more than it skips predicting. Give len(decoder_prefix) - 1."
            )

    @classmethod
    def of_family(
        cls,
        special_ids: tuple[int, int, int],
        *,
        wraps_context: bool,
        end_before_start: bool,
        history_end_token: bool,
    ) -> SequenceLayout:
        """The layout that follows from a family's facts; `special_ids` are (pad, start, end).

        wraps_context      contexts are START ... END (BART)
        end_before_start   the decoder reads END, START, label... (BART); else START, label... (Blenderbot)
        history_end_token  contexts end with END (a data option; families that wrap do so anyway)
        """
        pad, start, end = special_ids
        return cls(
            pad_id=pad,
            start_id=start,
            end_id=end,
            context_prefix=(start,) if wraps_context else (),
            context_suffix=(end,) if wraps_context or history_end_token else (),
            decoder_prefix=(end, start) if end_before_start else (start,),
            label_pad_prefix=1 if end_before_start else 0,
        )

    @property
    def context_overhead(self) -> int:
        """Tokens of every context that are not words."""
        return len(self.context_prefix) + len(self.context_suffix)

    def decoder_length(self, label_tokens: int) -> int:
        """Decoder positions of a label of that many tokens, end token included."""
        return label_tokens + self.label_pad_prefix

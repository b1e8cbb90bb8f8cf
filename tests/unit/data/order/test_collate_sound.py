"""Windows of sound as batches: whole, every position counts, and a filler has the shape of the others."""

import numpy as np

from distill_engine.data.order.collate import collate, filler_batch
from distill_engine.data.tokens.layout import SequenceLayout, Window
from distill_engine.data.tokens.tokenised import Clip, Example
from distill_engine.values import Audio

LAYOUT = SequenceLayout(0, None, 2, decoder_prefix=(5, 6, 7), label_pad_prefix=2, window=Window(8, 20, 10))


def example(value: float, words: int) -> Example:
    features = np.full((8, 20), value, np.float32)
    clip = Clip("a.wav", 0.1, lambda: features)
    return Example(np.empty(0, np.int32), np.arange(10, 10 + words, dtype=np.int32), clip)


def test_a_batch_of_windows_with_prompts_that_are_read_and_not_learnt():
    batch = collate([example(1.0, 3), example(2.0, 1)], LAYOUT, 4)
    assert isinstance(batch.inputs, Audio)
    assert batch.inputs.input_features.shape == (2, 8, 20) and batch.inputs.input_features[1, 3, 7] == 2.0
    assert batch.inputs.attention_mask.shape == (2, 10) and batch.context_mask.all()
    assert batch.decoder_input_ids[0].tolist() == [5, 6, 7, 10, 11, 0]  # labels are rounded up to 4, the prompt is not
    assert batch.labels[0].tolist() == [-100, -100, 10, 11, 12, -100]


def test_a_filler_has_a_window():
    filler = filler_batch(LAYOUT)
    assert filler.inputs.keywords["input_features"].shape == (1, 8, 20)
    assert filler.context_mask.shape == (1, 10)
    assert not filler.label_mask.any() and filler.decoder_input_ids.tolist() == [[5, 6, 7]]

"""Sounds beside texts: features as the extractor makes them, computed each time or kept on the disk."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from tokenizers import ByteLevelBPETokenizer
from tones import CHANNELS, FRAMES, RATE, listed, save_extractor, tone, tones
from transformers import WhisperFeatureExtractor

from distill_engine.checkpoint.files import readable_bytes
from distill_engine.data.audio.frontend import load_frontend
from distill_engine.data.audio.stored import bytes_of
from distill_engine.data.config import DataSection
from distill_engine.data.errors import DataError
from distill_engine.data.order.collate import collate
from distill_engine.data.order.loader import ValidationLoader
from distill_engine.data.tokens.layout import SequenceLayout, Window
from distill_engine.data.tokens.tokenize import DialogueTokenizer
from distill_engine.setup import datasets
from distill_engine.setup.datasets import load_datasets

LAYOUT = SequenceLayout(
    0, None, 2, decoder_prefix=(1, 4, 5), label_pad_prefix=2, window=Window(CHANNELS, FRAMES, FRAMES // 2)
)


def encoder(label_tokens: int = 24) -> DialogueTokenizer:
    backend = ByteLevelBPETokenizer()
    backend.train_from_iterator([" low middle high tone"], vocab_size=270, show_progress=False)
    tokenizer = SimpleNamespace(backend_tokenizer=backend._tokenizer, SPECIAL_TOKENS_ATTRIBUTES=())
    return DialogueTokenizer(tokenizer, LAYOUT, "\n", 64, label_tokens)


@pytest.fixture
def frontend(tmp_path):
    return load_frontend(save_extractor(tmp_path / "teacher"))


def section(folder: Path, file: Path, **keys) -> DataSection:
    more = {key: keys.pop(key) for key in ("max_bad_rows", "label_tokens") if key in keys}
    entry = {"kind": "speech", "train": str(file), "valid": str(file), **keys}
    return DataSection.model_validate({"datasets": [entry], "cache_dir": str(folder / "cache"), **more})


def loaded(data: DataSection, frontend):
    return load_datasets(data, encoder(data.label_tokens), frontend=frontend).train[0]


def test_features_are_the_extractors_and_kept_ones_are_the_same(tmp_path, frontend):
    file = tones(tmp_path, 5)
    soundfile.write(tmp_path / "train1.wav", np.full((6000, 2), 0.1) * [1, -0.5], 16000)  # two channels, another rate
    computed = loaded(section(tmp_path, file), frontend)
    heard, rate = soundfile.read(tmp_path / "train0.wav", dtype="float32")
    own = WhisperFeatureExtractor.from_pretrained(tmp_path / "teacher")
    expected = own(heard, sampling_rate=rate, return_tensors="np")["input_features"][0]
    first = computed.example(0)
    assert first.context_ids.tolist() == [] and first.clip.title == "train0.wav (0.3 s)"
    np.testing.assert_array_equal(first.clip.features(), expected)
    assert not (tmp_path / "cache" / "features").exists()

    kept = loaded(section(tmp_path, file, cache_features=True), frontend)
    assert kept.digest == computed.digest  # where features are kept changes no token
    for index in range(5):
        right, stored = (dataset.example(index).clip.features() for dataset in (computed, kept))
        np.testing.assert_allclose(stored, right, atol=2e-3, rtol=0)  # half a step of float16 below 2 is 5e-4
    (entry,) = (tmp_path / "cache" / "features").iterdir()  # one for both splits, whose lists are the same
    assert (entry / "features.bin").stat().st_size < 2 * 5 * CHANNELS * FRAMES  # silence is kept once

    batch = collate([kept.example(0), kept.example(1)], LAYOUT, 4, kept.limits)
    assert batch.inputs.input_features.shape == (2, CHANNELS, FRAMES) and batch.inputs.mask.all()
    assert batch.labels[0, :2].tolist() == [-100, -100] and batch.labels[0, 2] > 2


def test_features_that_are_there_are_not_computed_again_and_damaged_ones_are(tmp_path, frontend, capfd):
    file = tones(tmp_path, 3)
    data = section(tmp_path, file, cache_features=True)
    first = loaded(data, frontend).example(2).clip.features()
    (entry,) = (tmp_path / "cache" / "features").iterdir()
    made = (entry / "features.bin").stat().st_mtime_ns
    np.testing.assert_array_equal(loaded(data, frontend).example(2).clip.features(), first)
    assert (entry / "features.bin").stat().st_mtime_ns == made and capfd.readouterr().err == ""
    (entry / "features.bin").write_bytes(b"\0" * (entry / "features.bin").stat().st_size)
    np.testing.assert_array_equal(loaded(data, frontend).example(2).clip.features(), first)
    assert "damaged" in capfd.readouterr().err
    (tmp_path / "train2.wav").unlink()
    with pytest.raises(DataError, match=r"line 3: there is no file.*It could be read before"):
        loaded(data, frontend)


def test_the_size_of_features_is_known_beforehand_and_too_little_room_is_no_error(
    tmp_path, frontend, capfd, monkeypatch
):
    data = section(tmp_path, tones(tmp_path, 4), cache_features=True)
    expected = bytes_of(loaded(section(tmp_path, tmp_path / "train.jsonl"), frontend))
    monkeypatch.setattr(datasets, "free_bytes", lambda _: expected - 1)
    dataset = loaded(data, frontend)
    assert dataset.stored is None and dataset.example(3).clip.features().shape == (CHANNELS, FRAMES)
    assert f"about {readable_bytes(expected)}, {readable_bytes(expected - 1)} are free there" in capfd.readouterr().err
    monkeypatch.setattr(datasets, "free_bytes", lambda _: expected)
    stored = loaded(data, frontend).stored
    assert stored is not None and expected - 4 * 3 * 2 * CHANNELS <= stored.size <= expected
    assert expected < 4 * LAYOUT.window.kept_bytes


def test_validation_has_every_sound_once_and_fillers_have_windows(tmp_path, frontend):
    dataset = loaded(section(tmp_path, tones(tmp_path, 3)), frontend)
    loaders = [ValidationLoader([dataset], LAYOUT, per_rank=2, rank=rank, world_size=2) for rank in (0, 1)]
    batches = [list(loader) for loader in loaders]
    assert [len(one) for one in batches] == [1, 1]
    seen = sorted(number for one in batches for batch in one for number in batch.example_ids.tolist())
    assert seen == [0, 1, 2]
    assert {batch.inputs.keywords["input_features"].shape[1:] for one in batches for batch in one} == {(8, FRAMES)}


def test_a_text_that_would_be_cut_is_refused_or_left_out_with_its_place(tmp_path, frontend, capfd):
    for name in ("a", "b", "c"):
        tone(tmp_path / f"{name}.wav")
    rows = [
        {"audio": "a.wav", "text": "low"},
        {"audio": "b.wav", "text": "high " * 40},
        {"audio": "c.wav", "text": "x"},
    ]
    file = listed(tmp_path, "a.jsonl", rows)
    with pytest.raises(
        DataError, match=r"speech, train, line 2: the text of 'b.wav' has \d+ tokens.*label_tokens is 24"
    ):
        loaded(section(tmp_path, file, label_tokens=24), frontend)
    dataset = loaded(section(tmp_path, file, label_tokens=24, max_bad_rows=1), frontend)
    assert [dataset.place(index).at for index in range(len(dataset))] == ["a.wav", "c.wav"]
    assert "1 rows with texts longer than data.label_tokens are left out" in capfd.readouterr().err
    assert dataset.seconds.tolist() == [0.5, 0.5] and dataset.context_lengths.tolist() == [FRAMES // 2] * 2


def test_a_sound_that_is_another_than_before_is_refused(tmp_path, frontend):
    file = tones(tmp_path, 2)
    dataset = loaded(section(tmp_path, file), frontend)
    tone(tmp_path / "train1.wav", 440, 0.9)
    with pytest.raises(DataError, match=r"train1.wav has 7,200 samples at 8000 Hz; it had 2,800"):
        dataset.example(1).clip.features()
    again = load_datasets(section(tmp_path, file), encoder(), frontend=frontend).train[0]  # the list is as it was
    assert again.digest == dataset.digest


def test_a_sound_of_equal_length_and_other_content_is_noticed(tmp_path, frontend):
    file = tones(tmp_path, 2)
    data = section(tmp_path, file, cache_features=True)
    first = loaded(data, frontend).example(1).clip.features()
    sound = tmp_path / "train1.wav"
    os.utime(sound, ns=(0, 0))  # touched: looked at again, and the same
    np.testing.assert_array_equal(loaded(data, frontend).example(1).clip.features(), first)
    tone(sound, 660, 0.35)
    with pytest.raises(DataError, match=r"train1.wav has 2,800 samples at 8000 Hz; it had as many of other content"):
        loaded(data, frontend)

    headers = section(tmp_path, file, cache_features=True, read_all=False)  # nothing to compare with but the stamp
    before = loaded(headers, frontend).example(1).clip.features()
    tone(sound, 110, 0.35)
    assert np.abs(loaded(headers, frontend).example(1).clip.features() - before).max() > 0.1


def test_one_list_in_two_folders_leads_to_the_sounds_of_each(tmp_path, frontend):
    lists = []
    for name, hertz in (("clean", 440), ("other", 220)):
        (tmp_path / name).mkdir()
        tone(tmp_path / name / "a.wav", hertz, 0.4 if name == "clean" else 0.6)
        lists.append(listed(tmp_path / name, "train.jsonl", [{"audio": "a.wav", "text": "low"}]))
    seconds = [loaded(section(tmp_path, file), frontend).seconds.tolist() for file in lists]
    assert seconds == [[0.4], [0.6]]


def test_the_extractor_must_be_there_and_fit(tmp_path, frontend):
    with pytest.raises(DataError, match=r"has no preprocessor_config.json"):
        load_frontend(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(DataError, match="makes no feature extractor"):
        load_frontend(tmp_path)
    assert frontend.problem(LAYOUT.window) == "" and (frontend.rate, frontend.seconds) == (RATE, 1.0)
    assert "reads 50 frames of 80" in frontend.problem(replace(LAYOUT.window, channels=80))

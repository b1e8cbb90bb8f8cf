"""docs/translation.md, summarization.md and speech.md: every command is run, in an empty folder, on small data."""

from __future__ import annotations

import csv
import json
import random
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import soundfile
import tiny_sentencepiece
import tiny_speaker
import tiny_translators
import tones
from torch import Tensor
from transformers import AutoFeatureExtractor, AutoModelForSeq2SeqLM, AutoModelForSpeechSeq2Seq, AutoTokenizer

DOCS = Path(__file__).parents[2] / "docs"


def commands(page: str) -> list[list[str]]:
    blocks = re.findall(r"```bash\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)
    return [shlex.split(line, comments=True) for block in blocks for line in block.replace("\\\n", " ").splitlines()]


def toy_language(folder: Path, draw: random.Random) -> None:
    """Pairs of a vocabulary of a few words."""
    pairs = list(zip(tiny_sentencepiece.SOURCES, tiny_sentencepiece.TARGETS, strict=True))
    for split, rows in (("train", 24), ("valid", 6)):
        lines = [{"translation": dict(zip(("en", "de"), draw.choice(pairs), strict=True))} for _ in range(rows)]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)))


def toy_articles(folder: Path, draw: random.Random) -> None:
    """An article is words, its summary the first of them."""
    for split, rows in (("train", 24), ("valid", 6)):
        with (folder / f"{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("article", "highlights"))
            for _ in range(rows):
                words = draw.choices(("rain", "dog", "soup", "today", "cat"), k=9)
                writer.writerow((" ".join(words) + ".", words[0]))


def toy_speech(folder: Path, draw: random.Random) -> None:
    """Tones, and their names."""
    for split, rows in (("train", 24), ("valid", 6)):
        tones.tones(folder, rows, f"{split}.jsonl")


def answer_to_text(student: Path) -> Tensor:
    """What plain transformers makes of a student that reads."""
    model, tokenizer = (one.from_pretrained(student) for one in (AutoModelForSeq2SeqLM, AutoTokenizer))
    return model.generate(**tokenizer("the dog", return_tensors="pt"), max_new_tokens=4)


def answer_to_sound(student: Path) -> Tensor:
    """The same of one that hears."""
    model, extractor = (one.from_pretrained(student) for one in (AutoModelForSpeechSeq2Seq, AutoFeatureExtractor))
    heard, rate = soundfile.read(student.parent / "valid0.wav", dtype="float32")
    features = extractor(heard, sampling_rate=rate, return_tensors="pt").input_features
    return model.generate(features, max_new_tokens=4)


@dataclass(frozen=True)
class Page:
    """What a page's reader has, and what the student is for.

    data     writes the files that it names into a folder
    teacher  writes the teacher; None: the tests' own BART
    metric   begins the names of metrics that such students are judged by
    """

    data: Callable[[Path, random.Random], None]
    teacher: Callable[[Path], Path] | None
    metric: str
    answer: Callable[[Path], Tensor] = answer_to_text


PAGES = {
    "translation.md": Page(toy_language, tiny_translators.save_marian, "chrf"),
    "summarization.md": Page(toy_articles, None, "rouge"),
    "speech.md": Page(toy_speech, tiny_speaker.save, "wer", answer_to_sound),
}


@pytest.mark.parametrize("name", PAGES)
def test_from_an_empty_folder_to_a_student(name, program, make_teacher, tmp_path):
    page, teacher = PAGES[name], tmp_path / "teacher"
    page.data(tmp_path, random.Random(3))
    make_teacher(teacher, "bart") if page.teacher is None else page.teacher(teacher)
    install, *steps = commands(name)
    assert install[:2] == ["pip", "install"] and len(steps) == 6
    for called, command, *words in steps:
        assert called == "distill"
        if command == "new":
            words[0] = str(teacher)  # in place of the Hub's name
        if command == "train":  # the teacher's weights are random here
            words += ["--set", "teacher.allow_noise=true", "--set", "logging.wandb.mode=disabled", "--ds-config",
                      str(DOCS.parent / "ds_configs" / "zero2_fp32.json"), "--set", "stop.max_steps=4"]  # fmt: skip
        done = program.distill(command, *words, folder=tmp_path)
        said = done.stdout + done.stderr
        assert done.returncode == 0 and "Traceback" not in said, f"{command}: {said[-5000:]}"
        if command == "check" and page.answer is answer_to_sound:
            assert "features of speech, train: computed each time; 24 sounds would take about" in said
    (recipe,) = tmp_path.glob("*.yaml")
    depths = [one for one in (2, 1) if f"decoder_layers: {one}" in recipe.read_text()]
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert depths and any(metric.startswith(page.metric) for row in numbers.values() for metric in row)
    assert page.answer(tmp_path / "student").shape[1] > 1

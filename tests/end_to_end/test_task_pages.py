"""docs/translation.md and docs/summarization.md: every command is run, in an empty folder, on small data."""

from __future__ import annotations

import csv
import json
import random
import re
import shlex
from pathlib import Path

import pytest
import tiny_sentencepiece
import tiny_translators
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

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


PAGES = {"translation.md": toy_language, "summarization.md": toy_articles}


@pytest.mark.parametrize("page", PAGES)
def test_from_an_empty_folder_to_a_student(page, program, make_teacher, tmp_path):
    PAGES[page](tmp_path, random.Random(3))
    teacher = tmp_path / "teacher"
    tiny_translators.save_marian(teacher) if page == "translation.md" else make_teacher(teacher, "bart")
    install, *steps = commands(page)
    assert install[:2] == ["pip", "install"] and len(steps) == 6
    for name, command, *words in steps:
        assert name == "distill"
        if command == "new":
            words[0] = str(teacher)  # in place of the Hub's name
        if command == "train":  # the teacher's weights are random here
            words += ["--set", "teacher.allow_noise=true", "--set", "logging.wandb.mode=disabled", "--ds-config",
                      str(DOCS.parent / "ds_configs" / "zero2_fp32.json"), "--set", "stop.max_steps=4"]  # fmt: skip
        done = program.distill(command, *words, folder=tmp_path)
        said = done.stdout + done.stderr
        assert done.returncode == 0 and "Traceback" not in said, f"{command}: {said[-5000:]}"
    (recipe,) = tmp_path.glob("*.yaml")
    depths = [one for one in (2, 1) if f"decoder_layers: {one}" in recipe.read_text()]
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert depths and any("rouge" in name or "chrf" in name for row in numbers.values() for name in row)
    student, tokenizer = (one.from_pretrained(tmp_path / "student") for one in (AutoModelForSeq2SeqLM, AutoTokenizer))
    assert student.generate(**tokenizer("the dog", return_tensors="pt"), max_new_tokens=4).shape[1] > 1

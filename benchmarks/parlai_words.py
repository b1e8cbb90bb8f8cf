"""Whether ParlAI itself loads what `distill export --format parlai` makes of a word-level model, and says the same.

    python benchmarks/parlai_words.py --parlai-python PYTHON [--words 500]

Exports recipes/g2p/teacher, lets ParlAI load it and pronounce held-out words greedily, lets transformers do the same
with the folder that `distill import-parlai` makes of the export again, and counts the answers that differ. The last
line is one JSON object; the exit code is 1 where an answer differs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from runs import ROOT

SIDE = Path(__file__).resolve().with_name("parlai_side.py")
TEACHER = ROOT / "recipes" / "g2p" / "teacher"


class NoParlaiError(RuntimeError):
    """An interpreter cannot import ParlAI, or ParlAI failed."""


def main() -> int:
    """Export, ask, compare; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parlai-python", type=Path, required=True, help="an interpreter that can import ParlAI")
    parser.add_argument("--words", type=int, default=500, help="about so many of the held-out words (500)")
    given = parser.parse_args()
    try:
        result = there_and_back(given.parlai_python, held_out(given.words))
    except NoParlaiError as error:
        Console(stderr=True).print(str(error), style="red", markup=False)
        return 1
    sys.stdout.write(json.dumps(result) + "\n")
    return 1 if result["differ"] else 0


def held_out(count: int) -> list[str]:
    """About `count` test words, letters between spaces."""
    from g2p import DATA, test_words, write_data

    if not (DATA / "test.txt").is_file():
        write_data(DATA)
    return [" ".join(word) for word in test_words(count)]


def there_and_back(python: Path, texts: Sequence[str]) -> dict[str, Any]:
    """Answers of ParlAI, of the folder and of what comes back; `differ` counts texts with more than one answer."""
    from distill_engine.interop.parlai.importer import import_parlai
    from distill_engine.interop.parlai.source import SourceFiles

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        command = [sys.executable, "-m", "distill_engine.cli", "export", str(TEACHER), str(folder / "theirs")]
        subprocess.run([*command, "--format", "parlai"], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        import_parlai(SourceFiles(folder / "theirs" / "model"), folder / "again")
        answers = {
            "parlai": by_parlai(python, folder / "theirs" / "model", texts),
            "folder": by_transformers(TEACHER, texts),
            "again": by_transformers(folder / "again", texts),
        }
    different = [said for said in zip(texts, *answers.values(), strict=True) if len(set(said[1:])) > 1]
    return {"texts": len(texts), "differ": len(different), "examples": different[:5]}


def by_parlai(python: Path, model: Path, texts: Sequence[str]) -> list[str]:
    """What ParlAI's agent says to each text. Raises NoParlaiError."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as file:
        file.write("".join(f"{text}\n" for text in texts))
        file.flush()
        done = subprocess.run(
            [str(python), str(SIDE), "reply", str(model), file.name], capture_output=True, text=True, check=False
        )
    if done.returncode != 0:
        raise NoParlaiError(f"{python} ended with code {done.returncode}: {done.stderr.strip()[-1000:]}")
    lines = done.stdout.splitlines()
    return [json.loads(line) for line in lines[lines.index("replies:") + 1 :]]


def by_transformers(folder: Path, texts: Sequence[str]) -> list[str]:
    """What a Hugging Face folder's model says, greedily; texts end with the end token, as the recipe's do."""
    from distill_engine.data.tokens.tokenize import load_tokenizer
    from distill_engine.evaluate.generate import own_settings, replies
    from distill_engine.evaluate.measure import load_model
    from distill_engine.values import Tokens

    model, tokenizer = load_model(folder, torch.device("cpu")), load_tokenizer(str(folder))
    settings = own_settings(model, 39, {"num_beams": 1, "do_sample": False})
    said: list[str] = []
    for text in texts:
        ids: Any = tokenizer([f"{text} {tokenizer.eos_token}"], add_special_tokens=False, return_tensors="pt")
        said += [
            one.text for one in replies(model, tokenizer, Tokens(ids["input_ids"], ids["attention_mask"]), settings)
        ]
    return said


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "recipes" / "g2p"))
    sys.exit(main())

"""benchmarks/parlai_words.py: the committed word-level teacher goes to ParlAI and back, and all three say the same.

ParlAI does not install beside this project; where PARLAI_PYTHON names an interpreter that has it, it is asked itself.
"""

import os
from pathlib import Path

import parlai_words as bench
import pytest

from distill_engine.interop.parlai.exporter import export_parlai
from distill_engine.interop.parlai.importer import import_parlai
from distill_engine.interop.parlai.source import SourceFiles

WORDS = ["z e b r a", "o ' c l o c k", "d i s t i l l i n g", "q"]


def test_the_word_level_teacher_comes_back_the_same(tmp_path):
    exported = export_parlai(bench.TEACHER, tmp_path / "theirs")
    import_parlai(SourceFiles(exported.model_file), tmp_path / "again")
    assert bench.by_transformers(tmp_path / "again", WORDS) == bench.by_transformers(bench.TEACHER, WORDS)


def test_parlai_itself_says_the_same():
    python = os.environ.get("PARLAI_PYTHON")
    if not python:
        pytest.skip("PARLAI_PYTHON names no interpreter that can import ParlAI (docs/parlai.md)")
    assert bench.there_and_back(Path(python), WORDS) == {"texts": len(WORDS), "differ": 0, "examples": []}


def test_what_is_no_parlai_is_said(tmp_path):
    with pytest.raises(bench.NoParlaiError, match="ended with code 1: no module"):
        script = tmp_path / "python"
        script.write_text("#!/bin/sh\necho no module >&2\nexit 1\n")
        script.chmod(0o755)
        bench.by_parlai(script, tmp_path / "model", ["a"])

"""What is known in one place only: names of loss terms stand in losses/terms, those of metrics in metrics, of kinds of
data in data/kinds, all in the registry and among ParlAI's flags; words of model families in families and interop."""

import ast
import re
from pathlib import Path

from distill_engine.registry import BUILT_IN

ROOT = Path(__file__).resolve().parents[2]
# `task`, `encoder` and `prediction` are words of other things as well
TERMS = {name for name in BUILT_IN["terms"] if "_" in name}
EVERYWHERE = ("distill_engine/registry.py", "distill_engine/interop/")
ALLOWED = ("distill_engine/losses/terms/", *EVERYWHERE)
# `ppl`, the metric that decides by default, and `loss` and the like are words of other things as well
METRICS = {*BUILT_IN["metrics"]} - {"ppl", "loss", "accuracy", "repetition", "empty", "unique"}
ALLOWED_METRICS = (
    "distill_engine/metrics/",
    "distill_engine/data/kinds/",  # what each kind is judged by
    "distill_engine/train/meter.py",  # the two that a step's kernels count along ...
    "distill_engine/telemetry/metrics.py",  # ... and what they mean there
    *EVERYWHERE,
)
# `dialogue` is what a source is where a recipe says nothing
KINDS = {*BUILT_IN["kinds"]}
ALLOWED_KINDS = ("distill_engine/data/kinds/", *EVERYWHERE)


def named(source: str, names: set[str] = TERMS) -> list[str]:
    """These names among the strings of a module, also as the end of a path, with their lines; docstrings may mention
    them."""
    strings = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)]
    strings = [node for node in strings if isinstance(node.value, str)]
    return [f"{node.lineno}: {node.value}" for node in strings if node.value.rpartition("/")[2] in names]


def sources() -> list[str]:
    files = [path for folder in ("distill_engine", "launcher") for path in (ROOT / folder).rglob("*.py")]
    return sorted(str(path.relative_to(ROOT)) for path in files)


def test_terms_are_named_in_their_own_files_only():
    found = {path: named((ROOT / path).read_text(encoding="utf-8")) for path in sources()}
    assert not {path: lines for path, lines in found.items() if lines and not path.startswith(ALLOWED)}


def test_metrics_are_named_in_their_own_files_only():
    found = {path: named((ROOT / path).read_text(encoding="utf-8"), METRICS) for path in sources()}
    assert not {path: lines for path, lines in found.items() if lines and not path.startswith(ALLOWED_METRICS)}


def test_kinds_are_named_in_their_own_files_only():
    found = {path: named((ROOT / path).read_text(encoding="utf-8"), KINDS) for path in sources()}
    assert not {path: lines for path, lines in found.items() if lines and not path.startswith(ALLOWED_KINDS)}


def test_names_are_seen():
    assert named('x = "token_accuracy", "f1"', METRICS) == ["1: token_accuracy", "1: f1"]
    assert named('x = {"encoder_hidden": 1}') == ["1: encoder_hidden"]
    assert named('x = "valid/cer"', METRICS) == ["1: valid/cer"]


FAMILIES = re.compile(r"bart|blenderbot|pegasus|marian|m2m|nllb|whisper|\bm?t5\b", re.IGNORECASE)
# The last is ParlAI's commands: its agents have these names, too.
ALLOWED_FAMILIES = (
    "distill_engine/families/",
    *EVERYWHERE,
    "distill_engine/commands/parlai.py",
    "distill_engine/export/ctranslate2.py",  # a class of CTranslate2's own
    "distill_engine/metrics/text/error_rate.py",  # a normaliser that everybody names after the model it came with
)


def family_words(source: str) -> list[str]:
    """Lines of code, docstrings or comments that name a family."""
    return [f"{n}: {line.strip()}" for n, line in enumerate(source.splitlines(), 1) if FAMILIES.search(line)]


def test_families_are_named_in_their_own_files_only():
    found = {path: family_words((ROOT / path).read_text(encoding="utf-8")) for path in sources()}
    assert not {path: lines for path, lines in found.items() if lines and not path.startswith(ALLOWED_FAMILIES)}


def test_family_words_are_seen():
    assert family_words("x = 1\nif name == 'mbart':  # T5") == ["2: if name == 'mbart':  # T5"]

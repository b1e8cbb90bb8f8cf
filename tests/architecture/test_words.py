"""The field's words, everywhere: teacher outputs and features, not what is taught or shown or learnt in lessons; a
source of examples is a dataset, a task only the loss term (and what Slurm, ParlAI and progress bars call so)."""

import io
import re
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BANNED = re.compile(r"(?<![a-z])(taught|lessons?|teaches|unshown)(?![a-z])", re.IGNORECASE)
# Rooms where tensors of models are at hand: there, what a model gives are its features.
OF_FEATURES = tuple(f"distill_engine/{room}/" for room in ("losses", "models", "student", "teachers", "train"))
SHOWN = re.compile(r"^_?(shown|shows)$", re.IGNORECASE)
# Rooms where a task would be a source of examples.
OF_DATASETS = tuple(
    f"distill_engine/{room}/" for room in ("assembly", "data", "evaluate", "metrics", "setup", "recipe", "reports")
)
TASK = re.compile(r"(?<![A-Za-z])tasks?(?![a-z])|Tasks?(?![a-z])|TASKS?(?![A-Z])")
# What git leaves of a merge that conflicts; it was landed more than once.
UNMERGED = re.compile(r"^(<{7}|>{7})( |$)")
# The recipe's key for its datasets, and the calls of a progress bar.
ALLOWED = re.compile(r"\.tasks\b|\btasks: list\[AnySource\]|add_task")


def names(source: str) -> list[tuple[str, str]]:
    """Every name of a module with its line."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return [(token.string, token.line.strip()) for token in tokens if token.type == tokenize.NAME]


def wrong(path: str, source: str) -> list[str]:
    """Lines with a banned word; as names only, where the word also has an innocent meaning."""
    found = [line.strip() for line in source.splitlines() if BANNED.search(line) or UNMERGED.match(line)]
    for name, line in names(source) if path.startswith(OF_FEATURES + OF_DATASETS) else ():
        of_features = path.startswith(OF_FEATURES) and SHOWN.match(name)
        of_datasets = path.startswith(OF_DATASETS) and TASK.search(name) and not ALLOWED.search(line)
        found += [line] if of_features or of_datasets else []
    return found


def test_the_words_of_the_field_are_used():
    folders = ("distill_engine", "launcher", "benchmarks", "docs", "recipes", "slurm", "tests")
    ends = ("py", "md", "yaml", "sh")
    files = [path for folder in folders for end in ends for path in (ROOT / folder).rglob(f"*.{end}")]
    files = [path for path in files if path != Path(__file__) and "fixtures" not in path.parts]
    files += [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    texts = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in files}
    assert len(texts) > 600
    assert not {path: lines for path, text in texts.items() if (lines := wrong(path, text))}


def test_they_are_seen():
    assert wrong("docs/x.md", "one\n<<<<<<< HEAD\ntwo\n=======\n>>>>>>> main") == ["<<<<<<< HEAD", ">>>>>>> main"]
    assert wrong("launcher/x.py", "taught_by = 1\nx = '''of lessons'''") == ["taught_by = 1", "x = '''of lessons'''"]
    assert wrong("distill_engine/train/x.py", "shown = model()\nx = 'shown'") == ["shown = model()"]
    assert wrong("distill_engine/data/x.py", "class TokenisedTask: ...\nbar.add_task()\nx = data.tasks") == [
        "class TokenisedTask: ..."
    ]

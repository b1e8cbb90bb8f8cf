"""Files from others are data: no call in product code may run what they hold, and no name may reach a shell."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Behind --allow-pickle, which says whom one trusts; everything else reads with torch's restricted unpickler.
UNRESTRICTED = {"distill_engine/interop/parlai/checkpoint.py": 1}
FORBIDDEN = {"eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "pickle.load", "pickle.loads"}


def sources() -> list[Path]:
    return sorted(path for room in ("distill_engine", "launcher", "benchmarks") for path in (ROOT / room).rglob("*.py"))


def objections(source: str) -> list[str]:
    """`line: what is wrong` for each call that could run something foreign."""
    found = []
    for call in ast.walk(ast.parse(source)):
        if isinstance(call, ast.Call):
            options = {word.arg: ast.unparse(word.value) for word in call.keywords if word.arg}
            found += [f"{call.lineno}: {text}" for text in _of_call(ast.unparse(call.func), options)]
    return found


def _of_call(name: str, options: dict[str, str]) -> list[str]:
    found = [f"{name} runs what it is given"] if name in FORBIDDEN else []
    if name == "torch.load" and options.get("weights_only") != "True":
        found.append("torch.load without weights_only=True")
    if name.startswith("Auto") and name.endswith(".from_pretrained") and options.get("trust_remote_code") != "False":
        found.append(f"{name} without trust_remote_code=False: transformers would ask at the terminal")
    if options.get("shell", "False") != "False":
        found.append(f"{name} with a shell")
    if options.get("allow_pickle") == "True":
        found.append(f"{name} with pickles")
    return found


def test_models_come_from_their_folders_through_one_loader():
    """Its checks are worth nothing where another call of from_pretrained reads a model."""
    files = {str(path.relative_to(ROOT)): ast.parse(path.read_text(encoding="utf-8")) for path in sources()}
    calls = {
        (file, ast.unparse(call.func))
        for file, tree in files.items()
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and ast.unparse(call.func).endswith("from_pretrained")
    }
    others = ("Config.from_pretrained", "AutoTokenizer.from_pretrained", "AutoFeatureExtractor.from_pretrained")
    assert {(file, call) for file, call in calls if not call.endswith(others)} == {
        ("distill_engine/models/loading.py", "auto_class(self.config).from_pretrained")
    }


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_call_runs_what_others_wrote(path):
    found = objections(path.read_text(encoding="utf-8"))
    assert len(found) == UNRESTRICTED.get(str(path.relative_to(ROOT)), 0), "\n".join(found)


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "AutoTokenizer.from_pretrained(name)",
        "AutoModelForSeq2SeqLM.from_pretrained(name, trust_remote_code=True)",
        "subprocess.run(line, shell=True)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text)",
        "os.system(line)",
    ],
)
def test_such_calls_are_seen(line):
    assert len(objections(line)) == 1

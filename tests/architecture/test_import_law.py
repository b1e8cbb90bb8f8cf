"""Who may import whom. The table is the law; a breach is printed as file:line and the offending line. No module
imports itself over others, not inside a function and not for its types."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "distill_engine"
ANYTHING = frozenset({"*"})
MOST_LINES = 300


@dataclass(frozen=True)
class Law:
    """What one room (folder or file) may import.

    ours       rooms or modules of this package; its own room is always allowed
    forbidden  libraries that it must not name, at the top or inside a function
    """

    ours: frozenset[str]
    forbidden: frozenset[str] = frozenset()


HEAVY = frozenset({"torch", "deepspeed", "transformers", "numpy", "wandb", "tokenizers"})
NOT_ENGINE = frozenset({"deepspeed", "torch.distributed"})


def law(ours: str = "", forbidden: frozenset[str] = NOT_ENGINE) -> Law:
    return Law(frozenset(ours.split()), forbidden)


# Room -> law. Rooms that need more must change this table, and with it the design.
LAWS: dict[str, Law] = {
    "values": law(forbidden=HEAVY - {"torch"} | NOT_ENGINE),
    "registry": law("recipe.problem", HEAVY),
    "families": law("values registry data.tokens.layout"),
    "recipe": law(
        "families losses.config engine.config telemetry.config teachers.config rollouts.config student.config "
        "train.config checkpoint.config metrics.named metrics.replies data.config data.kinds registry values "
        "cluster.files",
        HEAVY,
    ),
    "metrics": law("values registry losses.quality"),
    "arithmetic": law(),
    "losses": law("values arithmetic registry recipe.problem recipe.section", NOT_ENGINE | {"transformers", "wandb"}),
    "models": law("values arithmetic families data.tokens.layout"),
    "student": law("values models families data.tokens.layout losses.config recipe.section"),
    "data": law("values registry recipe.problem recipe.section cluster.files"),
    "cluster": law(forbidden=HEAVY),
    "engine": law("values cluster models.loading recipe.problem recipe.section", frozenset({"wandb"})),
    "telemetry": law("values arithmetic registry metrics recipe.problem recipe.section cluster.files"),
    "checkpoint": law("metrics cluster recipe.section"),
    "teachers": law("values arithmetic engine.config recipe.section"),
    "rollouts": law("values teachers.protocol data.tokens.layout data.order recipe.section"),
    "train": law(
        "teachers.protocol rollouts.protocol cluster.files cluster.ranks values registry metrics checkpoint "
        "losses.objective losses.quality recipe.section",
        NOT_ENGINE | {"wandb", "transformers"},
    ),
    "setup": law(
        "values families models data cluster recipe checkpoint registry losses.config metrics.named student.layer_map"
    ),
    "export": law("values families data models checkpoint cluster.files cluster.ranks metrics.named registry"),
    "evaluate": law(
        "values families models losses metrics data cluster recipe setup.prepare teachers.protocol train.balance "
        "train.hooks train.progress train.roles"
    ),
    "pseudo_labels": law("values data evaluate metrics models recipe cluster setup.prepare"),
    "reports": law("recipe telemetry setup.run_folder evaluate checkpoint.files metrics.named"),
    "interop": law("export.protocol models.loading models.own_settings data.tokens.backends recipe"),
    "assembly": Law(ANYTHING),
    "run": Law(ANYTHING),
    "commands": Law(ANYTHING),
    "cli": Law(ANYTHING),
    "launcher": law(
        "families recipe cluster commands.terminal losses.config losses.terms registry values "
        "checkpoint.files checkpoint.retention checkpoint.space data.kinds.named",
        HEAVY,
    ),
}


@dataclass(frozen=True)
class Import:
    """One imported name: a dotted module, or a dotted module with the name taken from it."""

    target: str
    line: int
    lazy: bool


def room_of(path: Path) -> str:
    """`losses` for distill_engine/losses/x.py, `run` for distill_engine/run.py, `launcher` for launcher/x.py."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[1] if parts[0] == PACKAGE else parts[0]


def sources() -> list[Path]:
    files = [*(ROOT / PACKAGE).rglob("*.py"), *(ROOT / "launcher").rglob("*.py")]
    return sorted(path for path in files if path.relative_to(ROOT).parts != (PACKAGE, "__init__.py"))


def imports_of(tree: ast.AST, lazy: bool = False) -> Iterator[Import]:
    """Every import below `tree`; `lazy` inside a function. `import a.b` used as `a.b.c` counts as written."""
    for node in ast.iter_child_nodes(tree):
        inside = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = "." * node.level + (node.module or "")
            yield from (Import(f"{origin}.{alias.name}", node.lineno, lazy) for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield Import(f"{node.value.id}.{node.attr}", node.lineno, lazy)
        yield from imports_of(node, inside)


def is_below(target: str, module: str) -> bool:
    return target == module or target.startswith(module + ".")


def breaches(path: Path, source: str) -> list[str]:
    """Reasons why this file breaks the law, each with its place and line."""
    room, text = room_of(path), source.splitlines()
    rule = LAWS.get(room)
    if rule is None:
        return [f"{path.relative_to(ROOT)}: {room} is in no row of the import law (tests/architecture)"]
    found = [(one, reason) for one in imports_of(ast.parse(source)) if (reason := objection(room, rule, path, one))]
    return [f"{path.relative_to(ROOT)}:{one.line}: {reason}\n    {text[one.line - 1].strip()}" for one, reason in found]


def objection(room: str, rule: Law, path: Path, one: Import) -> str:
    """Why this room must not have this import; empty when it may."""
    if one.target.startswith("."):
        return "imports are absolute here"
    if is_below(one.target, PACKAGE):
        return our_objection(room, rule, one.target.removeprefix(PACKAGE).lstrip("."))
    if is_below(one.target, "launcher") and room != "launcher":
        return "nothing imports the launcher"
    for library in rule.forbidden:
        if is_below(one.target, library):
            return f"{room} must not use {library}"
    if is_below(one.target, "triton") and not path.stem.endswith("_triton"):
        return "triton is imported by *_triton.py only"
    if one.target == "wandb" and not one.lazy:
        return "wandb is imported inside the function that needs it"
    return ""


def our_objection(room: str, rule: Law, module: str) -> str:
    allowed = rule.ours | ({room} if room != "launcher" else frozenset())
    if rule.ours == ANYTHING or any(is_below(module, one) for one in allowed):
        return ""
    return f"{room} may import {', '.join(sorted(allowed))} of this package, not {module}"


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_import_law_holds(path):
    found = breaches(path, path.read_text(encoding="utf-8"))
    assert not found, "\n" + "\n".join(found)


def test_no_file_has_more_lines_than_a_concept_needs():
    lines = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in sources()}
    assert {file: count for file, count in lines.items() if count > MOST_LINES} == {}


def test_the_root_holds_entries_values_and_the_registry_only():
    held = {path.name for path in (ROOT / PACKAGE).iterdir() if path.is_file()}
    assert held == {"__init__.py", "run.py", "cli.py", "values.py", "registry.py"}
    assert (ROOT / PACKAGE / "__init__.py").read_text(encoding="utf-8").strip() == ""


def graph_of(texts: dict[str, str]) -> dict[str, set[str]]:
    """Which of these modules (name -> source) each of them imports, wherever the import stands."""
    graph: dict[str, set[str]] = {}
    for name, source in texts.items():
        targets = {one.target for one in imports_of(ast.parse(source))}
        meant = {module if module in texts else module.rpartition(".")[0] for module in targets}
        graph[name] = {module for module in meant if module in texts and module != name}
    return graph


def test_there_are_no_cycles():
    """A name taken from a module counts, not the packages around it."""
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sources()}
    graph = graph_of({name: path.read_text(encoding="utf-8") for name, path in names.items()})
    assert sum(map(len, graph.values())) > 1000
    TopologicalSorter(graph).prepare()


def test_cycles_are_seen():
    with pytest.raises(CycleError, match="cycle"):
        TopologicalSorter(graph_of({"p.a": "from p.b import x", "p.b": "def f():\n    import p.a"})).prepare()


@pytest.mark.parametrize(
    "file, source, said",
    [
        ("recipe/x.py", "import torch", "recipe must not use torch"),
        (
            "recipe/x.py",
            "def f():\n    from torch import nn",
            "x.py:2: recipe must not use torch\n    from torch import nn",
        ),
        ("recipe/x.py", "import distill_engine.student", "not student"),
        (
            "losses/x.py",
            "from distill_engine.models import adapter",
            "losses may import arithmetic, losses, recipe.problem,",
        ),
        ("losses/x.py", "from distill_engine import models", "not models"),
        ("losses/x.py", "import triton", "triton is imported by"),
        ("data/x.py", "from torch import distributed", "data must not use torch.distributed"),
        ("data/x.py", "import torch\ntorch.distributed.barrier()", "x.py:2: data must not use torch.distributed"),
        ("train/x.py", "from distill_engine.losses.kernels.prediction import p", "not losses.kernels.prediction.p"),
        ("train/x.py", "import deepspeed", "train must not use deepspeed"),
        ("telemetry/x.py", "import wandb", "wandb is imported inside"),
        ("engine/x.py", "from . import teacher", "imports are absolute"),
        ("models/x.py", "import launcher.cluster", "nothing imports the launcher"),
        ("attic/x.py", "", "attic is in no row of the import law"),
    ],
)
def test_breaches_are_seen(file, source, said):
    assert said in "\n".join(breaches(ROOT / PACKAGE / file, source))


@pytest.mark.parametrize(
    "file, source",
    [
        ("train/x.py", "from distill_engine.losses.objective import Objective"),
        ("train/x.py", "from distill_engine.train.policies import KeepBest"),
        ("telemetry/x.py", "def f():\n    import wandb"),
        ("losses/x_triton.py", "import triton.language as tl"),
        ("engine/x.py", "import deepspeed, torch.distributed"),
        ("run.py", "from distill_engine.engine import student"),
    ],
)
def test_lawful_imports_pass(file, source):
    assert breaches(ROOT / PACKAGE / file, source) == []


NEEDS_TORCH = ("_modules", "_init")  # parts of loaded models and random weights, which families import when asked


def modules_of(folder: Path) -> list[str]:
    files = [path.relative_to(ROOT).with_suffix("") for path in sorted(folder.rglob("*.py"))]
    runnable = [path.parts for path in files if path.name != "__main__" and not path.name.endswith(NEEDS_TORCH)]
    return [".".join(parts[:-1] if parts[-1] == "__init__" else parts) for parts in runnable]


@pytest.mark.parametrize(
    "folder",
    [
        "distill_engine/recipe",
        "distill_engine/interop/parlai/options",
        "distill_engine/families",
        "distill_engine/losses/terms",
        "distill_engine/data/kinds",
        "distill_engine/metrics/token",
        "distill_engine/metrics/text",
        "launcher",
    ],
)
def test_recipes_and_the_launcher_are_read_without_torch(folder):
    modules = modules_of(ROOT / folder)
    code = (
        f"import sys, importlib; [importlib.import_module(name) for name in {modules!r}]; "
        f"print([name for name in {sorted(HEAVY)!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]", f"importing {folder} loaded {done.stdout.strip()}"

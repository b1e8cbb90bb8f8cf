"""YAML as recipes mean it: text -> plain data with line numbers, and plain data -> text that reads back equal.

Scalars follow YAML 1.2, not 1.1: `1e-4` is a number, `no` and `on` are words, `010` is no octal and
`12:30` no base 60. A whole number may be written `1e5`. Keys given twice are problems, not silent overwrites.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from distill_engine.recipe.problem import Problem

Path = tuple[str | int, ...]

NULL_TAG, BOOL_TAG = "tag:yaml.org,2002:null", "tag:yaml.org,2002:bool"
INT_TAG, FLOAT_TAG = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
MERGE_TAG = "tag:yaml.org,2002:merge"

# tag -> (pattern, first characters it can have); the first tag that matches wins.
SCALARS: dict[str, tuple[str, list[str]]] = {
    NULL_TAG: (r"^(?:null|Null|NULL|~|)$", ["n", "N", "~", ""]),
    BOOL_TAG: (r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    INT_TAG: (r"^[-+]?(?:0|[1-9][0-9_]*)$", list("-+0123456789")),
    FLOAT_TAG: (
        r"^(?:[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+|[0-9][0-9_]*(?=[eE]))(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        list("-+.0123456789"),
    ),
    MERGE_TAG: (r"^<<$", ["<"]),
}


class RecipeLoader(yaml.SafeLoader):
    """SafeLoader with the scalars above."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


class RecipeDumper(yaml.SafeDumper):
    """SafeDumper that quotes exactly what RecipeLoader would otherwise read as something else."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        """Write every value out; anchors only confuse a reader."""
        return True


for _tag, (_pattern, _first) in SCALARS.items():
    RecipeLoader.add_implicit_resolver(_tag, re.compile(_pattern), _first)
    RecipeDumper.add_implicit_resolver(_tag, re.compile(_pattern), _first)


def _construct_float(loader: RecipeLoader, node: yaml.ScalarNode) -> float | int:
    """`1e5` is a whole number to anyone who writes it, so that counts may be written so."""
    value: float = loader.construct_yaml_float(node)
    whole = "." not in node.value and value.is_integer()
    return int(value) if whole else value


def _represent_list(dumper: RecipeDumper, values: list[Any]) -> yaml.Node:
    """A list of plain values on one line, a list of sections one below the other."""
    plain = not any(isinstance(value, dict | list) for value in values)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=plain)


RecipeLoader.add_constructor(FLOAT_TAG, _construct_float)
RecipeDumper.add_representer(list, _represent_list)


@dataclass
class YamlDocument:
    """One parsed YAML text.

    data      plain dicts, lists and scalars; None for an empty text or one that cannot be parsed
    lines     path of every key and list entry -> its 1-based line
    problems  what is wrong with the text itself: syntax, keys given twice
    """

    data: Any = None
    lines: dict[Path, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def line_of(self, path: Path) -> int | None:
        """The line of a path, or of the nearest enclosing key that has one."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path)


def parse_yaml(text: str) -> YamlDocument:
    """Parse one document; nothing is raised for bad text, it becomes a problem."""
    document = YamlDocument()
    try:
        loader = RecipeLoader(text)
        node = loader.get_single_node()
        if node is not None:
            _walk(node, (), document, set())
            document.data = loader.construct_document(node)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        document.problems.append(_syntax_problem(error))
    return document


def dump_yaml(data: Any) -> str:
    """Deterministic YAML, keys in the given order, one to a line; `parse_yaml` gives equal data."""
    text: str = yaml.dump(
        data, Dumper=RecipeDumper, sort_keys=False, allow_unicode=True, default_flow_style=False, width=100
    )
    return text


def _walk(node: yaml.Node, path: Path, document: YamlDocument, visited: set[int]) -> None:
    """Note lines and doubled keys below `node`; an aliased node is walked once, so cycles end."""
    if id(node) in visited:
        return
    visited.add(id(node))
    seen: dict[str | int, int] = {}
    for key, child, line in _children(node):
        here = (*path, key)
        if key in seen:
            document.problems.append(
                Problem(
                    dotted(here),
                    f"is given twice, first on line {seen[key]}",
                    "A key has one value",
                    "Delete one of the two",
                    line,
                )
            )
        seen.setdefault(key, line)
        document.lines.setdefault(here, line)
        _walk(child, here, document, visited)


def _children(node: yaml.Node) -> Iterator[tuple[str | int, yaml.Node, int]]:
    """Key (or position), value node and 1-based line of each entry."""
    if isinstance(node, yaml.MappingNode):
        for key_node, value_node in node.value:
            if isinstance(key_node, yaml.ScalarNode) and key_node.tag != MERGE_TAG:
                yield key_node.value, value_node, key_node.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for index, value_node in enumerate(node.value):
            yield index, value_node, value_node.start_mark.line + 1


def _syntax_problem(error: Exception) -> Problem:
    mark = getattr(error, "problem_mark", None)
    reason = getattr(error, "problem", None) or str(error)
    context = getattr(error, "context", None)
    what = f"this is not valid YAML: {f'{context}: ' if context else ''}{reason}"
    fix = "Check indentation, colons and quotes at this line and the one above"
    return Problem("", what, fix=fix, line=mark.line + 1 if mark else None)


def dotted(path: Path) -> str:
    """`data.datasets.0.weight` for ("data", "datasets", 0, "weight")."""
    return ".".join(str(part) for part in path)

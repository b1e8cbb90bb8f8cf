"""Slurm's short forms written out: `gpu[01-03,7]-ib[0-1],login` and `2(x3),1`. Standard library only."""

from __future__ import annotations

import re
from itertools import product

MAX_HOSTS = 65_536  # a list beyond that is a typing error, not a cluster
_BRACKET = re.compile(r"\[([^\[\]]*)\]")
_RANGE = re.compile(r"(?P<first>\d+)(?:-(?P<last>\d+))?")
_TASKS = re.compile(r"(?P<tasks>\d+)(?:\(x(?P<times>\d+)\))?")


def expand_hostlist(text: str) -> list[str]:
    """Host names in the order of the list; leading zeros of ranges are kept.

    Raises ValueError that says which part is not understood.
    """
    hosts: list[str] = []
    for entry in _split_outside_brackets(text):
        hosts += _expand_entry(entry, text)
        if len(hosts) > MAX_HOSTS:
            raise ValueError(f"host list {text!r} names more than {MAX_HOSTS} hosts")
    if not hosts:
        raise ValueError(f"host list {text!r} names no host")
    return hosts


def expand_tasks_per_node(text: str) -> list[int]:
    """`2(x3),1` -> [2, 2, 2, 1]. Raises ValueError for anything else."""
    counts: list[int] = []
    for part in text.split(","):
        found = _TASKS.fullmatch(part.strip())
        times = int(found["times"] or 1) if found else 0
        if found is None or not 0 < times <= MAX_HOSTS:
            raise ValueError(f"tasks per node {text!r}: {part!r} is not of the form 4 or 4(x2)")
        counts += [int(found["tasks"])] * times
    return counts


def _split_outside_brackets(text: str) -> list[str]:
    entries, depth, start = [], 0, 0
    for position, letter in enumerate(text):
        depth += (letter == "[") - (letter == "]")
        if depth not in (0, 1):
            raise ValueError(f"host list {text!r}: brackets do not match at character {position + 1}")
        if letter == "," and depth == 0:
            entries.append(text[start:position])
            start = position + 1
    if depth:
        raise ValueError(f"host list {text!r}: a bracket is not closed")
    entries.append(text[start:])
    return [entry.strip() for entry in entries if entry.strip()]


def _expand_entry(entry: str, text: str) -> list[str]:
    pieces = _BRACKET.split(entry)  # fixed text and bracket contents in turn
    choices = [_numbers(piece, text) if index % 2 else [piece] for index, piece in enumerate(pieces)]
    size = 1
    for choice in choices:
        size *= len(choice)
    if size > MAX_HOSTS:
        raise ValueError(f"host list {text!r} names more than {MAX_HOSTS} hosts")
    return ["".join(parts) for parts in product(*choices)]


def _numbers(content: str, text: str) -> list[str]:
    numbers: list[str] = []
    for part in content.split(","):
        found = _RANGE.fullmatch(part.strip())
        if found is None:
            raise ValueError(f"host list {text!r}: {part!r} is neither a number nor a range")
        first, last = found["first"], found["last"] or found["first"]
        count = int(last) - int(first) + 1
        if not 0 < count <= MAX_HOSTS:
            raise ValueError(f"host list {text!r}: the range {part!r} is empty or too long")
        numbers += [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    return numbers

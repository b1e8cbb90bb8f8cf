"""ParlAI's older text format ("fbdialog"): numbered lines, a new episode where the number starts again.

    1 a line of context
    2 hello there<TAB>hi !|hello
    3 how are you ?<TAB>fine<TAB>reward<TAB>candidate|candidate

Lines without a label are context of the next line that has one, joined by line breaks. `\\n` in a line is a line
break. Several labels stand between bars; one of them is used (see parlai_text.py). Rewards and candidates are left
out, and so is context that no label follows.
"""

from __future__ import annotations

from collections.abc import Iterator

from distill_engine.data.episodes import Episode, Turn
from distill_engine.data.errors import DataError, shown
from distill_engine.data.formats.parlai_text import chosen_label
from distill_engine.data.formats.text_files import numbered_lines


def read_fbdialog(path: str) -> Iterator[Episode]:
    """The episodes of a file, in its order.

    Raises DataError with file and line number where a line begins with no number; and as `numbered_lines` does.
    """
    turns: list[Turn] = []
    context, last = "", None
    for number, content in numbered_lines(path):
        line = content.strip().replace("\\n", "\n")
        if not line:
            continue
        count, text, labels = _parsed(line, path, number)
        if last is None or count <= last:
            if turns:
                yield Episode(tuple(turns))
            turns, context = [], text
        else:
            context = f"{context}\n{text}" if context else text
        last = count
        if labels:
            turns.append(Turn(context, chosen_label(labels.split("|"), number)))
            context = ""
    if turns:
        yield Episode(tuple(turns))


def _parsed(line: str, path: str, number: int) -> tuple[int, str, str]:
    """Number, text and labels. A line that is a number alone says that number, as ParlAI reads it."""
    head, space, rest = line.partition(" ")
    try:
        count = int(head)
    except ValueError as error:
        raise DataError(
            f"{path}, line {number}: begins with {shown(head)}, not with a number: {shown(line)}. A line is "
            "`N text`, and `N text<TAB>label` where somebody answers; N starts again with each episode. Correct it."
        ) from error
    fields = (rest if space else line).split("\t", 2)
    return count, fields[0].strip(), fields[1].strip() if len(fields) > 1 else ""

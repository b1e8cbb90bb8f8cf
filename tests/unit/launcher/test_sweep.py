"""The table at the end of a sweep."""

import json

from launcher.sweep import write_table


def test_best_first_and_unfinished_last(tmp_path):
    for name, value, setting in (("0", 9.5, "a=1"), ("1", None, "a=2"), ("2", 7.25, "a=3 | b")):
        run = tmp_path / name
        run.mkdir()
        (run / "settings.txt").write_text(setting + "\n")
        if value is not None:
            line = {"kind": "valid", "step": 4, "seconds": 1.0, "values": {"valid/ppl": value}}
            (run / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    (tmp_path / "elsewhere").mkdir()
    text = write_table(tmp_path)
    rows = [line.split(" | ")[0].strip("| ") for line in text.splitlines()]
    assert rows == ["run", rows[1], "2", "0", "1"]
    assert "7.25" in text.splitlines()[2] and "a=3 \\| b" in text
    assert (tmp_path / "table.md").read_text() == text + "\n"

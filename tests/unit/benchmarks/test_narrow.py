"""benchmarks/narrow.py: what is told of its runs."""

import pytest
from narrow import markdown, share_closed, summarise


def run(ppl: float) -> dict:
    return {"valid_ppl": ppl, "teacher_ppl": 2.0, "steps": 120}


def test_the_share_is_of_the_gap_in_log_perplexity():
    assert share_closed(8.0, 2.0, 2.0) == pytest.approx(1)
    assert share_closed(8.0, 8.0, 2.0) == 0
    assert share_closed(8.0, 4.0, 2.0) == pytest.approx(0.5)
    found = summarise({seed: {"random": run(8.0), "teacher_width": run(ppl)} for seed, ppl in ((1, 4.0), (2, 2.0))})
    assert found["mean"]["share_of_gap_closed"] == pytest.approx(0.75) and found["aim_is_met"] and found["steps"] == 120
    assert found["spread"]["teacher_width_ppl"] == 2.0 and found["seeds"]["2"]["random_ppl"] == 8.0
    assert "| 1 | 8.0000 | 4.0000 | 2.0000 | 50.0% |" in markdown(found)
    assert not summarise({1: {"random": run(8.0), "teacher_width": run(4.1)}})["aim_is_met"]

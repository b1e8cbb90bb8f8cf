"""benchmarks/watching.py on the smallest preset: a real run, and arithmetic that fits together."""

import pytest


def test_one_complete_line(one_line):
    result = one_line("watching.py", "--preset", "tiny", "--pairs", "3")
    assert (result["preset"], result["pairs"], result["ranks"], result["terms"]) == ("tiny", 3, 1, 9)
    assert 0 < result["ratio_p20"] <= result["ratio"] <= result["ratio_p80"]
    assert result["seconds_per_measured_step"] > result["seconds_per_step"] > 0
    assert result["share_at_default"] == pytest.approx((result["ratio"] - 1) / result["default_interval"])

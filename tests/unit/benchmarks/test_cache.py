"""benchmarks/cache.py on the smallest preset: real runs, equal to the bit, and one complete line."""


def test_one_complete_line(one_line, tmp_path):
    result = one_line("cache.py", "--preset", "tiny", "--pairs", "3", "--batches", "2", "--folder", str(tmp_path))
    assert (result["preset"], result["k"], result["pairs"], result["bit_equal"]) == ("tiny", "all", 3, True)
    assert result["live_seconds_per_step"] > 0 and result["cached_seconds_per_step"] > 0 and result["ratio"] > 0.1
    assert set(result["time_shares"]["live"]) == set(result["time_shares"]["cached"])
    assert not list(tmp_path.iterdir()), "nothing stays"

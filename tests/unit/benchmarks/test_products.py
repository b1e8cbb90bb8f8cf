"""benchmarks/products.py on the smallest preset: a real run of both libraries, and figures that fit together."""


def test_one_complete_line(one_line):
    result = one_line("products.py", "--preset", "tiny", "--pairs", "2")
    assert (result["preset"], result["precision"], result["pairs"], result["threads"]) == ("tiny", "fp32", 2, 1)
    assert len(result["rates"]) == 7
    for kind in ("seconds", "processor_seconds"):
        assert set(result[kind]) == {"mkl", "onednn"} and min(result[kind].values()) > 0
        assert result[f"ratio_of_{kind}"] > 0

"""benchmarks/products.py on the smallest preset: a real run of both libraries, and figures that fit together."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def test_one_complete_line():
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "products.py"), "--preset", "tiny", "--pairs", "2"],
        capture_output=True, text=True, timeout=300, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = done.stdout.splitlines()
    result = json.loads(line)
    assert (result["preset"], result["precision"], result["pairs"], result["threads"]) == ("tiny", "fp32", 2, 1)
    assert len(result["rates"]) == 7
    for kind in ("seconds", "processor_seconds"):
        assert set(result[kind]) == {"mkl", "onednn"} and min(result[kind].values()) > 0
        assert result[f"ratio_of_{kind}"] > 0

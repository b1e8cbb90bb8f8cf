"""benchmarks/cache.py on the smallest preset: real runs, equal to the bit, and one complete line."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def test_one_complete_line(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    command = [sys.executable, str(ROOT / "benchmarks" / "cache.py"), "--preset", "tiny", "--pairs", "3"]
    done = subprocess.run(
        [*command, "--batches", "2", "--folder", str(tmp_path)],
        capture_output=True, text=True, timeout=300, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = done.stdout.splitlines()
    result = json.loads(line)
    assert (result["preset"], result["k"], result["pairs"], result["bit_equal"]) == ("tiny", "all", 3, True)
    assert result["live_seconds_per_step"] > 0 and result["cached_seconds_per_step"] > 0 and result["ratio"] > 0.1
    assert set(result["time_shares"]["live"]) == set(result["time_shares"]["cached"])
    assert not list(tmp_path.iterdir()), "nothing stays"

"""Known noise is gone, real messages and errors are not."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]

_PROGRAM = """
import logging, os, sys, warnings
from distill_engine.telemetry.quiet import quiet_libraries

rank = int(sys.argv[1])
quiet_libraries(rank)
quiet_libraries(rank)
assert "torch" not in sys.modules
logger = logging.getLogger("DeepSpeed")
logger.propagate = False
logger.addHandler(logging.StreamHandler(sys.stdout))
logger.setLevel(logging.INFO)  # as deepspeed does when it is imported
logger.info("info of a library")
logger.warning("Setting accelerator to CPU. If you have GPU or other accelerator, we were unable to detect it.")
logger.warning("a warning worth reading")
logger.error("an error")
warnings.warn("`torch.distributed.all_gather_into_tensor` is deprecated. Please use something.", FutureWarning)
warnings.warn("a python warning worth reading")
names = ("TRANSFORMERS_VERBOSITY", "TOKENIZERS_PARALLELISM")
print("verbosity {}, parallelism {}".format(*(os.environ[name] for name in names)))
raise RuntimeError("a real error")
"""


def outcome(rank, **environment):
    return subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(rank)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", **environment},
    )


def test_rank_0_hears_what_is_worth_hearing():
    done = outcome(0)
    assert done.stdout.splitlines() == [
        "a warning worth reading",
        "an error",
        "verbosity error, parallelism false",
    ]
    assert "a python warning worth reading" in done.stderr
    assert "deprecated" not in done.stderr
    assert done.stderr.rstrip().endswith("RuntimeError: a real error")


def test_other_ranks_hear_errors_only():
    done = outcome(1)
    assert done.stdout.splitlines()[0] == "an error"
    assert "a python warning" not in done.stderr
    assert done.stderr.rstrip().endswith("RuntimeError: a real error")


def test_a_users_own_setting_wins():
    done = outcome(0, TRANSFORMERS_VERBOSITY="debug")
    assert "verbosity debug, parallelism false" in done.stdout

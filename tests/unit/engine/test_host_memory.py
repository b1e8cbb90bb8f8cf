"""Memory that is let go is there for the next step, in a process of its own: the choice is the process'."""

import os
import platform
import subprocess
import sys

import pytest

from distill_engine.engine import host_memory

CODE = """
import resource, runpy, sys
keep = runpy.run_path(sys.argv[1])["keep_freed_memory"]
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        block = b"x" * (48 << 20)
        del block
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
before, kept = faults(), keep()
faults()  # the first time a block is made there are pages to ask for
print(int(kept), before, faults())
"""


def answer(**environment):
    plain = {name: value for name, value in os.environ.items() if name not in host_memory._USERS}
    command = [sys.executable, "-S", "-c", CODE, host_memory.__file__]
    done = subprocess.run(command, env=plain | environment, capture_output=True, text=True, check=True)
    return [int(word) for word in done.stdout.split()]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such choice")
def test_blocks_are_kept_unless_the_user_chose_otherwise():
    kept, before, later = answer()
    assert kept == 1 and before > 0 and later <= before // 100, (kept, before, later)
    kept, before, later = answer(MALLOC_TRIM_THRESHOLD_="131072")
    assert kept == 0 and later >= before // 2, (kept, before, later)

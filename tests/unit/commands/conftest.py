"""A program in a terminal of its own, read as a person reads it: without colours and movements."""

import os
import pty
import re
import select
import subprocess
import time

import pytest

LIMIT_SECONDS = 120  # of one wait; a free machine needs a few seconds


class Terminal:
    """A program in a terminal of its own."""

    def __init__(self, command: list[str], env: dict[str, str]) -> None:
        self.inside, outside = pty.openpty()
        self.process = subprocess.Popen(command, stdin=outside, stdout=outside, stderr=outside, env=env)
        os.close(outside)
        self.said = ""

    @property
    def text(self) -> str:
        """All that was written, without colours and movements."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.said)

    def type(self, line: str) -> None:
        """A line as if typed, with the return key."""
        os.write(self.inside, line.encode() + b"\r")

    def until(self, pattern: str) -> None:
        """Wait until the pattern has been written."""
        deadline = time.monotonic() + LIMIT_SECONDS
        while not re.search(pattern, self.text):
            assert time.monotonic() < deadline, f"waited for {pattern}:\n{self.text}"
            ready, _, _ = select.select([self.inside], [], [], 0.5)
            if ready:
                try:
                    self.said += os.read(self.inside, 65536).decode(errors="replace")
                except OSError:  # the program has ended and closed its terminal
                    assert re.search(pattern, self.text), self.text
            else:
                assert self.process.poll() is None, f"it ended before {pattern}:\n{self.text}"


@pytest.fixture
def terminal():
    """Starts programs in terminals; what still runs at the end of the test is killed."""
    started = []

    def start(command: list[str], env: dict[str, str]) -> Terminal:
        started.append(Terminal(command, env))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.wait()
        os.close(one.inside)

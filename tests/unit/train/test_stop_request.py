"""Signals in a process of their own: the first sets a flag, a person's second one ends the process."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from distill_engine.train.stop_request import STOP_SIGNALS, StopRequest

WAITING = """
import os, signal, sys
from distill_engine.train import stop_request
from distill_engine.train.stop_request import StopRequest
stop_request.REPEAT_SECONDS = float(sys.argv[1])
arrived, tell = os.pipe()
os.set_blocking(tell, False)
signal.set_wakeup_fd(tell)  # a signal that comes early is not missed
request = StopRequest()
request.listen()
print(request.requested, flush=True)
while True:
    os.read(arrived, 1)
    print(request.requested, flush=True)
"""


def test_nothing_is_requested_before_a_signal_and_handlers_are_only_installed_when_told():
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    assert StopRequest().requested is False
    assert {number: signal.getsignal(number) for number in STOP_SIGNALS} == before


@contextmanager
def waiting(repeat_seconds: float) -> Iterator[subprocess.Popen]:
    words = [sys.executable, "-c", WAITING, str(repeat_seconds)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "False\n"
            yield process
        finally:
            process.kill()


def test_a_second_ctrl_c_ends_the_process():
    with waiting(repeat_seconds=60) as process:
        for number, said in ((signal.SIGTERM, "True\n"), (signal.SIGINT, "True\n"), (signal.SIGINT, "")):
            os.kill(process.pid, number)
            assert process.stdout.readline() == said
        assert process.wait(timeout=60) == -signal.SIGINT


@pytest.mark.parametrize("number", [n for n in STOP_SIGNALS if n != signal.SIGINT], ids=lambda n: n.name)
def test_what_machinery_repeats_does_nothing_for_a_while(number):
    with waiting(repeat_seconds=60) as process:
        for _ in range(4):
            os.kill(process.pid, number)
            assert process.stdout.readline() == "True\n"
    with waiting(repeat_seconds=0) as process:
        os.kill(process.pid, number)
        assert process.stdout.readline() == "True\n"
        os.kill(process.pid, number)
        assert process.wait(timeout=60) == -number


def test_what_is_ignored_already_stays_so():
    """A run started with nohup outlives its terminal."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        StopRequest().listen([signal.SIGHUP])
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_before_training_a_request_ends_the_process_and_then_it_waits_for_the_step():
    ended: list[bool] = []
    request = StopRequest(end_early=lambda: ended.append(True))
    request.ask()
    assert ended == [True]
    request = StopRequest(end_early=lambda: ended.append(True))
    request.begin()
    request.ask()
    assert ended == [True] and request.requested


def test_signals_other_than_the_first_still_only_set_the_flag():
    request = StopRequest()
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        request.listen([signal.SIGUSR1, signal.SIGTERM])
        os.kill(os.getpid(), signal.SIGUSR1)
        assert request.requested
        os.kill(os.getpid(), signal.SIGTERM)  # its own first one
        assert request.requested
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

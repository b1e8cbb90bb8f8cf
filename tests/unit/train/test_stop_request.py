"""Signals in a process of their own: the first sets a flag, the second ends the process."""

import os
import signal
import subprocess
import sys

import pytest

from distill_engine.train.stop_request import STOP_SIGNALS, StopRequest

WAITING = """
import os, signal
from distill_engine.train.stop_request import StopRequest
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


@pytest.mark.parametrize("number", STOP_SIGNALS, ids=lambda n: n.name)
def test_first_signal_sets_the_flag_the_second_has_its_default_effect(number):
    with subprocess.Popen([sys.executable, "-c", WAITING], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "False\n"
            os.kill(process.pid, number)
            assert process.stdout.readline() == "True\n"
            os.kill(process.pid, number)
            assert process.wait(timeout=60) == -number
        finally:
            process.kill()


def test_signals_other_than_the_first_still_only_set_the_flag():
    request = StopRequest()
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        request.listen([signal.SIGUSR1, signal.SIGTERM])
        os.kill(os.getpid(), signal.SIGUSR1)
        assert request.requested
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
        os.kill(os.getpid(), signal.SIGTERM)  # its own first one
        assert request.requested
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

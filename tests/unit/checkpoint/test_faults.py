"""The switch that breaks the program on purpose does nothing unless asked, and only where asked."""

import errno

import pytest

from distill_engine.checkpoint import faults
from distill_engine.checkpoint.faults import POINTS, fault_point


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    faults._passes.clear()
    monkeypatch.setenv("RANK", "1")
    yield
    faults._passes.clear()


def test_unset_it_does_nothing(monkeypatch):
    monkeypatch.delenv(faults.VARIABLE, raising=False)
    for name in POINTS:
        fault_point(name)


def test_full_disk_hits_only_the_named_point_rank_and_pass(monkeypatch):
    monkeypatch.setenv(faults.VARIABLE, "enospc:in_part@1#2")
    fault_point("in_part")
    fault_point("in_prune")
    with pytest.raises(OSError) as caught:
        fault_point("in_part")
    assert caught.value.errno == errno.ENOSPC
    fault_point("in_part")
    monkeypatch.setenv(faults.VARIABLE, "enospc:in_part@0")
    fault_point("in_part")


def test_a_hang_is_where_it_was_asked_for_and_waits_for_ever(monkeypatch):
    class WaitedTwice(Exception):
        pass

    waits = []

    def sleep(seconds):
        waits.append(seconds)
        if len(waits) == 2:
            raise WaitedTwice

    monkeypatch.setattr(faults.time, "sleep", sleep)
    monkeypatch.setenv(faults.VARIABLE, "hang:in_step@1#2")
    fault_point("in_step")
    assert waits == []
    with pytest.raises(WaitedTwice):
        fault_point("in_step")


@pytest.mark.parametrize("text", ["hang:", "nowhere", "in_part@x", "in_part#", "enospc:"])
def test_a_typo_is_an_error(monkeypatch, text):
    monkeypatch.setenv(faults.VARIABLE, text)
    with pytest.raises(ValueError, match="DISTILL_FAULT"):
        fault_point("in_part")

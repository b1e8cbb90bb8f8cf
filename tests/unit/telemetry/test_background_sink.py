"""A sink in a thread of its own is made at the first record, keeps the order, and never holds its caller up."""

import threading

from distill_engine.telemetry.background_sink import BackgroundSink
from distill_engine.telemetry.sinks import Record

LIMIT_SECONDS = 60


class Slow:
    """Takes a record when it is allowed to."""

    def __init__(self, gate):
        self.gate, self.records, self.closed, self.thread = gate, [], [], threading.current_thread()

    def write(self, record):
        assert self.gate.wait(LIMIT_SECONDS)
        self.records.append(record.step)

    def close(self, status):
        self.closed.append(status)


def at(step):
    return Record("train", step, float(step), {"train/total": 1.0})


def test_nothing_is_made_before_the_first_record_and_a_slow_sink_holds_nobody_up():
    gate, made, said = threading.Event(), [], []

    def make():
        made.append(Slow(gate))
        return made[0]

    sink = BackgroundSink(make, said.append)
    assert made == []
    for step in range(100):
        sink.write(at(step))  # returns although nothing is taken yet
    gate.set()
    sink.close("finished")
    assert made[0].records == list(range(100)) and made[0].closed == ["finished"] and said == []
    assert made[0].thread is not threading.current_thread()


def test_a_start_that_ends_before_its_first_record_makes_no_sink_unless_the_run_is_finished():
    made = []

    def make():
        made.append(Slow(threading.Event()))
        return made[-1]

    for status in ("failed", "stopped"):
        BackgroundSink(make, lambda text: None).close(status)
    assert made == []
    BackgroundSink(make, lambda text: None).close("finished")
    assert made[0].closed == ["finished"]


def test_a_sink_that_never_answers_costs_a_bounded_time():
    gate, said = threading.Event(), []
    sink = BackgroundSink(lambda: Slow(gate), said.append, close_seconds=0.05)
    sink.write(at(1))
    sink.close("stopped")
    assert said == ["a dashboard has not answered for 0 s; what it lacks stays here."]
    gate.set()


def test_a_sink_that_cannot_be_made_is_one_line():
    said = []

    def make():
        raise OSError(13, "Permission denied")

    sink = BackgroundSink(make, said.append)
    sink.write(at(1))
    sink.close("finished")
    assert said == ["a dashboard cannot be used: PermissionError: [Errno 13] Permission denied. Training goes on."]

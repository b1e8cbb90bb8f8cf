"""A group writes to all its sinks, checks names, and outlives whatever fails."""

import pytest

from distill_engine.telemetry.metrics import UnknownMetricError
from distill_engine.telemetry.sinks import Display, Record, SinkGroup


class Keeper:
    def __init__(self):
        self.records = []
        self.closed = []

    def write(self, record):
        self.records.append(record)

    def close(self, status):
        self.closed.append(status)


class Screen(Keeper):
    def __init__(self):
        super().__init__()
        self.shown = []

    def phase(self, name):
        self.shown.append(("phase", name))

    def advance(self, step, until_validation, eta_seconds):
        self.shown.append(("advance", step, until_validation, eta_seconds))

    def message(self, text):
        self.shown.append(("message", text))


class Broken(Screen):
    def write(self, record):
        raise OSError(28, "No space left on device")

    def close(self, status):
        super().close(status)
        raise OSError("again")


RECORD = Record("train", 3, 1.5, {"train/total": 2.0})


def test_a_failing_sink_is_closed_reported_once_and_dropped():
    warnings, broken, keeper = [], Broken(), Keeper()
    group = SinkGroup([broken, keeper], warnings.append)
    for _ in range(3):
        group.write(RECORD)
    assert keeper.records == [RECORD] * 3
    assert broken.closed == ["failed"]
    assert warnings == [
        "Broken failed and gets no more records of this run: OSError: [Errno 28] No space left on device. "
        "Training goes on."
    ]
    group.close("finished")
    assert (keeper.closed, broken.closed) == (["finished"], ["failed"])


def test_the_warning_may_be_shown_on_the_display_that_failed():
    broken, screen = Broken(), Screen()
    group = SinkGroup([broken, screen], lambda text: group.message(text))
    group.write(RECORD)
    assert len(screen.shown) == 1 and broken.shown == []


def test_an_unregistered_name_is_a_mistake_of_the_program():
    keeper = Keeper()
    with pytest.raises(UnknownMetricError, match="train/totl"):
        SinkGroup([keeper], lambda text: None).write(Record("train", 1, 0.0, {"train/totl": 1.0}))
    assert keeper.records == []


def test_only_displays_hear_about_phases_and_messages():
    keeper, screen = Keeper(), Screen()
    assert isinstance(screen, Display) and not isinstance(keeper, Display)
    group = SinkGroup([keeper, screen], lambda text: pytest.fail(text))
    group.phase("training")
    group.advance(4, "16 steps", 12.0)
    group.advance(5)
    group.message("hello")
    assert screen.shown == [
        ("phase", "training"),
        ("advance", 4, "16 steps", 12.0),
        ("advance", 5, None, None),
        ("message", "hello"),
    ]


def test_record_is_write_in_plain_values():
    keeper = Keeper()
    SinkGroup([keeper], lambda text: pytest.fail(text)).record("train", 3, 1.5, {"train/total": 2.0})
    assert keeper.records == [RECORD]


def test_a_group_without_sinks_accepts_everything():
    group = SinkGroup([], lambda text: pytest.fail(text))
    group.write(RECORD)
    group.phase("training")
    group.rewind(1)
    group.close("stopped")


def test_a_sink_that_fails_to_close_does_not_stop_the_others():
    warnings, keeper = [], Keeper()
    group = SinkGroup([Broken(), keeper], warnings.append)
    group.close("stopped")
    group.close("stopped")
    assert keeper.closed == ["stopped"] and len(warnings) == 1

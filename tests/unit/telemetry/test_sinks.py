"""A group writes to all its sinks, checks names, and outlives whatever fails."""

import pytest

from distill_engine.telemetry.metrics import UnknownMetricError
from distill_engine.telemetry.sinks import Display, Persistent, Record, SinkGroup


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


class Away(Keeper):
    """Fails while it is away."""

    def __init__(self):
        super().__init__()
        self.away, self.tries = False, 0

    def write(self, record):
        self.tries += 1
        if self.away:
            raise OSError(28, "No space left on device")
        super().write(record)


class Hand:
    """A clock that only moves when it is told to, or when somebody sleeps."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


def at(step, kind="train"):
    return Record(kind, step, step / 2, {"train/total": 2.0})


@pytest.fixture
def patient():
    """A sink that may be away, what is said of it, the clock, and what keeps it going."""
    sink, said, clock = Away(), [], Hand()
    make = lambda **more: Persistent(sink, said.append, clock=clock, sleep=clock.sleep, **more)  # noqa: E731
    return sink, said, clock, make


@pytest.fixture
def hasty(monkeypatch):
    monkeypatch.setattr("distill_engine.telemetry.sinks.LAST_PAUSE_SECONDS", 0.0)


def test_a_failing_display_is_closed_reported_once_and_dropped():
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


def test_a_sink_that_fails_for_ever_is_reported_and_does_not_stop_the_others(hasty):
    warnings, away, keeper = [], Away(), Keeper()
    away.away = True
    group = SinkGroup([away, keeper], warnings.append)
    for _ in range(3):
        group.write(RECORD)
    assert keeper.records == [RECORD] * 3
    assert warnings == [
        "Away failed: OSError: [Errno 28] No space left on device. Its records are kept and tried again; "
        "training goes on."
    ]
    group.close("finished")
    assert (keeper.closed, away.closed) == (["finished"], ["finished"])
    assert warnings[1:] == [
        "Away gave up (OSError: [Errno 28] No space left on device): 3 records (step 3) missing there."
    ]


def test_what_could_not_be_written_is_written_later_in_order_and_once(patient):
    sink, said, clock, make = patient
    persistent = make()
    persistent.write(at(1))
    sink.away = True
    for step in (2, 3):
        persistent.write(at(step))
    sink.away = False
    clock.now += 0.5
    persistent.write(at(4))  # not yet: the pause is a second
    assert [record.step for record in sink.records] == [1]
    clock.now += 0.5
    persistent.write(at(5))
    persistent.write(at(6))
    persistent.close("finished")
    assert [record.step for record in sink.records] == [1, 2, 3, 4, 5, 6]
    assert len(said) == 2 and said[1] == "Away works again; records that had to wait and are written now: 4."


def test_pauses_double_up_to_a_minute_and_a_success_makes_them_short_again(patient):
    sink, _, clock, make = patient
    persistent, tried = make(), []
    sink.away = True
    for step in range(600):
        before = sink.tries
        persistent.write(at(step))
        if sink.tries > before:
            tried.append(step)
        clock.now += 1
    assert tried[:7] == [0, 1, 3, 7, 15, 31, 63] and tried[7:] == list(range(123, 600, 60))
    sink.away = False
    clock.now += 60
    persistent.write(at(600))
    sink.away, before = True, clock.now
    persistent.write(at(601))
    clock.now = before + 1
    sink.away = False
    persistent.write(at(602))
    assert [record.step for record in sink.records] == list(range(603))


def test_more_than_is_kept_is_lost_said_and_marked_where_it_is_missing(patient):
    sink, said, clock, make = patient
    persistent = make(keep=3)
    sink.away = True
    for step in range(1, 11):
        persistent.write(at(step))
    sink.away = False
    clock.now += 60
    persistent.write(at(11))
    persistent.write(at(12))
    persistent.close("finished")
    gap, *rest = sink.records
    assert (gap.kind, gap.step, gap.values, gap.text) == (
        "event", 8, {"run/missing_records": 7.0}, "7 records (steps 1 to 7) missing here",
    )  # fmt: skip
    assert [record.step for record in rest] == [8, 9, 10, 11, 12]
    assert "Away lacks 7 records (steps 1 to 7): more had to wait than are kept." in said
    assert sum("missing" in text for text in said) == 0  # once: closing has nothing to add


def test_the_end_of_a_run_waits_for_a_disk_that_is_full_for_a_moment(patient):
    sink, said, clock, make = patient
    persistent = make()
    sink.away = True
    persistent.write(at(7))
    freed = clock.now + 0.9

    def sleep(seconds):
        clock.now += seconds
        sink.away = clock.now < freed

    persistent._sleep = sleep
    persistent.close("finished")
    assert [record.step for record in sink.records] == [7] and sink.closed == ["finished"]
    assert "gave up" not in "".join(said)


def test_a_history_that_could_not_be_rewound_is_rewound_before_anything_is_written(patient):
    sink, _, clock, make = patient
    calls = []
    sink.away = True

    def rewind(step):
        if sink.away:
            raise OSError(28, "No space left on device")
        calls.append(step)

    sink.rewind = rewind
    persistent = make()
    persistent.rewind(4)
    persistent.write(at(5))
    assert sink.records == []
    sink.away = False
    clock.now += 1
    persistent.write(at(6))
    assert calls == [4] and [record.step for record in sink.records] == [5, 6]


def test_the_warning_may_be_shown_on_the_display_that_failed():
    broken, screen = Broken(), Screen()
    group = SinkGroup([broken, screen], lambda text: group.message(text))
    group.write(RECORD)
    assert len(screen.shown) == 1 and broken.shown == []


def test_a_warning_that_cannot_be_shown_stops_nothing(hasty):
    def warn(text):
        raise OSError(5, "Input/output error")

    keeper = Keeper()
    group = SinkGroup([Broken(), keeper], warn)
    group.write(RECORD)
    group.close("finished")
    assert keeper.records == [RECORD]


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

"""Which checkpoints stay: the rule by itself, and on real files through saves, failures and kills."""

import os
import random
import signal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill_engine.checkpoint.checkpoints import Checkpoints
from distill_engine.checkpoint.retention import Retention, Saved


def saved(step: int, value: float | None = None, again: int = 0) -> Saved:
    return Saved(step, again, f"{step}" + (f".{again}" if again else ""), value)


@pytest.mark.parametrize(
    ("rule", "present", "wanted"),
    [
        (Retention(2), [saved(9), saved(8), saved(100), saved(10)], "10 100"),
        (Retention(1), [saved(5), saved(5, again=1), saved(5, again=2)], "5.2"),
        (Retention(1, best=2), [saved(1, 3.0), saved(2, 1.0), saved(3, 2.0), saved(4, 9.0)], "2 3 4"),
        (Retention(1, best=1), [saved(1, 1.0), saved(2, 1.0), saved(3)], "1 3"),
        (Retention(1, best=1, direction="max"), [saved(1, 0.5), saved(2, 0.7), saved(3, 0.6)], "2 3"),
        (Retention(1, best=1), [saved(1, 1.0), saved(1, None, again=1), saved(2, 5.0), saved(3)], "2 3"),
        (Retention(1, best=2, anew=2), [saved(1, 1.0), saved(2, 2.0), saved(4)], "1 2 4"),
        (Retention(1, best=2, anew=2), [saved(1, 1.0), saved(2, 2.0), saved(3, 9.0), saved(4)], "3 4"),
        (Retention(1, best=1, anew=2), [saved(2, 1.0), saved(3, 9.0), saved(4, 8.0), saved(5)], "4 5"),
        (Retention(1, best=9), [saved(1), saved(2), saved(3)], "3"),
        (Retention(1, every=10), [saved(s) for s in (3, 9, 12, 14, 20, 27, 41, 45, 46)], "12 20 41 46"),
        (Retention(1, every=10), [saved(10), saved(10, again=1), saved(11)], "10.1 11"),
    ],
)
def test_what_the_rules_name_stays(rule, present, wanted):
    assert rule.kept(present) == set(wanted.split())


@pytest.mark.parametrize(
    ("options", "said"),
    [({"last": 0}, "keep_last is 0"), ({"last": 1, "best": -1}, "keep_best is -1"),
     ({"last": 1, "every": 0}, "keep_every is 0"), ({"last": 1, "direction": "up"}, "direction is 'up'")],
)  # fmt: skip
def test_rules_without_sense_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        Retention(**options)


histories = st.lists(
    st.tuples(st.integers(1, 7), st.none() | st.sampled_from([0.5, 1.0, 2.0, 3.0, 4.0])), min_size=1, max_size=30
)


@given(histories, st.integers(1, 4), st.integers(0, 3), st.none() | st.integers(1, 12), st.none() | st.integers(0, 60))
def test_pruning_after_each_save_loses_nothing_that_counts_in_the_end(history, last, best, every, anew):
    """What would be kept of the whole history is still there when everything else went as soon as it could."""
    rule = Retention(last, best, every, anew=anew)
    step, everything, present = 0, [], []
    for distance, value in history:
        step += distance
        everything.append(saved(step, value))
        present.append(everything[-1])
        names = rule.kept(present)
        assert present[-1].name in names and names <= {one.name for one in present}
        present = [one for one in present if one.name in names]
    assert {one.name for one in present} == rule.kept(everything)


# ---- real files ----------------------------------------------------------------------------------------------------


class OneRank:
    rank, world_size = 0, 1

    def gather(self, value):
        return [value]


class Text:
    """A part of three files that may fail."""

    def __init__(self) -> None:
        self.text, self.fails = "", False

    def save(self, folder: Path) -> None:
        for name in "abc":
            (folder / f"{name}.txt").write_text(self.text)
            if self.fails:
                raise OSError("the disk is gone")

    def load(self, folder: Path) -> None:
        (self.text,) = {(folder / f"{name}.txt").read_text() for name in "abc"}


KILLS = ["before_part", "after_parts", "in_manifest", "before_rename", "after_rename", "before_pointer", "in_prune"]


class Run:
    """A run that is started again and again in one folder, with a diary of what was completed in it."""

    KEEP = Retention(2, 2, 10)

    def __init__(self, folder: Path) -> None:
        self.folder, self.part = folder, Text()
        self.completed: list[Saved] = []
        self.step = 0
        self.start()

    def start(self) -> None:
        """As a program starts: takes up the newest, which must be the last one that was completed."""
        self.checkpoints = Checkpoints(
            self.folder, OneRank(), identity={}, max_failed_saves=99, warn=lambda _text: None, keep=self.KEEP
        )
        found = self.checkpoints.resume({"part": self.part})
        assert found == (self.completed[-1].step if self.completed else None)
        assert found is None or self.part.text == str(found)
        self.step = found or 0

    def save(self, draw: random.Random) -> bool:
        value = draw.choice([None, draw.uniform(1, 9), float("nan")])
        self.part.text = str(self.step)
        done = self.checkpoints.save(self.step, {"part": self.part}, value)
        if done:
            self.note(value)
        return done

    def note(self, value: float | None) -> None:
        self.completed.append(saved(self.step, value if value == value else None))

    def killed(self, draw: random.Random, fault: str) -> None:
        """The same in a process that a SIGKILL ends at a named point; then a new start."""
        value = draw.uniform(1, 9)
        child = os.fork()
        if child == 0:
            os.environ["DISTILL_FAULT"] = fault
            self.part.text = str(self.step)
            self.checkpoints.save(self.step, {"part": self.part}, value)
            os._exit(0)  # the fault point was not on the way
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, -signal.SIGKILL)
        if code == 0 or fault in ("after_rename", "before_pointer", "in_prune"):
            self.note(value)
        self.start()

    def present(self) -> set[str]:
        return {path.name for path in self.folder.iterdir() if path.name.startswith("step-")}

    def wanted(self) -> set[str]:
        return {f"step-{int(name):08d}" for name in self.KEEP.kept(self.completed)}


@pytest.mark.parametrize("seed", range(8))
def test_whatever_happens_what_must_be_kept_is_there_and_loads(tmp_path, seed):
    draw, run = random.Random(seed), Run(tmp_path / "checkpoints")
    happened = set()
    for _ in range(24):
        run.step += draw.randint(1, 6)
        what = draw.choice(["save", "save", "save", "fail", "kill", "start"])
        happened.add(what)
        if what == "start":
            run.start()
            continue
        run.part.fails = what == "fail"
        if what == "kill":
            run.killed(draw, draw.choice(KILLS))
        elif run.save(draw):
            assert run.present() == run.wanted(), "everything else goes at once"
        run.part.fails = False
        if run.completed:
            assert run.wanted() <= run.present()
    assert happened == {"save", "fail", "kill", "start"}
    for name in run.wanted():  # each of them alone would do
        others = [path for path in run.folder.iterdir() if path.name != name]
        hidden = [path.rename(tmp_path / path.name) for path in others]
        alone = Checkpoints(run.folder, OneRank(), identity={}, keep=Retention(1), warn=lambda _text: None)
        assert alone.resume({"part": run.part}) == int(name.removeprefix("step-"))
        for path in hidden:
            path.rename(run.folder / path.name)


def test_values_outlive_a_restart(tmp_path):
    for step, value in ((1, 5.0), (2, 1.0), (3, 4.0), (4, None), (5, 9.0)):
        start = Checkpoints(tmp_path, OneRank(), identity={}, keep=Retention(1, best=2))
        assert start.save(step, {"part": Text()}, value)
    assert sorted(path.name[-1] for path in tmp_path.glob("step-*")) == ["2", "3", "5"]


def test_a_best_checkpoint_that_was_damaged_goes_and_counts_for_none(tmp_path):
    options = {"identity": {}, "keep": Retention(1, best=1), "warn": lambda _text: None}
    run = Checkpoints(tmp_path, OneRank(), **{**options, "keep": Retention(2, best=1)})
    for step, value in ((1, 2.0), (2, 1.0)):
        run.save(step, {"part": Text()}, value)
    (tmp_path / "step-00000002" / "part" / "a.txt").write_text("damaged")
    run = Checkpoints(tmp_path, OneRank(), **options)
    assert run.resume({"part": Text()}) == 1
    run.save(3, {"part": Text()}, 5.0)
    assert sorted(path.name[-1] for path in tmp_path.glob("step-*")) == ["1", "3"]

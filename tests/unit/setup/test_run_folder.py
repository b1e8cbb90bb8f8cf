"""One run per folder, and a folder that works, before any work is done."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from distill_engine.cluster.exit_codes import may_pass
from distill_engine.setup.run_folder import RunFolderError, RunLock, check_run_folder

ROOT = Path(__file__).parents[3]
HOLDER = """
import sys, time
from pathlib import Path
from distill_engine.setup.run_folder import RunLock
class OneRank:
    rank, world_size = 0, 1
    def gather(self, value): return [value]
with RunLock(Path(sys.argv[1]), OneRank(), wait_seconds=0):
    print("held", flush=True)
    sys.stdin.read()
"""


class OneRank:
    rank, world_size = 0, 1

    def gather(self, value):
        return [value]


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock until its input is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT), "SLURM_JOB_ID": "4711"},
    )
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.communicate()


def test_second_run_is_refused_and_told_who_holds_it(tmp_path, holder):
    with pytest.raises(RunFolderError, match="in use by another run") as caught:
        RunLock(tmp_path, OneRank(), wait_seconds=0).acquire()
    assert f'"pid": {holder.pid}' in str(caught.value)
    assert '"job": "4711"' in str(caught.value)


def test_lock_ends_with_a_killed_holder_whose_death_is_waited_for(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    with RunLock(tmp_path, OneRank(), wait_seconds=10):
        assert f'"pid": {os.getpid()}' in (tmp_path / ".lock").read_text()


def test_the_lock_of_this_jobs_former_start_is_waited_for(tmp_path, holder, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    with pytest.raises(RunFolderError, match="in use by another run") as caught:
        RunLock(tmp_path, OneRank(), wait_seconds=0, own_job_seconds=0.2).acquire()
    assert may_pass(caught.value), "the job is started again"
    said: list[str] = []

    def dies(text: str) -> None:
        said.append(text)
        holder.send_signal(signal.SIGKILL)

    with RunLock(tmp_path, OneRank(), wait_seconds=0, own_job_seconds=60, warn=dies):
        assert f'"pid": {os.getpid()}' in (tmp_path / ".lock").read_text()
    assert len(said) == 1 and "former start of this job" in said[0] and f'"pid": {holder.pid}' in said[0]


def test_another_jobs_lock_is_not_waited_for(tmp_path, holder, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "4712")
    with pytest.raises(RunFolderError) as caught:
        RunLock(tmp_path, OneRank(), wait_seconds=0, own_job_seconds=60).acquire()
    assert not may_pass(caught.value)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_lock_that_the_file_system_refuses_for_a_while_may_pass(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", refuse)  # a file server's words, which no local disk gives
    with pytest.raises(RunFolderError, match=os.strerror(number)) as caught:
        RunLock(tmp_path, OneRank()).acquire()
    assert may_pass(caught.value)


def test_a_forked_child_does_not_keep_the_lock(tmp_path, holder):
    """Like a data worker that outlives its run for a moment."""
    lock = RunLock(tmp_path / "mine", OneRank())
    lock.acquire()
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(write_end)
        os.read(read_end, 1)
        os._exit(0)
    os.close(read_end)
    lock.release()
    probe = "import sys; exec(sys.argv[2]); "
    other = subprocess.run(
        [sys.executable, "-c", probe, str(tmp_path / "mine"), HOLDER],
        input=b"",
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    os.close(write_end)
    os.waitpid(child, 0)
    assert other.stdout == b"held\n", other.stderr


def test_release_is_harmless_twice(tmp_path):
    lock = RunLock(tmp_path, OneRank())
    lock.acquire()
    lock.release()
    lock.release()


def test_folder_is_made_checked_and_left_empty(tmp_path):
    check_run_folder(tmp_path / "a" / "b", OneRank(), needed_bytes=1)
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_too_little_space_is_an_error_with_both_sizes(tmp_path):
    with pytest.raises(RunFolderError, match=r"are free, checkpoints need 1048576\.0 GiB.*--run-dir"):
        check_run_folder(tmp_path, OneRank(), needed_bytes=1 << 50)
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_is_an_error(tmp_path):
    (tmp_path / "run").write_text("x")
    for folder in (tmp_path / "run", tmp_path / "run" / "deeper"):
        with pytest.raises(RunFolderError, match=r"cannot be used: rank 0: (FileExists|NotADirectory)Error") as caught:
            check_run_folder(folder, OneRank())
        assert "share and can write. Repair" in str(caught.value), "space is not asked for here"


class SecondRankElsewhere:
    """Rank 1 as seen from a node whose disk is not the shared one: rank 0's results come, its files do not."""

    rank, world_size = 1, 2

    def __init__(self) -> None:
        self.first = True

    def gather(self, value):
        token = ("0123456789abcdef", None) if self.first else (None, None)
        self.first = False
        return [token, value]


def test_a_folder_that_is_not_shared_is_an_error_naming_the_rank(tmp_path):
    with pytest.raises(RunFolderError, match="rank 1: the file that rank 0 wrote there is not seen here"):
        check_run_folder(tmp_path, SecondRankElsewhere(), patience=0.0)


def test_what_rank_0_has_written_may_come_into_sight_late(tmp_path):
    file = tmp_path / ".probe-0123456789abcdef-0"
    threading.Timer(0.2, lambda: file.write_text("0123456789abcdef")).start()
    check_run_folder(tmp_path, SecondRankElsewhere(), patience=30.0)
    assert list(tmp_path.iterdir()) == [file], "its own is removed"


def test_a_new_folder_is_its_owners_alone_and_an_old_one_keeps_its_rights(tmp_path):
    check_run_folder(tmp_path / "new", OneRank())
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o755)
    check_run_folder(tmp_path / "shared", OneRank())
    assert (tmp_path / "shared").stat().st_mode & 0o777 == 0o755


def test_the_lock_is_for_whom_the_umask_lets(tmp_path):
    before = os.umask(0o007)
    try:
        with RunLock(tmp_path, OneRank()) as lock:
            assert lock.path.stat().st_mode & 0o777 == 0o660
    finally:
        os.umask(before)

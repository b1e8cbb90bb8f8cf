"""A real two-node Slurm on loopback, started and stopped here by process id, on ports and folders of its own.

Its nodes are n1 and n2 with two CPUs and two GPUs (in name only) each; their names mean nothing to the name service,
so MASTER_ADDR is given.
"""

import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from distill_engine.telemetry.jsonl import read_history
from distill_engine.telemetry.sinks import Record
from launcher.attempts import read_attempts

ROOT = Path(__file__).parents[2]
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "squeue")
LIMIT_SECONDS = 240.0
PATH = os.environ["PATH"] + ":/usr/sbin:/usr/local/sbin"

QUICK = (
    "stop.max_steps=30",
    "schedule.warmup_steps=1",
    "data.datasets.0.train_examples=200",
    "data.datasets.0.valid_examples=20",
    "batch.per_rank=2",
    "checkpoint.every_steps=5",
    "logging.every_steps=1",
    "logging.wandb.mode=disabled",
)


def wait_until(fact: Callable[[], bool], what: str, seconds: float = LIMIT_SECONDS, tell: Callable[[], str] = str):
    deadline = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < deadline, f"waited too long for {what}\n{tell()}"
        time.sleep(0.1)


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def why_not() -> str:
    missing = [name for name in NEEDED if shutil.which(name, path=PATH) is None]
    if missing:
        return f"no Slurm here ({', '.join(missing)} missing): apt-get install slurm-wlm munge"
    if os.geteuid() != 0:
        return "a Slurm of one's own needs root"
    return ""


def end_with_us() -> None:
    """In a daemon, before it begins: the kernel ends it when the tests are killed."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


class Slurm:
    """The running cluster."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_", "RANK", "WORLD_"))}
        self.env |= {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": PATH, "OMP_NUM_THREADS": "1"}
        self.env |= {"MASTER_ADDR": "127.0.0.1", "DS_ACCELERATOR": "cpu", "PREFLIGHT": "0", "HOME": str(folder)}
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        munge = self.folder / "munge"
        munge.mkdir(mode=0o755)
        key, place = munge / "key", munge / "socket"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        self._daemon("munged", "--foreground", "--force", f"--key-file={key}", f"--socket={place}",
                     f"--pid-file={munge / 'pid'}", f"--log-file={munge / 'log'}",
                     f"--seed-file={munge / 'seed'}")  # fmt: skip
        wait_until(place.exists, "munged", 20, lambda: self.logs("munged"))
        ports = free_ports(3)
        (self.folder / "slurm.conf").write_text(self._configuration(ports, place))
        devices = ("/dev/null", "/dev/zero")  # a GPU must have a file
        lines = [f"NodeName=n[1-2] Name=gpu File={device}\n" for device in devices]
        (self.folder / "gres.conf").write_text("".join(lines))
        self._daemon("slurmctld", "-D")
        for node in ("n1", "n2"):
            self._daemon(f"slurmd -N {node}", "-D")
        wait_until(lambda: self._idle() == 2, "two idle nodes", 60, lambda: self.logs("slurmctld"))

    def stop(self) -> None:
        if "slurmctld" in self.daemons:
            subprocess.run(["scancel", "--user=root"], env=self.env, check=False, timeout=30)
            deadline = time.monotonic() + 20
            while self.command("squeue", "--noheader").strip() and time.monotonic() < deadline:
                time.sleep(0.2)
        for daemon in reversed(self.daemons.values()):
            daemon.terminate()
            try:
                daemon.wait(timeout=10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def command(self, *words: str) -> str:
        done = subprocess.run(words, env=self.env, capture_output=True, text=True, timeout=60, cwd=self.folder)
        return done.stdout + done.stderr

    def sbatch(
        self,
        run_dir: Path,
        *flags: str,
        recipe: Path | None = None,
        settings: tuple[str, ...] = QUICK,
        options: tuple[str, ...] = (),
        **env,
    ):
        """The script as a user submits it, on these nodes without GPUs; the job's id."""
        script = [one for one in flags if one.endswith(".sh")]
        flags = tuple(one for one in flags if not one.endswith(".sh"))
        words = ["sbatch", "--parsable", "--gpus-per-node=0", "--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1"]
        words += [
            "--time=10",
            "--signal=USR1@60",
            f"--output={self.folder}/%x-%j.out",
            *flags,
            str(ROOT / "slurm" / (script or ["distill_bb3b.sh"])[0]),
        ]
        for setting in settings:
            words += ["--set", setting]
        words += options
        more = {"RECIPE": str(recipe or "recipes/demo.yaml"), "DS_CONFIG": "ds_configs/zero2_fp32.json"}
        more |= {"RUN_DIR": str(run_dir)} | env
        done = subprocess.run(words, env=self.env | more, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def stand_in(self, folder: Path, **asked) -> dict[str, str]:
        """Environment of a job whose ranks are those of stand_in.py; it writes into `folder`.

        In its preflight a node says nothing at start N where `silent-N` is there, and waits for `go` if `slow` is.
        """
        folder.mkdir(parents=True)
        program = Path(__file__).with_name("stand_in.py")
        wrapper = folder / "python"
        late = asked.pop("late", "")  # a node whose preflight begins only when the file `come` is there
        wrapper.write_text(f"""#!/bin/bash
for word; do
  [[ $word == */distill_engine/run.py ]] && exec '{sys.executable}' '{program}' "$@"
  if [[ $word == preflight-node ]]; then
    touch '{folder}'/preflight-"${{SLURM_RESTART_COUNT:-0}}"
    until [[ $SLURMD_NODENAME != '{late}' || -e '{folder}'/come ]]; do sleep 0.1; done
    while [[ -e '{folder}'/slow && ! -e '{folder}'/go ]]; do sleep 0.1; done
    [[ ! -e '{folder}'/silent-"${{SLURM_RESTART_COUNT:-0}}" ]] || exit 0
  fi
done
exec '{sys.executable}' "$@"
""")
        wrapper.chmod(0o755)
        return {"PYTHON": str(wrapper), "STAND_IN": json.dumps({"folder": str(folder), "rank": 0} | asked)}

    def stop_daemon(self, name: str, number: int = signal.SIGTERM) -> None:
        daemon = self.daemons.pop(name)
        daemon.send_signal(number)
        daemon.wait()

    def start_daemon(self, name: str) -> None:
        """Again, with the state it left on disk."""
        self._daemon(name, "-D")

    def job(self, job: str) -> dict[str, str]:
        words = self.command("scontrol", "show", "job", job, "--oneliner").split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def state(self, job: str) -> str:
        return self.job(job).get("JobState", "gone")

    def seconds(self, job: str) -> int:
        """Since its start."""
        return int((datetime.now() - datetime.fromisoformat(self.job(job)["StartTime"])).total_seconds())

    def hurry(self, job: str) -> None:
        """A requeued job waits two minutes; a few seconds are enough for Slurm to forget the start before."""
        facts = self.job(job)
        if facts.get("JobState") == "PENDING" and facts.get("Reason") == "BeginTime":
            waited = datetime.now() - datetime.fromisoformat(facts["SubmitTime"])
            if waited.total_seconds() > 6:
                self.command("scontrol", "update", f"jobid={job}", "StartTime=now")

    def ended(self, job: str) -> dict[str, str]:
        """Wait for the end; a job that waits for its second start need not wait for two minutes."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "gone")

        def done() -> bool:
            facts = self.job(job)
            self.hurry(job)
            return facts.get("JobState", "gone") in over

        wait_until(done, f"the end of job {job}", tell=lambda: str(self.job(job)) + self.said(job))
        return self.job(job)

    def said(self, job: str) -> str:
        return "".join(path.read_text(errors="replace") for path in self.folder.glob(f"*-{job}.out"))

    def logs(self, name: str) -> str:
        return "".join(path.read_text(errors="replace")[-3000:] for path in self.folder.glob(f"{name}*.log"))

    def _idle(self) -> int:
        return self.command("sinfo", "--noheader", "--Node", "--format=%t").split().count("idle")

    def _daemon(self, command: str, *arguments: str) -> None:
        words = [*command.split(), *arguments]
        log = (self.folder / f"{command.replace(' ', '')}.log").open("ab")
        program = shutil.which(words[0], path=PATH) or words[0]
        self.daemons[command] = subprocess.Popen(
            [program, *words[1:]], env=self.env, stdout=log, stderr=log, start_new_session=True, preexec_fn=end_with_us
        )
        log.close()

    def _configuration(self, ports: list[int], munge: Path) -> str:
        folder, host = self.folder, socket.gethostname()
        for name in ("state", "spool-n1", "spool-n2"):
            (folder / name).mkdir()
        return f"""
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={munge}
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
SlurmdParameters=config_overrides
KillWait=20
JobRequeue=1
MinJobAge=300
SlurmctldTimeout=60
SlurmdTimeout=60
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
GresTypes=gpu
SchedulerParameters=sched_interval=2,batch_sched_delay=0,defer
NodeName=n1 NodeHostName={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=2000 Gres=gpu:2 State=UNKNOWN
NodeName=n2 NodeHostName={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=2000 Gres=gpu:2 State=UNKNOWN
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    if reason := why_not():
        pytest.skip(reason)
    # pytest's own folders are closed to others, and munge refuses a socket that others cannot reach
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    folder.chmod(0o755)
    cluster = Slurm(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def quiet_run(tmp_path_factory) -> Path:
    """A run of 2 ranks that nobody disturbs, by torchrun: what all others are compared with."""
    folder = tmp_path_factory.mktemp("quiet") / "run"
    done = launched("torchrun", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def launched(launcher: str, run_dir: Path, settings: tuple[str, ...] = QUICK) -> subprocess.CompletedProcess[str]:
    """The same program with the same options under a launcher."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "RANK", "WORLD_", "LOCAL_", "MASTER_"))}
    return subprocess.run(
        command(launcher, run_dir, settings), cwd=ROOT, env=env | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        capture_output=True, text=True, timeout=LIMIT_SECONDS,
    )  # fmt: skip


def command(
    launcher: str,
    run_dir: Path,
    settings: tuple[str, ...] = QUICK,
    program: str = "distill_engine/run.py",
    arguments: tuple[str, ...] | None = None,
) -> list[str]:
    programs = Path(sys.executable).parent
    python, port = str(programs / "python"), str(free_ports(1)[0])
    start = {
        "torchrun": [str(programs / "torchrun"), "--nproc-per-node=2", f"--master-port={port}"],
        "deepspeed": [str(programs / "deepspeed"), "--num_accelerators=2", f"--master_port={port}"],
        "mpirun": ["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-n", "2", python],
        "python": [python],
    }[launcher]
    if arguments is not None:
        return [*start, str(ROOT / program), *arguments]
    words = [*start, str(ROOT / program), "--ds_config", str(ROOT / "ds_configs/zero2_fp32.json")]
    words += ["--run-dir", str(run_dir)]
    for setting in settings:
        words += ["--set", setting]
    return words


def ranks_of(run_dir: Path) -> dict[int, psutil.Process]:
    """Rank -> process, of the program in a run folder; launchers that name it too are left out."""
    found = {}
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            if {str(run_dir), f"--run-dir={run_dir}"} & set(words) and Path(words[0]).name.startswith("python"):
                launchers = ("torchrun", "deepspeed", "deepspeed.launcher.launch")
                if not any(Path(word).name in launchers for word in words[1:5]):
                    environ = process.environ()
                    names = ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK")
                    found[int(next((environ[name] for name in names if name in environ), "0"))] = process
        except (psutil.Error, ValueError):
            continue
    return found


def losses_of(run_dir: Path) -> list[tuple[int, float]]:
    """(step, loss) as recorded."""
    return [(one.step, one.values["train/total"]) for one in records(run_dir) if one.kind == "train"]


def measured(run_dir: Path) -> list[tuple]:
    """Everything that does not depend on the clock."""
    clocks = ("time/", "memory/", "train/tokens_per_second", "valid/seconds", "valid/sample/seconds")
    return [
        (one.kind, one.step, {name: value for name, value in one.values.items() if not name.startswith(clocks)})
        for one in records(run_dir)
    ]


def records(run_dir: Path) -> list[Record]:
    file = run_dir / "metrics.jsonl"
    return read_history(file) if file.is_file() else []


def last_step(run_dir: Path) -> int:
    return max((one.step for one in records(run_dir)), default=-1)


def attempts(run_dir: Path) -> list[int | None]:
    """Exit codes of the starts so far."""
    return [one.code for one in read_attempts(run_dir)]


@pytest.fixture(scope="session")
def tools() -> SimpleNamespace:
    """The helpers above, for the tests (which cannot import this file)."""
    names = ("wait_until", "launched", "command", "ranks_of", "losses_of", "measured", "last_step", "attempts")
    return SimpleNamespace(QUICK=QUICK, ROOT=ROOT, **{name: globals()[name] for name in names})

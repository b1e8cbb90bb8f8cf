"""The display in a real pseudo-terminal, in a pipe, and after its reader has gone."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

_PROGRAM = """
import sys
from distill_engine.telemetry.quiet import quiet_libraries
quiet_libraries(0)
from distill_engine.telemetry.progress import ProgressSink
from distill_engine.telemetry.sinks import Record, SinkGroup

group = SinkGroup([ProgressSink("demo", total_steps=20)], lambda text: sys.stderr.write(text + "\\n"))
group.phase("starting")
group.message("a message [with brackets] :smile:")
group.phase("training")
for step in range(1, 21):
    group.advance(step, f"{10 - step % 10} steps", 20.0 - step)
    values = {"train/total": 2.0, "train/ppl": 3.0, "train/lr": 1e-3, "train/term/task/raw": 2.0,
              "train/term/task/weighted": 2.0}
    group.write(Record("train", step, step / 2, values))
    if step % 10 == 0:
        group.phase("validating")
        print("a library prints", flush=True)
        group.write(Record("valid", step, step / 2, {"valid/ppl": 40 / step, "best/ppl": 40 / step}))
        group.phase("training")
group.write(Record("event", 20, 10.0, text="an event"))
group.close("finished")
sys.stderr.write("reached the end\\n")
"""


def environment(**changes):
    hidden = ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "LINES")
    launchers = ("SLURM_", "OMPI_", "PMI", "RANK", "ENVIRONMENT", "PBS_", "LSB_")
    clean = {name: value for name, value in os.environ.items() if name not in hidden and not name.startswith(launchers)}
    return {**clean, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "LANG": "C.UTF-8", **changes}


def in_terminal(columns, rows, **changes):
    """Everything the program writes to a pseudo-terminal of this size, and its exit code."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    child = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM], stdin=follower, stdout=follower, stderr=follower, env=environment(**changes)
    )
    os.close(follower)
    chunks = []
    while True:
        try:
            chunk = os.read(leader, 65536)
        except OSError:  # EIO: the last writer has closed
            break
        if not chunk:
            break
        chunks.append(chunk)
    os.close(leader)
    return b"".join(chunks).decode(), child.wait(timeout=60)


def screen(output):
    """What is left on an endless screen: obeys line breaks, cursor up and erase line, drops colours."""
    rows, row, column = [""], 0, 0
    for token in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", output):
        if token == "\n":
            row += 1
            rows += [""] * (row + 1 - len(rows))
        elif token == "\r":
            column = 0
        elif token.startswith("\x1b["):
            if token.endswith("A"):
                row -= int(token[2:-1] or 1)
            elif token == "\x1b[2K":
                rows[row] = ""
        else:
            rows[row] = rows[row][:column].ljust(column) + token + rows[row][column + len(token) :]
            column += len(token)
    return rows


@pytest.mark.parametrize("columns", [80, 120])
def test_terminal_shows_one_picture_with_lines_above_it(columns):
    output, code = in_terminal(columns, 24)
    assert code == 0
    rows = screen(output)
    assert max(len(row) for row in rows) == columns
    text = "\n".join(rows)
    assert text.count("╭") == 1 and text.count("╰") == 1, text
    above, picture = text.split("╭")
    for line in (
        "a message [with brackets] :smile:",
        "step 10/20  valid ppl 4  new best",
        "a library prints",
        "step 20/20  valid ppl 2  new best",
        "an event",
    ):
        assert line in above
    assert "finished · step 20 of 20" in picture
    assert "reached the end" in picture.split("╯")[1]
    assert output.rindex("\x1b[?25h") > output.rindex("\x1b[?25l")  # the cursor is given back


STEP = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "0"}
NOBODY_LOOKS = {
    "dumb": {"TERM": "dumb"},
    "mpirun": {"OMPI_COMM_WORLD_RANK": "0"},
    "mpiexec": {"PMI_RANK": "0"},
    "deepspeed": {"RANK": "0"},
    "srun": STEP,
    "sbatch": {"ENVIRONMENT": "BATCH"},
    "qsub": {"PBS_ENVIRONMENT": "PBS_BATCH"},
    "bsub": {"LSB_JOBID": "7"},
}
A_SHELL = {
    "salloc": {"SLURM_JOB_ID": "7"},
    "srun --pty": STEP | {"SLURM_PTY_PORT": "4"},
    "qsub -I": {"PBS_ENVIRONMENT": "PBS_INTERACTIVE"},
}


@pytest.mark.parametrize("shell", A_SHELL)
def test_a_shell_inside_a_job_is_a_persons_terminal(shell):
    output, code = in_terminal(80, 24, **A_SHELL[shell])
    assert code == 0 and "\n".join(screen(output)).count("╭") == 1


@pytest.mark.parametrize("changes", [{}, *NOBODY_LOOKS.values()], ids=["a pipe", *NOBODY_LOOKS])
def test_without_a_terminal_one_plain_line_per_record(changes):
    if changes:
        output, code = in_terminal(80, 24, **changes)
    else:
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM], capture_output=True, text=True, env=environment(), timeout=60, check=False
        )
        output, code = done.stdout, done.returncode
    assert code == 0 and "\x1b" not in output and "╭" not in output
    lines = output.replace("\r", "").splitlines()
    assert lines[:3] == ["starting", "a message [with brackets] :smile:", "training"]
    assert lines[3] == "0:00:00  step 1/20  loss 2  task 2  ppl 3  lr 0.001  left 19 s"
    assert lines.count("validating") == 1 and lines.count("training") == 1
    assert sum("loss" in line for line in lines) == 20
    assert "step 20/20  valid ppl 2  new best" in lines and "finished" in lines


def test_a_reader_that_goes_away_costs_the_display_and_nothing_else():
    child = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    child.stdout.close()
    errors = child.stderr.read()
    child.stderr.close()
    assert child.wait(timeout=60) == 0
    assert errors.splitlines() == [
        "ProgressSink failed and gets no more records of this run: "
        "BrokenPipeError: nobody reads standard output any more. Training goes on.",
        "reached the end",
    ]

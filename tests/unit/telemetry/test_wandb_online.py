"""Online runs against a stand-in for W&B's server on loopback: upload, continuation, a server that dies.

The stand-in answers the four GraphQL calls that wandb 0.31 makes and keeps what is posted; it shows what we
ask of wandb, not how W&B's cloud behaves.
"""

import gzip
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]
KEY = "canary0" + "b3fdc1a95e72" * 4

# Reads one JSON list of records a line from stdin, so that the test decides when things happen.
_PROGRAM = """
import json, sys
from distill_engine.telemetry.sinks import Record
from distill_engine.telemetry.config import WandbSection
from distill_engine.telemetry.wandb_sink import WandbSink

sink = WandbSink(sys.argv[1], "name", WandbSection(project="project"), {"recipe": {"seed": 3}},
                 lambda text: print(text, flush=True), init_timeout_seconds=20, finish_timeout_seconds=2)
for line in sys.stdin:
    for step in json.loads(line):
        sink.write(Record("train", step, 1.0, {"train/total": 1.0 / step}))
    print("wrote", flush=True)
sink.close("finished")
print("closed", flush=True)
"""


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.run = None
        self.rows = []
        self.upserts = []
        self.dead = False
        self.refuses_the_key = False
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def die(self):
        self.dead = True  # for connections that are still open
        self.shutdown()
        self.server_close()

    def graphql(self, query, variables):
        project = {"id": "p", "name": "project", "entity": {"id": "e", "name": "team"}}
        if "RunResumeStatus" in query:
            return {"model": {**project, "bucket": None if self.run is None else self.state(variables["name"])}}
        if "UpsertBucket" in query:
            self.upserts.append(variables)
            inserted, self.run = self.run is None, self.state(variables["name"])
            bucket = {"id": "b", "name": variables["name"], "displayName": "name", "project": project, "config": "{}"}
            return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}
        if "CreateRunFiles" in query:
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": []}}
        return {}

    def state(self, name):
        tail = json.dumps([json.dumps(self.rows[-1])] if self.rows else [])
        counts = {"historyLineCount": len(self.rows), "eventsLineCount": 0, "logLineCount": 0}
        begun = '{"t": {}}'  # what wandb knows a run by that has begun, and so goes on with its count of rows
        texts = {"summaryMetrics": "{}", "config": "{}", "wandbConfig": begun, "eventsTail": "[]", "historyTail": tail}
        return {"id": "b", "name": name, "displayName": "name", "tags": [], **counts, **texts}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        if self.server.dead:
            self.close_connection = True
            return
        answer = {}
        if self.server.refuses_the_key:
            answer = {"errors": [{"message": "user is not logged in"}]}
        elif self.path == "/graphql":
            asked = json.loads(body)
            answer = {"data": self.server.graphql(asked["query"], asked.get("variables"))}
        elif self.path.endswith("/file_stream"):
            self.keep(json.loads(body))
        payload = json.dumps(answer).encode()
        self.send_response(401 if self.server.refuses_the_key else 200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def keep(self, posted):
        lines = posted.get("files", {}).get("wandb-history.jsonl", {}).get("content", [])
        self.server.rows += [json.loads(line) for line in lines]

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    server = Server()
    yield server
    server.die()


@pytest.fixture
def start(tmp_path, server):
    program = tmp_path / "program.py"
    program.write_text(_PROGRAM)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB") and name != "NETRC"}
    url = f"http://127.0.0.1:{server.server_port}"
    own = {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "WANDB_API_KEY": KEY, "WANDB_BASE_URL": url}
    children = []

    def begin():
        child = subprocess.Popen(
            [sys.executable, str(program), str(tmp_path / "run")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**clean, **own},
        )
        children.append(child)
        return child

    yield begin
    for child in children:
        child.kill()
        child.wait()


def test_a_restart_continues_the_run_on_the_server(tmp_path, server, start):
    for steps in ([10, 20], [20, 30]):
        said, _ = start().communicate(json.dumps(steps), timeout=120)
        run_id = (tmp_path / "run" / "wandb_run_id").read_text().strip()
        url = f"http://127.0.0.1:{server.server_port}/team/project/runs/{run_id}"
        assert said.splitlines() == [f"W&B: {url}", "wrote", "closed"]
    assert {upsert["name"] for upsert in server.upserts} == {run_id}
    assert [row["step"] for row in server.rows if "step" in row] == [10, 20, 20, 30]
    assert json.loads(server.upserts[0]["config"])["recipe"]["value"] == {"seed": 3}


# As _PROGRAM, but with the run's history, and a SIGKILL of everything in the end.
_KILLED = """
import json, os, pathlib, signal, sys
from distill_engine.telemetry.jsonl import JsonlSink, read_history
from distill_engine.telemetry.sinks import Record
from distill_engine.telemetry.config import WandbSection
from distill_engine.telemetry.wandb_sink import WandbSink

folder, file = sys.argv[1], pathlib.Path(sys.argv[1]) / "metrics.jsonl"
jsonl = JsonlSink(file)
sink = WandbSink(folder, "name", WandbSection(project="project"), {}, lambda text: print(text, flush=True),
                 history=lambda: read_history(file), finish_timeout_seconds=20)
for line in sys.stdin:
    for step in json.loads(line):
        record = Record("train", step, step / 2, {"train/total": 1.0 / step})
        jsonl.write(record)
        sink.write(record)
    print("wrote", flush=True)
if sys.argv[2] == "finished":
    sink.close("finished")
else:
    os.killpg(0, signal.SIGKILL)
"""


@pytest.fixture
def tree(tmp_path, server):
    """Runs a start as a process group of its own; returns what it said."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB") and name != "NETRC"}
    url = f"http://127.0.0.1:{server.server_port}"
    own = {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "WANDB_API_KEY": KEY, "WANDB_BASE_URL": url}

    def run(arguments, said_to_it=""):
        done = subprocess.run(
            [sys.executable, *arguments], input=said_to_it, capture_output=True, text=True, timeout=120, check=False,
            env={**clean, **own}, start_new_session=True,
        )  # fmt: skip
        return done.returncode, done.stdout.splitlines(), done.stderr

    return run


def steps_at(server):
    return [row["step"] for row in server.rows if "step" in row]


def test_what_a_kill_of_the_process_tree_kept_from_the_server_it_gets_at_the_next_start(tmp_path, server, tree):
    (tmp_path / "run").mkdir()
    steps = list(range(1, 57))
    code, _, _ = tree(["-c", _KILLED, str(tmp_path / "run"), "killed"], json.dumps(steps))
    assert code == -9
    arrived = steps_at(server)
    assert arrived == steps[: len(arrived)] and len(arrived) < 56, "the kill came before the upload"
    code, said, problem = tree(["-c", _KILLED, str(tmp_path / "run"), "finished"], json.dumps([57, 58]))
    assert code == 0, problem
    assert f"W&B lacked {56 - len(arrived)} records of steps {len(arrived) + 1} to 56: given from metrics.jsonl" in said
    assert steps_at(server) == list(range(1, 59)), "each once, in order"
    _, said, _ = tree(["-c", _KILLED, str(tmp_path / "run"), "finished"], json.dumps([59]))
    assert not [line for line in said if "lacked" in line] and steps_at(server) == list(range(1, 60))
    for mark in (tmp_path / "run").glob("wandb/run-*/uploaded.txt"):  # as if these starts had been killed
        mark.unlink()
    del server.rows[40:]
    _, said, _ = tree(["-c", _KILLED, str(tmp_path / "run"), "finished"], json.dumps([60]))
    assert "W&B lacked 19 records of steps 41 to 59: given from metrics.jsonl" in said
    assert steps_at(server) == list(range(1, 61))


def test_by_hand_online_and_offline(tmp_path, server, tree):
    run = tmp_path / "run"
    run.mkdir()
    recipe = yaml.safe_load((ROOT / "recipes" / "demo.yaml").read_text(encoding="utf-8"))
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    tree(["-c", _KILLED, str(run), "killed"], json.dumps([1, 2, 3]))
    assert steps_at(server) == []
    command = ["-m", "distill_engine.cli", "wandb-sync", str(run)]
    code, said, problem = tree(command)
    assert code == 0, problem
    assert said[-1] == "W&B lacked 3 records of steps 1 to 3: given from metrics.jsonl"
    assert steps_at(server) == [1, 2, 3]
    code, said, _ = tree(command)
    assert code == 0 and said[-1] == f"W&B lacks no record of {run}" and steps_at(server) == [1, 2, 3]
    code, said, _ = tree([*command, "--offline"])
    assert code == 0 and said == [f"W&B lacks no record of {run}"], "the logs on disk have them all"
    for log in run.glob("wandb/run-*"):
        shutil.rmtree(log)
    code, said, _ = tree([*command, "--offline"])
    assert (code, said) == (0, ["W&B lacked 3 records of steps 1 to 3: given from metrics.jsonl"])
    assert len(list(run.glob("wandb/offline-run-*/run-*.wandb"))) >= 1 and steps_at(server) == [1, 2, 3]


def test_by_hand_refuses_what_is_no_run(tmp_path, tree):
    code, _, problem = tree(["-m", "distill_engine.cli", "wandb-sync", str(tmp_path)])
    assert code == 78 and "is no run folder" in problem and "Traceback" not in problem


def test_a_server_that_dies_mid_run_costs_at_most_the_finish_timeout(tmp_path, server, start):
    child = start()
    assert child.stdout.readline().startswith("W&B: http://127.0.0.1")
    server.die()
    said, _ = child.communicate("[1]\n[2, 3]\n", timeout=60)
    assert child.returncode == 0
    lines = said.splitlines()
    assert lines[:2] == ["wrote", "wrote"] and lines[3:] == ["closed"]
    assert lines[2].startswith("W&B: the upload did not end within 2 s. To upload it later: wandb sync ")
    assert Path(lines[2].rsplit(" ", 1)[1]).is_dir()


def test_the_key_is_in_no_file(tmp_path, server, start):
    start().communicate("[1]\n", timeout=120)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 3
    assert [path for path in written if b"canary0" in path.read_bytes()] == []


def test_a_key_that_the_server_refuses_costs_one_line_and_is_not_shown(tmp_path, server, start):
    server.refuses_the_key = True
    child = start()
    said, _ = child.communicate("[1]\n", timeout=120)
    assert child.returncode == 0, said
    lines = said.splitlines()
    assert lines[-2:] == ["wrote", "closed"] and sum("logged offline" in line for line in lines) == 1, said
    assert "wandb sync" in said and "canary0" not in said
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert [path for path in tmp_path.rglob("*") if path.is_file() and b"canary0" in path.read_bytes()] == []

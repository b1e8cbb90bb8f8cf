"""The W&B workspace: nothing registered is missing, nothing else is drawn, and a server gets what was planned.

The stand-in answers the GraphQL calls that wandb 0.31 and wandb-workspaces 0.4 make; it shows what is sent, not how
W&B's cloud draws it.
"""

import gzip
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from distill_engine.telemetry.dashboards import plan
from distill_engine.telemetry.metrics import describe, layered_terms, registered, sections, terms

ROOT = Path(__file__).parents[3]
FILLED = {"{dataset}": ("chat", "convai2:normalized"), "{layer}": ("0", "11"), "{metric}": ("ppl", "chat/loss")}
KEY = "0123456789abcdef0123456789abcdef01234567"


def concrete(name: str) -> list[str]:
    """Names a run may log for a registered metric."""
    names = [name]
    if "{term}" in name:
        chosen = layered_terms() if "{layer}" in name else terms()
        names = [name.replace("{term}", term) for term in chosen]
    for placeholder, words in FILLED.items():
        names = [one.replace(placeholder, word) for one in names for word in (words if placeholder in one else ("",))]
    return names


def drawn(name: str, panels: list) -> bool:
    return any(name in p.metrics or (p.pattern and re.fullmatch(p.pattern, name)) for p in panels)


def test_every_registered_metric_is_drawn():
    panels = [panel for section in plan() for panel in section.panels]
    missing = [name for metric in registered() for name in concrete(metric.name) if not drawn(name, panels)]
    assert missing == ["step"]  # the axis of all charts


def test_nothing_else_is_drawn():
    for section in plan():
        for panel in section.panels:
            assert bool(panel.metrics) != bool(panel.pattern)
            for name in panel.metrics:
                assert describe(name).name == name
            if panel.pattern:
                # the samples' own repetition may be drawn beside that of the datasets' replies
                named = [metric.name for metric in registered() if not metric.name.startswith("valid/sample/")]
                known = [one for name in named for one in concrete(name)]
                matched = {describe(one).section for one in known if re.fullmatch(panel.pattern, one)}
                assert len(matched) == 1, panel


def test_the_sections_of_the_registry_and_attention():
    names = [section.name for section in plan()]
    assert [name for name in names if name != "Attention"] == list(sections())
    attention = next(section for section in plan() if section.name == "Attention")
    raw = attention.panels[0].metrics
    kinds = ["encoder_self_attention", "decoder_self_attention", "cross_attention"]
    assert [name.split("/")[2] for name in raw] == kinds


def test_training_and_validation_share_a_panel():
    panels = {panel.title: panel for section in plan() for panel in section.panels}
    assert panels["ppl"].metrics == ("train/ppl", "valid/ppl", "valid/teacher_ppl")
    assert not {"teacher_ppl", "teacher_token_accuracy"} & set(panels), "beside the student's"
    assert panels["task/raw"].metrics == ("train/term/task/raw", "valid/term/task/raw")
    assert panels["share of the loss"].style == "pct-area"


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.views, self.refuse = [], False
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def answer(self, query, variables):
        if "upsertView" in query:
            if self.refuse:
                return {"errors": [{"message": "permission denied"}]}
            self.views.append(variables)
            return {"data": {"upsertView": {"view": {"id": "v1", "name": variables["name"]}, "inserted": True}}}
        viewer = {"id": "u", "entity": "team", "username": "somebody", "flags": "{}", "teams": {"edges": []}}
        server = {"cliVersionInfo": {"max_cli_version": "99"}, "latestLocalVersionInfo": None}
        return {"data": {"viewer": viewer, "serverInfo": server, "QueryType": {"fields": []}}}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        asked = json.loads(body)
        payload = json.dumps(self.server.answer(asked["query"], asked.get("variables"))).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *arguments):
        pass


PROGRAM = """
import sys, typer
from distill_engine.commands.dashboard import dashboard_app
app = typer.Typer(pretty_exceptions_enable=False)
app.add_typer(dashboard_app, name="dashboard")
app(sys.argv[1:])
"""


@pytest.fixture
def run(tmp_path):
    def program(*arguments, url="http://127.0.0.1:9", key=KEY):
        clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB") and name != "NETRC"}
        own = {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "WANDB_BASE_URL": url, "WANDB_API_KEY": key}
        command = [sys.executable, "-c", PROGRAM, "dashboard", "push", *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=clean | own, cwd=tmp_path, timeout=120)

    return program


@pytest.fixture
def server():
    pytest.importorskip("wandb_workspaces", reason="the extra `dashboards` is not installed")
    server = Server()
    yield server
    server.shutdown()
    server.server_close()


def test_a_server_gets_what_was_planned(run, server):
    url = f"http://127.0.0.1:{server.server_port}"
    done = run("--project", "pets", "--entity", "team", "--name", "losses", url=url)
    assert done.returncode == 0, done.stderr
    (view,) = server.views
    assert f"{url}/team/pets?nw=" in done.stdout
    assert (view["entityName"], view["projectName"], view["displayName"]) == ("team", "pets", "losses")
    sent = json.loads(view["spec"])["section"]["panelBankConfig"]["sections"]
    for section, planned in zip(sent, plan(), strict=True):
        assert section["name"] == planned.name
        for panel, wanted in zip(section["panels"], planned.panels, strict=True):
            config = panel["config"]
            assert config["xAxis"] == "step" and config["chartTitle"] == wanted.title
            assert tuple(config.get("metrics", ())) == wanted.metrics
            assert config.get("metricRegex") == wanted.pattern


def test_a_refusal_is_said_without_a_traceback(run, server):
    server.refuse = True
    done = run("--project", "pets", "--entity", "team", url=f"http://127.0.0.1:{server.server_port}")
    assert done.returncode == 78
    assert "W&B did not take the workspace for project 'pets'" in done.stderr and "Traceback" not in done.stderr


def test_a_dry_run_needs_no_key_and_no_network(run):
    pytest.importorskip("wandb_workspaces", reason="the extra `dashboards` is not installed")
    done = run("--dry-run", "--project", "pets", key="")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["section"]["panelBankConfig"]["sections"]
    assert [section["name"] for section in found] == [section.name for section in plan()]

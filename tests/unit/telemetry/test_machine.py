"""The machine record is complete enough to compare runs and names nobody."""

import getpass
import json
import platform
import socket
import subprocess
from importlib.metadata import version

from distill_engine.arithmetic import products
from distill_engine.telemetry.machine import machine_record


def git(folder, *arguments):
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.com"]
    return subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


def checkout(folder):
    git(folder, "init", "-q")
    (folder / "file").write_text("one")
    git(folder, "add", "file")
    git(folder, "commit", "-q", "-m", "first")
    return git(folder, "rev-parse", "HEAD")


def test_versions_and_hardware(tmp_path):
    record = machine_record(tmp_path)
    assert record["python"] == platform.python_version()
    for package in ("torch", "deepspeed", "transformers"):
        assert record["versions"][package] == version(package)
    assert record["cpu"] and record["cpu_cores"] >= 1
    assert isinstance(record["gpus"], list)
    assert record["float32_products"] == products.library()


def test_it_names_neither_host_nor_user_nor_path(tmp_path):
    text = json.dumps(machine_record())
    assert socket.gethostname() not in text
    assert str(tmp_path.home()) not in text
    assert f'"{getpass.getuser()}"' not in text


def test_commit_and_dirty_flag(tmp_path):
    commit = checkout(tmp_path)
    assert machine_record(tmp_path)["git"] == {"commit": commit, "dirty": False}
    (tmp_path / "untracked").touch()
    assert machine_record(tmp_path)["git"]["dirty"] is False
    (tmp_path / "file").write_text("two")
    assert machine_record(tmp_path)["git"] == {"commit": commit, "dirty": True}


def test_outside_a_checkout_and_inside_somebody_elses(tmp_path):
    assert "git" not in machine_record(tmp_path)
    checkout(tmp_path)
    installed = tmp_path / "venv" / "site-packages"
    installed.mkdir(parents=True)
    assert "git" not in machine_record(installed)


def test_without_git_it_is_left_out(tmp_path, monkeypatch):
    checkout(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "git" not in machine_record(tmp_path)

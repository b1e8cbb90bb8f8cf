"""An export target from outside the package: listed, written, refused what it lacks."""

import json
import math
from pathlib import Path

from safetensors.torch import load_file

HERE = Path(__file__).parent
TEACHER = HERE.parents[1] / "recipes" / "demo" / "teacher"
BY_FILE = ("--plugin", HERE / "toy_export.py")


def test_a_plugins_target_is_written_and_refuses_other_quantisations(program, distill, tmp_path):
    done = distill(program, *BY_FILE, "export", TEACHER, tmp_path / "new", "--format", "counts")
    assert done.returncode == 0, done.stderr
    held = {name: math.prod(tensor.shape) for name, tensor in load_file(TEACHER / "model.safetensors").items()}
    assert json.loads((tmp_path / "new" / "counts.json").read_text()) == held
    done = distill(program, *BY_FILE, "export", TEACHER, tmp_path / "less", "--format", "counts", "--quantize", "int8")
    assert done.returncode != 0 and "It knows dozens." in done.stderr and not (tmp_path / "less").exists()


def test_an_installed_package_needs_no_flag(program, distill, installed, by_name, tmp_path):
    env = installed(exports="counts = toy_export:COUNTS")
    listed = distill(program, "list", "exports", "--markdown", env=env)
    assert "| `counts` | elements of each tensor, as JSON |" in listed.stdout, listed.stderr
    for name, plugged, seen in (("entry", (), env), ("module", ("--plugin", "toy_export"), by_name)):
        done = distill(program, *plugged, "export", TEACHER, tmp_path / name, "--format", "counts", env=seen)
        assert done.returncode == 0 and (tmp_path / name / "counts.json").is_file(), done.stderr

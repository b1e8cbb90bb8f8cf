"""What users get wrong: exit code 78, every reason in words, nothing like a traceback, and quickly.

Most rows call the program's `main` in this process, which saves its start; some are started as users do.
"""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from distill_engine import run as run_module
from distill_engine.exit_codes import BAD_INPUT


class Case:
    """One mistake in the making: a sound recipe, files of its own, and how the program is called."""

    def __init__(self, recipe: dict, folder: Path, teachers: dict[str, Path]) -> None:
        self.recipe, self.folder, self._teachers = recipe, folder, teachers
        self.text: str | None = None  # the recipe's YAML, where it is not just the recipe
        self.arguments: list[str] = []
        self.run_dir = folder / "run"

    def set(self, path: str, value) -> None:
        *sections, key = path.split(".")
        place = self.recipe
        for section in sections:
            place = place[int(section)] if section.isdecimal() else place.setdefault(section, {})
        place[key] = value

    def file(self, name: str, content: str) -> str:
        (self.folder / name).write_text(content)
        return str(self.folder / name)

    def own_teacher(self, family: str = "blenderbot") -> Path:
        """A copy that may be damaged."""
        copy = self.folder / "teacher"
        shutil.copytree(self._teachers[family], copy)
        self.set("teacher.path", str(copy))
        return copy

    def change_config(self, **values) -> None:
        file = self.own_teacher() / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    def ds_config(self, content: dict | str) -> None:
        text = content if isinstance(content, str) else json.dumps(content)
        self.arguments += ["--ds_config", self.file("ds.json", text)]

    def lines(self, content: str, *, kind: str = "parlai_text") -> None:
        self.set("data.tasks.0.name", kind)
        self.set("data.tasks.0.train", self.file("own.txt", content))


@pytest.fixture
def case(base_recipe, teachers, tmp_path) -> Case:
    return Case(base_recipe(), tmp_path, teachers)


@pytest.fixture
def call(case, write_recipe, fp32, monkeypatch, capfd) -> Callable[[], tuple[int, str]]:
    """Run the case in this process: exit code and what was written to stderr."""
    for name in [name for name in os.environ if name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def run() -> tuple[int, str]:
        recipe = write_recipe(case.recipe)
        if case.text is not None:
            recipe.write_text(case.text)
        arguments = ["--recipe", recipe, "--run-dir", case.run_dir, "--ds_config", fp32, *case.arguments]
        capfd.readouterr()
        try:
            code = run_module.main([str(word) for word in arguments])
        except SystemExit as exited:  # argparse
            code = exited.code
        return code, capfd.readouterr().err

    return run


# what is wrong -> (how to make it so, what the message must say)
Row = tuple[Callable[[Case], None], list[str]]


def setting(path: str, value) -> Callable[[Case], None]:
    return lambda case: case.set(path, value)


RECIPE: dict[str, Row] = {
    "unknown key": (setting("student.encoder_layer", 1), ["student.encoder_layer", "Did you mean encoder_layers?"]),
    "unknown section": (setting("losess.weights.task", 1), ["losess", "Did you mean losses?"]),
    "wrong type": (setting("batch.per_rank", "many"), ["batch.per_rank", "'many'", "whole number"]),
    "number out of range": (setting("optimizer.learning_rate", -1), ["optimizer.learning_rate", "-1"]),
    "unknown task": (setting("data.tasks.0.name", "parlai_txt"), ["parlai_txt", "Did you mean parlai_text?"]),
    "ParlAI task": (
        setting("data.tasks.0", {"name": "blended_skill_talk"}),
        ["data.tasks.0.name", "'blended_skill_talk'", "no reader"],
    ),
    "missing data file": (setting("data.tasks.0.train", "nowhere/train.txt"), ["nowhere/train.txt", "not exist"]),
    "empty data file": (lambda case: case.lines(""), ["own.txt", "empty"]),
    "width not divisible by heads": (
        lambda case: (case.set("student.width", 30), case.set("student.heads", 4)),
        ["student.width", "30", "4 heads", "do not divide"],
    ),
    "all weights 0 with a teacher": (
        lambda case: (case.set("losses.weights", {"task": 1}), case.set("student.init", "random")),
        ["teacher.path", "all distillation weights", "are 0"],
    ),
    "all weights 0": (setting("losses.weights", {"task": 0}), ["losses.weights", "all 0", "nothing is learnt"]),
    "no validation split but a metric": (
        setting("data.tasks.0.valid", None),
        ["no `valid` file", "ppl", "validation.metric"],
    ),
    "no validation but a plateau": (
        lambda case: (case.set("validation.every_steps", None), case.set("schedule.name", "reduce_on_plateau")),
        ["schedule.name", "reduce_on_plateau", "no validation ever runs"],
    ),
    "metric nobody measures": (setting("validation.metric", "bleu"), ["validation.metric", "'bleu'"]),
    "contexts beyond the student's positions": (
        lambda case: (case.set("student.positions", 40), case.set("student.init", "random")),
        ["data.context_tokens", "48", "40 positions"],
    ),
    "not YAML": (lambda case: setattr(case, "text", "name: [unclosed\nseed: 1\n"), ["line", "YAML"]),
    "empty recipe": (lambda case: setattr(case, "text", ""), ["the file is empty"]),
    "unreadable --set": (lambda case: case.arguments.extend(["--set", "stop.max_steps"]), ["section.key=value"]),
    "--set of an unknown key": (
        lambda case: case.arguments.extend(["--set", "stop.max_step=3"]),
        ["stop.max_step", "Did you mean max_steps?", "from --set"],
    ),
    "missing recipe": (lambda case: case.arguments.extend(["--recipe", "nowhere.yaml"]), ["nowhere.yaml", "no such"]),
}

TALK = "text:hello\tlabels:hi there\n"
DATA: dict[str, Row] = {
    "line without label": (
        lambda case: case.lines(TALK + "text:how are you\n" + TALK),
        ["own.txt, line 2", "no field `labels`", "how are you"],
    ),
    "line that is no field": (lambda case: case.lines(TALK * 3 + "hello there\n"), ["own.txt, line 4", "key:value"]),
    "line that is not UTF-8": (
        lambda case: (
            case.lines(TALK),
            (case.folder / "own.txt").write_bytes(TALK.encode() + b"text:h\xe4\tlabels:x\n"),
        ),
        ["own.txt, line 2", "not UTF-8"],
    ),
    "line that is no JSON": (
        lambda case: case.lines('{"dialog": []}\n{"dialog": [[\n', kind="conversations"),
        ["own.txt, line 2", "not JSON"],
    ),
    "conversation of another shape": (
        lambda case: case.lines('{"turns": ["hi"]}\n', kind="conversations"),
        ["own.txt, line 1", "`dialog`"],
    ),
    "file without an example": (
        lambda case: case.lines('{"dialog": [[{"id": "a", "text": "hi"}]]}\n', kind="conversations"),
        ["own.txt", "no example", "train"],
    ),
    "file of blank lines": (lambda case: case.lines("\n\n"), ["own.txt", "no example"]),
    "data file that is a folder": (
        lambda case: case.set("data.tasks.0.valid", str(case.folder)),
        ["data.tasks.0.valid", "is a folder"],
    ),
}


def drop_tensor(case: Case) -> None:
    file = case.own_teacher() / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.decoder.layers.0.fc1.weight"]
    save_file(tensors, file, metadata={"format": "pt"})


def truncate(case: Case) -> None:
    file = case.own_teacher() / "model.safetensors"
    os.truncate(file, file.stat().st_size // 2)


def random_student(damage: Callable[[Case], None]) -> Callable[[Case], None]:
    """The teacher's files are then first read by the teacher's engine, not by the copying of layers."""
    return lambda case: (damage(case), case.set("student.init", "random"))


def other_tokenizer(case: Case) -> None:
    folder = case.own_teacher()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"<extra{n}>" for n in range(8)])
    case.set("data.tokenizer", str(case.folder / "tokenizer"))
    tokenizer.save_pretrained(case.folder / "tokenizer")
    case.lines("text:hello\tlabels:<extra7>\n")


TEACHER: dict[str, Row] = {
    "head counts that differ": (
        lambda case: (case.set("student.heads", 2), case.set("losses.weights.self_attention", 4.0)),
        ["losses.weights.self_attention", "4 heads", "student 2", "head by head"],
    ),
    "student deeper than the teacher": (
        setting("student.decoder_layers", 5),
        ["student.decoder_layers", "is 5", "4 layers"],
    ),
    "narrower student of copied layers": (setting("student.width", 16), ["student.width", "teacher_layers"]),
    "width that the teacher's heads do not divide": (
        lambda case: (case.set("student.width", 30), case.set("student.init", "random")),
        ["student.width", "30", "4 heads"],
    ),
    "another family": (setting("student.family", "bart"), ["student.family", "bart", "blenderbot"]),
    "contexts beyond the teacher's position table": (
        setting("data.context_tokens", 65),
        ["data.context_tokens", "65", "64 rows"],
    ),
    "labels that BART's start tokens push beyond it": (
        lambda case: (case.own_teacher("bart"), case.set("data.label_tokens", 64)),
        ["data.label_tokens", "64 rows", "65"],
    ),
    "ids above the embedding table": (other_tokenizer, ["data.tokenizer", "embedding rows"]),
    "vocabulary of another size": (
        lambda case: case.change_config(vocab_size=50265),
        ["data.tokenizer", "50265 embedding rows"],
    ),
    "special tokens of other ids": (
        lambda case: case.change_config(bos_token_id=2, eos_token_id=1),
        ["data.tokenizer", "bos_token_id", "eos_token_id", "share their special tokens"],
    ),
    "model of an unknown family": (lambda case: case.change_config(model_type="t5"), ["'t5'", "blenderbot, bart"]),
    "missing teacher folder": (
        setting("teacher.path", "teachers/nowhere"),
        ["teacher.path", "teachers/nowhere", "Correct the path"],
    ),
    "teacher folder without config": (
        lambda case: (case.own_teacher() / "config.json").unlink(),
        ["teacher.path", "config.json cannot be read"],
    ),
    "teacher config that is no JSON": (
        lambda case: (case.own_teacher() / "config.json").write_text("{"),
        ["teacher.path", "config.json cannot be read"],
    ),
    "teacher config that is no object": (
        lambda case: (case.own_teacher() / "config.json").write_text("[1]"),
        ["teacher.path", "config.json"],
    ),
    "missing tokenizer": (setting("data.tokenizer", "no/tokenizer"), ["no/tokenizer", "tokenizer"]),
    "teacher without weights": (
        lambda case: (case.own_teacher() / "model.safetensors").unlink(),
        ["no model.safetensors"],
    ),
    "teacher without weights, random student": (
        random_student(lambda case: (case.own_teacher() / "model.safetensors").unlink()),
        ["teacher.path", "model.safetensors"],
    ),
    "truncated weights": (truncate, ["model.safetensors cannot be read", "incomplete"]),
    "truncated weights, random student": (random_student(truncate), ["teacher.path", "cannot be read"]),
    "missing tensor": (drop_tensor, ["model.decoder.layers.0.fc1.weight"]),
    "missing tensor, random student": (
        random_student(drop_tensor),
        ["missing model.decoder.layers.0.fc1.weight", "random numbers"],
    ),
    "weights of another size": (
        random_student(lambda case: case.change_config(decoder_ffn_dim=60)),
        ["teacher.path", "mismatched", "fc1"],
    ),
}

STAGE2 = {"zero_optimization": {"stage": 2}}
DEEPSPEED: dict[str, Row] = {
    "fp16 and bf16 both on": (
        lambda case: case.ds_config(STAGE2 | {"fp16": {"enabled": True}, "bf16": {"enabled": True}}),
        ["fp16.enabled and bf16.enabled are both true"],
    ),
    "ZeRO stage 3 for the student": (
        lambda case: case.ds_config({"zero_optimization": {"stage": 3}}),
        ["zero_optimization.stage is 3", "ZeRO-2"],
    ),
    "no ZeRO stage": (lambda case: case.ds_config({}), ["zero_optimization.stage is missing"]),
    "ZeRO stage 2 for the teacher": (
        lambda case: case.arguments.extend(["--teacher_ds_config", case.file("t.json", json.dumps(STAGE2))]),
        ["t.json", "zero_optimization.stage is 2", "ZeRO-3"],
    ),
    "batch in both places": (
        lambda case: case.ds_config(STAGE2 | {"train_micro_batch_size_per_gpu": 7}),
        ["train_micro_batch_size_per_gpu is 7", "recipe says 4", "batch.per_rank"],
    ),
    "learning rate in both places": (
        lambda case: case.ds_config(STAGE2 | {"optimizer": {"type": "AdamW", "params": {"lr": 0.5}}}),
        ["optimizer.params.lr is 0.5", "0.01", "optimizer.learning_rate"],
    ),
    "automatic value": (
        lambda case: case.ds_config(STAGE2 | {"gradient_clipping": "auto"}),
        ["gradient_clipping is 'auto'"],
    ),
    "unknown key": (
        lambda case: case.ds_config({"zero_optimisation": {"stage": 2}}),
        ["zero_optimisation", "Did you mean zero_optimization?"],
    ),
    "no JSON": (lambda case: case.ds_config('{"zero_optimization": \n {stage: 2}}'), ["line 2", "not valid JSON"]),
    "missing file": (
        lambda case: case.arguments.extend(["--ds_config", str(case.folder / "nowhere.json")]),
        ["nowhere.json", "cannot be read"],
    ),
}

ROWS = [
    pytest.param(make, says, id=f"{group}: {name}")
    for group, rows in {"recipe": RECIPE, "data": DATA, "teacher": TEACHER, "deepspeed": DEEPSPEED}.items()
    for name, (make, says) in rows.items()
]


def complaints(code: int, err: str, says: list[str]) -> None:
    assert code == BAD_INPUT, f"exit code {code}\n{err}"
    assert "Traceback" not in err, err
    missing = [part for part in says if part not in err]
    assert not missing, f"not said: {missing}\n{err}"


@pytest.mark.parametrize(("make", "says"), ROWS)
def test_is_refused_with_the_reason(case, call, make, says):
    make(case)
    code, err = call()
    complaints(code, err, says)
    assert not list(case.run_dir.glob("checkpoints/step-*"))


def test_all_problems_are_reported_at_once(case, call):
    for path in ("student.heds", "batch.per_rnk", "losses.weights.hiden"):
        case.set(path, 1)
    case.set("optimizer.learning_rate", "fast")
    complaints(*call(), ["4 problems", "heads", "per_rank", "hidden", "optimizer.learning_rate"])


@pytest.mark.parametrize("arguments", [["--reciep", "x"], ["--ds_config"], ["--set"], ["surplus"]])
def test_a_wrong_command_line_is_a_usage_error(case, call, arguments):
    case.arguments += arguments
    code, err = call()
    assert code == 2 and "usage: run.py" in err and "Traceback" not in err


def test_the_run_folder_is_a_file(case, call):
    case.run_dir.write_text("not a folder")
    complaints(*call(), [str(case.run_dir), "cannot be used", "--run-dir"])
    assert case.run_dir.read_text() == "not a folder"


def test_the_run_folder_cannot_be_made(case, call):
    case.run_dir = Path("/proc/nobody/can/write")
    complaints(*call(), ["/proc/nobody/can/write", "cannot be used", "--run-dir"])


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KiB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", "size=64k,mode=0700", "tmpfs", str(folder)]
    mounted = subprocess.run(["mount", *options], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(folder: Path, leave_pages: int) -> None:
    pages = (64 >> 2) - leave_pages
    (folder / "filling").write_bytes(b"x" * (pages << 12))


@pytest.mark.parametrize("leave_pages", [0, 1], ids=["from the start", "after the lock"])
def test_the_run_folder_is_full(case, call, small_disk, leave_pages):
    fill(small_disk, leave_pages)
    case.run_dir = small_disk / "run"
    complaints(*call(), [str(case.run_dir), "cannot be used", "No space left"])


def test_the_run_folder_is_read_only(case, call, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    case.run_dir = small_disk
    complaints(*call(), [str(case.run_dir), "Read-only file system", "--run-dir"])


# ---- as users start it -------------------------------------------------------------------------------------------


def test_a_bad_recipe_dies_before_anything_heavy_is_loaded(case, program, write_recipe):
    case.set("student.encoder_layer", 1)
    recipe = write_recipe(case.recipe)
    started = time.monotonic()
    ended = program.run("--recipe", recipe, "--run-dir", case.run_dir, env={"PYTHONPROFILEIMPORTTIME": "1"})
    assert time.monotonic() - started < 30, "it takes less than a second on a free machine"
    imported = {line.rpartition("|")[2].strip() for line in ended.err.splitlines() if line.startswith("import time:")}
    assert "pydantic" in imported and not imported & {"torch", "deepspeed", "transformers"}
    said = "\n".join(line for line in ended.err.splitlines() if not line.startswith("import time:"))
    complaints(ended.code, said, ["Did you mean encoder_layers?"])
    assert not case.run_dir.exists()


def test_two_ranks_end_together_with_one_message(case, program, write_recipe, fp32):
    """The reason is found on rank 0 while rank 1 waits for it."""
    case.lines(TALK + "nonsense\n")
    recipe = write_recipe(case.recipe)
    ended = program.run("--recipe", recipe, "--run-dir", case.run_dir, "--ds_config", fp32, ranks=2)
    complaints(ended.code, ended.said, ["own.txt, line 2"])
    assert ended.said.count("own.txt, line 2") == 1


def test_two_ranks_refuse_a_damaged_teacher(case, program, write_recipe, fp32):
    drop_tensor(case)
    case.set("student.init", "random")
    recipe = write_recipe(case.recipe)
    ended = program.run("--recipe", recipe, "--run-dir", case.run_dir, "--ds_config", fp32, ranks=2)
    complaints(ended.code, ended.said, ["missing model.decoder.layers.0.fc1.weight"])
    assert ended.said.count("fc1.weight") == 1

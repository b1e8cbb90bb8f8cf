"""`distill evaluate`, `latency`, `report-card` and `chat` on the demo's teacher and a student cut out of it."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import typer
from transformers import AutoConfig, AutoModelForSeq2SeqLM
from typer.testing import CliRunner

from distill_engine.commands.chat import chat
from distill_engine.commands.evaluate import evaluate
from distill_engine.commands.latency import latency
from distill_engine.commands.report import report, report_card

ROOT = Path(__file__).parents[3]
TEACHER = ROOT / "recipes" / "demo" / "teacher"
PERSONA = "you are hugo, a cheerful gardener of 46. you live above a shop with a black rabbit called moss."


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """The demo's data, 40 examples in two datasets."""
    file = tmp_path_factory.mktemp("recipe") / "small.yaml"
    text = (ROOT / "recipes" / "demo.yaml").read_text("utf-8").replace("path: demo/teacher ", f"path: {TEACHER} ")
    datasets = "".join(
        f"    - {{name: demo, label: {label}, seed: {seed}, train_examples: 20, valid_examples: 20}}\n"
        for seed, label in enumerate(("pets", "sums"), 1)
    )
    file.write_text(re.sub(r"    - name: demo\n(      .*\n)+", datasets, text), "utf-8")
    return file


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> Path:
    """A run folder whose best is the teacher with 2 of its 6 decoder layers."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    config = AutoConfig.from_pretrained(TEACHER)
    config.decoder_layers = 2
    AutoModelForSeq2SeqLM.from_pretrained(TEACHER, config=config).save_pretrained(folder / "best")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TEACHER / name, folder / "best" / name)
    return folder


@pytest.fixture
def run(tmp_path, monkeypatch):
    app = typer.Typer(pretty_exceptions_enable=False)
    for one in (evaluate, latency, report, report_card, chat):
        app.command()(one)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")

    def command(*arguments, said=None, code=0):
        done = CliRunner().invoke(app, [str(one) for one in arguments], input=said)
        assert done.exit_code == code, (done.output, done.exception)
        return done

    return command


def test_evaluate_prints_tables_and_writes_json(run, recipe, student, tmp_path):
    done = run("evaluate", TEACHER, student, "--recipe", recipe, "--generate", "--json", "out.json")
    rows = json.loads((tmp_path / "out.json").read_text())
    assert list(rows) == [str(TEACHER), str(student)]
    of_teacher = rows[str(TEACHER)]
    names = "parameters ppl ppl_micro token_acc token_em teacher_acc teacher_kl f1 bleu exs"
    assert set(names.split()) < set(of_teacher) and of_teacher["exs"] == 40
    assert {"pets/ppl", "sums/f1"} < set(of_teacher)
    assert of_teacher["teacher_acc"] == 1.0 > rows[str(student)]["teacher_acc"]
    for title in ("all datasets", "pets", "sums", "token acc", "interdistinct-2"):
        assert title in done.stdout
    assert re.search(r"ppl +│ +\S+ +│ +\S+", done.stdout)
    kept = list((tmp_path / "runs" / ".evaluations").glob("*/rank-0.jsonl"))
    assert len(kept) == 2


def test_a_rank_of_srun_that_fails_while_it_loads_is_heard(run, recipe, tmp_path, monkeypatch):
    step = {"JOB_ID": "7", "STEP_ID": "0", "STEP_NUM_TASKS": "2", "STEP_TASKS_PER_NODE": "2", "STEP_NODELIST": "here"}
    (tmp_path / "nowhere").mkdir()
    for rank, model in (("1", tmp_path / "nowhere"), ("0", TEACHER)):
        for name, value in {**step, "PROCID": rank, "LOCALID": rank, "NODEID": "0"}.items():
            monkeypatch.setenv(f"SLURM_{name}", value)
        failed = run("evaluate", model, "--recipe", recipe, code=78)
    assert re.search(r"batches of .* will not come: rank-1: \w+: .*nowhere", failed.stderr)
    assert (tmp_path / "runs" / ".evaluations" / ".steps" / "slurm-7.0.0" / "rank-1.failed").is_file()


@pytest.fixture(scope="module")
def with_files(tmp_path_factory, recipe) -> Path:
    """Two datasets of files: `talk` has three splits of 3, 2 and 1 examples, `few` has no test split."""
    folder = tmp_path_factory.mktemp("files")
    for split, count in (("train", 3), ("valid", 2), ("test", 1)):
        lines = [f"text:do you like {split} {n}?\tlabels:yes, {split}.\tepisode_done:True\n" for n in range(count)]
        (folder / f"{split}.txt").write_text("".join(lines))
    head = recipe.read_text("utf-8").partition("  datasets:\n")[0]
    tail = recipe.read_text("utf-8").rpartition("valid_examples: 20}\n")[2]
    files = {split: f"{split}: {folder / split}.txt" for split in ("train", "valid", "test")}
    datasets = f"    - {{name: parlai_text, label: talk, {', '.join(files.values())}}}\n"
    datasets += f"    - {{name: parlai_text, label: few, {files['train']}, {files['valid']}}}\n"
    file = folder / "files.yaml"
    file.write_text(f"{head}  datasets:\n{datasets}{tail}", "utf-8")
    return file


def test_any_split_is_evaluated_and_tasks_without_it_are_named(run, with_files, tmp_path):
    ppl = {}
    for split, examples, labels in (("train", 6, {"talk", "few"}), ("valid", 4, {"talk", "few"}), ("test", 1, set())):
        done = run("evaluate", TEACHER, "--recipe", with_files, "--split", split, "--json", f"{split}.json")
        (row,) = json.loads((tmp_path / f"{split}.json").read_text()).values()
        assert row["exs"] == examples
        assert ("without a test split, and left out: few" in done.stderr) == (split == "test")
        assert {title for title in ("talk", "few") if re.search(rf"^{title} *$", done.stdout, re.MULTILINE)} == labels
        ppl[split] = row["talk/ppl"]
    assert len(set(ppl.values())) == 3
    assert run("evaluate", TEACHER, "--recipe", with_files, "--split", "valid").stdout  # its own partial results


def test_a_split_that_no_task_has_is_refused(run, with_files):
    drop = ["--set", "data.datasets.0.test=null"]
    said = run("evaluate", TEACHER, "--recipe", with_files, "--split", "test", *drop, code=78).stderr
    for words in ("none of its datasets (talk, few) has a test split", "`test: FILE`", "--split train or valid"):
        assert words in said
    assert "Invalid value for '--split'" in run("evaluate", TEACHER, "--split", "dev", code=2).stderr


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["evaluate", "no/such/folder", "--recipe", "{recipe}"], "model 'no/such/folder' cannot be loaded"),
        (["evaluate", "{teacher}"], "no recipe given, and none of"),
        (["evaluate", "{teacher}", "--recipe", "{recipe}", "--generation", "beams=3"], "name=value with a name of"),
        (["latency", "{teacher}", "--beams", "1,x"], "--beams '1,x': a comma-separated list of positive numbers"),
        (["latency", "{teacher}", "--dtypes", "fp8"], "--dtypes 'fp8': a comma-separated list of fp32, bf16, fp16"),
        (
            ["latency", "{teacher}", "--backends", "torch,onx"],
            "--backends 'torch,onx': a comma-separated list of torch,",
        ),
        (["latency", "{teacher}", "--backends", "hf"], "--backends 'hf': a comma-separated list of torch, torch-int8,"),
        (
            ["latency", "{teacher}", "--backends", "torch-int8", "--compile", "--dtypes", "bf16"],
            "--dtypes bf16, --compile: options of PyTorch, which torch-int8 (--backends) do not have",
        ),
        (["report-card", "{teacher}", "{teacher}", "--backends", "tflite"], "--backends 'tflite': a comma-separated"),
        (["report", "nowhere"], "nowhere is no run folder"),
        (["chat", "no/such/folder"], "model 'no/such/folder' cannot be loaded"),
    ],
)
def test_mistakes_are_told(run, recipe, arguments, said):
    given = [one.format(recipe=recipe, teacher=TEACHER) for one in arguments]
    assert said in run(*given, code=78).stderr


def test_ranks_that_are_none_are_refused(run, recipe, monkeypatch):
    launched = {"RANK": "3", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    assert "rank is 3" in run("evaluate", TEACHER, "--recipe", recipe, code=78).stderr
    monkeypatch.setenv("RANK", "1")
    assert "start it as one process" in run("report-card", TEACHER, TEACHER, code=78).stderr


def test_latency_rows(run, student, tmp_path):
    options = "--beams 1,2 --batches 1,2 --rounds 2 --warm-up 0 --new-tokens 3 --dtypes fp32,bf16 --context-tokens 9"
    done = run("latency", TEACHER, student, *options.split(), "--json", "out.json")
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["contexts"] == "random tokens, 9 each" and content["machine"]["cpu_cores"] > 0
    assert content["protocol"]["rounds"] == 2
    keys = [(r["model"], r["dtype"], r["mode"], r["beams"], r["batch"]) for r in content["rows"]]
    assert len(keys) == len(set(keys)) == 2 * 2 * 2 * 2 * 2
    for row in content["rows"]:
        assert 0 < row["wait_ms_p50"] <= row["wait_ms_p90"] <= row["wait_ms_p99"]
        assert row["attention"] == "sdpa" and row["kv_cache"] is True and row["compiled"] is False
        assert row["new_tokens"] == 3 if row["mode"] == "fixed" else 1 <= row["new_tokens"] <= 3
    weights = {(r["model"], r["dtype"]): r["weights_mib"] for r in content["rows"]}
    assert weights[str(TEACHER), "float32"] == pytest.approx(2 * weights[str(TEACHER), "bfloat16"])
    assert "float32, sdpa, fixed (cpu, KV cache on, 2 rounds)" in done.stdout
    assert re.search(r"teacher +1 +2 +[\d.]+ +[\d.]+ +[\d.]+ +[\d,]+ +3\.0", done.stdout)


def test_latency_by_several_programs(run, recipe, tmp_path):
    for library in ("onnx", "onnxruntime"):
        pytest.importorskip(library, reason="the extra `onnx` is not installed")
    options = "--beams 1 --batches 1,2 --rounds 2 --warm-up 0 --new-tokens 3 --modes fixed --backends onnx,torch-int8"
    done = run("latency", TEACHER, *options.split(), "--recipe", recipe, "--json", "out.json")
    content = json.loads((tmp_path / "out.json").read_text())
    assert [(r["backend"], r["batch"]) for r in content["rows"]] == [
        ("onnx", 1), ("torch-int8", 1), ("onnx", 2), ("torch-int8", 2)
    ]  # fmt: skip
    assert {r["new_tokens"] for r in content["rows"]} == {3} and len({r["parameters"] for r in content["rows"]}) == 1
    exact, rounded = content["backends"]
    assert (exact["backend"], exact["agreement"], exact["prompts"]) == ("onnx", 1.0, 20)
    assert (rounded["backend"], rounded["mib_on_disk"] < exact["mib_on_disk"]) == ("torch-int8", True)
    for row in (exact, rounded):
        assert 0 < row["ms_p20"] <= row["ms_per_reply"] <= row["ms_p80"]
        assert row["tokens_per_second"] == pytest.approx(3000 / row["ms_per_reply"])
        assert row["memory_mib"] >= 0 and 0 <= row["quality"]["f1"] <= 1
    assert re.search(r"teacher +onnx +[\d.]+ +[\d.]+ to [\d.]+ .* 100.0%", done.stdout)
    assert "teacher (torch-int8)" in done.stdout


def test_everything_that_programs_lack_is_told_before_one_is_timed(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    monkeypatch.setattr("distill_engine.evaluate.latency.measure", lambda *_: pytest.fail("it is timed already"))
    told = run("latency", TEACHER, "--backends", "onnx,ctranslate2-int8", "--context-tokens", "9", code=78).stderr
    assert "--backends onnx: onnxruntime is not installed" in told
    assert "--backends ctranslate2-int8: ctranslate2 is not installed" in told
    monkeypatch.delattr("torch.ao.quantization.quantize_dynamic")
    assert "has no dynamic int8" in run("latency", TEACHER, "--backends", "torch-int8", code=78).stderr


def test_a_report_card(run, recipe, student, tmp_path):
    exported = tmp_path / "exported"
    shutil.copytree(student / "best", exported)
    (exported / "README.md").write_text("# small\n\nmine\n")
    options = ["--recipe", recipe, "--rounds", "2", "--beams", "2", "--batches", "1", "--new-tokens", "3"]
    programs: list[str] = []
    for _ in range(2):  # the second section replaces the first
        done = run("report-card", TEACHER, student, *options, "--out", "card", "--into", exported, *programs)
        programs = ["--backends", "torch-int8"]
    assert re.search(r"small answers [\d.]+ times as fast as teacher", done.stdout)
    content = json.loads((tmp_path / "card" / "report_card.json").read_text())
    assert list(content["quality"]) == ["teacher", "small"]
    first = content["latency"][0]
    assert (first["mode"], first["beams"], first["batch"], first["model"]) == ("fixed", 1, 1, str(TEACHER))
    page = (tmp_path / "card" / "report_card.html").read_text()
    markdown = (tmp_path / "card" / "report_card.md").read_text()
    ppl = f"{content['quality']['small']['ppl']:.4g}"
    for text in (page, markdown):
        assert ppl in text and "tok:13a" in text and "validation examples of recipe demo: pets (20), sums (20)" in text
        assert str(TEACHER) not in text
    assert "(frontier.svg)" in markdown and (tmp_path / "card" / "frontier.svg").read_text().startswith("<svg")
    card = (exported / "README.md").read_text()
    assert card.startswith("# small\n\nmine\n\n<!-- report card: begin -->") and card.count("## Report card") == 1
    assert ppl in card
    assert [row["backend"] for row in content["backends"]] == ["torch", "torch-int8"]
    for text in (markdown, card):
        assert re.search(r"\| small \| torch-int8 \| [\d.]+ \| [\d.]+ to [\d.]+ \|", text)
    assert '<td class="text">torch-int8</td>' in page
    assert (
        "no exported model is there"
        in run("report-card", TEACHER, student, *options, "--into", tmp_path, code=78).stderr
    )


def test_a_chat_side_by_side(run, recipe, student):
    lines = ["what is your name?", "", "what is your work?", "/jump", f"/persona {PERSONA}", "what is your name?"]
    said = "\n".join([*lines, "/quit", "never asked"])
    done = run("chat", TEACHER, "--beside", student, "--recipe", recipe, "--persona", PERSONA, said=said)
    replies = re.findall(r"^(teacher|small) \((\d+) ms, (\d+) tokens\): (.*)$", done.stdout, flags=re.MULTILINE)
    assert [name for name, *_ in replies] == ["teacher", "small"] * 3
    assert "hugo" in replies[0][3]
    assert replies[4][3] == replies[0][3]  # the same persona and question from the beginning
    assert "/jump is no command here" in done.stdout and "a new conversation" in done.stdout


def test_a_chat_without_a_recipe_says_how_contexts_are_made(run):
    done = run("chat", TEACHER, said="hello\n")
    assert "no recipe given; contexts are made as is usual for blenderbot" in done.stdout
    assert "teacher (" in done.stdout

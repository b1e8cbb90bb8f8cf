"""`distill pseudo-label` with the demo's teacher: the same bytes whoever generates and whatever stops it, and data that
a recipe mixes with gold."""

import json
import re
import resource
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from distill_engine.cli import app
from distill_engine.data.tokens.tokenize import load_tokenizer
from distill_engine.families.lookup import family_named
from distill_engine.pseudo_labels.filters import FilterError, Filters, parse_limits
from distill_engine.pseudo_labels.generate import PseudoLabelError, check_language
from distill_engine.recipe.rules import read_recipe
from distill_engine.recipe.schema import Recipe
from distill_engine.setup.prepare import prepare

ROOT = Path(__file__).parents[3]
TEACHER = ROOT / "recipes" / "demo" / "teacher"
BATCH = "8"
SAMPLED = [part for one in ("do_sample=true", "temperature=2.0", "max_new_tokens=12") for part in ("--generation", one)]
ROWS = [("how are you today?", "fine, thanks."), ("what is two plus three?", "it is five."), ("a\nb", "c | d\te")]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """Two sources: the demo's dialogues, whose turns have a history, and pairs with a prefix."""
    folder = tmp_path_factory.mktemp("recipe")
    rows = [json.dumps({"question": source, "reply": target}) for source, target in ROWS]
    (folder / "rows.jsonl").write_text("\n".join(rows) + "\n")
    content = yaml.safe_load((ROOT / "recipes" / "demo.yaml").read_text())
    content["teacher"]["path"] = str(TEACHER)
    content["data"]["datasets"] = [
        {"name": "demo", "seed": 3, "train_examples": 21, "valid_examples": 4},
        {"kind": "pairs", "label": "asked", "train": str(folder / "rows.jsonl"), "source": "question",
         "target": "reply", "prefix": "please: ", "weight": 0.5},
    ]  # fmt: skip
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def pseudo_label(recipe, out, *options, code=0):
    done = CliRunner().invoke(
        app, ["pseudo-label", str(recipe), "--out", str(out), "--batch-size", BATCH, *SAMPLED, *options]
    )
    assert done.exit_code == code, done.output
    return done


def made(out: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(out.iterdir()) if file.is_file()}


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory):
    """Folder and printed entries of one process that nothing stopped."""
    out = tmp_path_factory.mktemp("whole") / "labels"
    return out, yaml.safe_load(pseudo_label(recipe, out).stdout)


def test_a_recipe_mixes_the_result_with_gold(recipe, whole, tmp_path):
    out, entries = whole
    mixed = yaml.safe_load(recipe.read_text())
    mixed["data"]["datasets"] += entries
    (tmp_path / "mixed.yaml").write_text(yaml.safe_dump(mixed))
    checked = CliRunner().invoke(app, ["check", "--recipe", str(tmp_path / "mixed.yaml")])
    assert checked.exit_code == 0, checked.output
    ready = prepare(read_recipe(tmp_path / "mixed.yaml"), "mixed")
    assert ready.dataset_labels == ("demo", "asked", "demo_pseudo", "asked_pseudo")
    gold, pseudo = ready.train_datasets[:2], ready.train_datasets[2:]
    assert [len(task) for task in pseudo] == [21, 3]  # nothing is filtered
    for one, other in zip(gold, pseudo, strict=True):
        contexts = [[task.example(index).context_ids for index in range(len(task))] for task in (one, other)]
        assert all(np.array_equal(*pair) for pair in zip(*contexts, strict=True))
        labels = [[task.example(index).label_ids.tolist() for index in range(len(task))] for task in (one, other)]
        assert labels[0] != labels[1]
    # a demo episode has several turns, a generated example is an episode of its own: the same share of the examples
    assert entries[0]["weight"] == pytest.approx(len(gold[0]) / gold[0].episodes, rel=1e-3)
    assert entries[0]["weight"] > 1.5 and entries[1]["weight"] == 0.5
    summary = json.loads((out / "summary.json").read_text())
    assert [(one["name"], one["examples"], one["kept"]) for one in summary["datasets"]] == [
        ("demo", 21, 21), ("asked", 3, 3),
    ]  # fmt: skip


def test_two_ranks_give_the_same_bytes(recipe, whole, tmp_path, monkeypatch):
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29999", "LOCAL_WORLD_SIZE": "2"}
    for rank in ("1", "0"):  # rank 0 waits for what rank 1 has left
        for name, value in {**common, "RANK": rank, "LOCAL_RANK": rank}.items():
            monkeypatch.setenv(name, value)
        pseudo_label(recipe, tmp_path / "two")
    assert made(tmp_path / "two") == made(whole[0])
    shares = [file.read_bytes().count(b"\n") for file in sorted((tmp_path / "two" / "work").glob("*/*.jsonl"))]
    assert shares == [2, 1]


def test_a_rank_of_srun_that_fails_while_it_loads_is_heard(recipe, tmp_path, monkeypatch):
    step = {"JOB_ID": "7", "STEP_ID": "0", "STEP_NUM_TASKS": "2", "STEP_TASKS_PER_NODE": "2", "STEP_NODELIST": "here"}
    (tmp_path / "nowhere").mkdir()
    for rank, options in (("1", ("--model", tmp_path / "nowhere")), ("0", ())):
        for name, value in {**step, "PROCID": rank, "LOCALID": rank, "NODEID": "0"}.items():
            monkeypatch.setenv(f"SLURM_{name}", value)
        failed = pseudo_label(recipe, tmp_path / "out", *options, code=78)
    assert re.search(r"batches of .* will not come: rank-1: \w+: .*nowhere", failed.stderr)
    assert made(tmp_path / "out") == {}


def test_what_no_disk_takes_is_said_and_the_next_start_goes_on(recipe, whole, tmp_path):
    """A file that may not grow, in the middle of a line, as of a start that is killed there."""
    out = tmp_path / "broken"
    (shards,) = (whole[0] / "work").glob("*/*.jsonl")
    lines = shards.read_bytes().splitlines(keepends=True)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(lines[0]) + len(lines[1]) // 2, hard))
    try:
        failed = pseudo_label(recipe, out, code=74)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "What is finished is kept in" in failed.stderr and made(out) == {}
    (part,) = (out / "work").glob("*/*.jsonl")
    assert part.read_bytes().startswith(lines[0]) and not part.read_bytes().endswith(b"\n")
    inode = part.stat().st_ino
    pseudo_label(recipe, out)
    assert made(out) == made(whole[0])
    assert part.read_bytes() == b"".join(lines) and part.stat().st_ino == inode


def test_other_filters_cost_no_generation_and_are_counted(recipe, whole, tmp_path):
    out = whole[0]
    (shards,) = (out / "work").glob("*/*.jsonl")
    before, generated = made(out), shards.read_bytes()
    pseudo_label(recipe, out, "--at-least", "f1=0.5", "--max-length-ratio", "2")
    first = json.loads((out / "summary.json").read_text())["datasets"][0]
    assert 0 < first["kept"] == 21 - sum(first["left_out"].values()) < 21
    assert {"f1 below 0.5", "length ratio above 2"} & set(first["left_out"])
    kept = (out / first["file"]).read_bytes().splitlines()
    assert len(kept) == first["kept"] and set(kept) < set(before[first["file"]].splitlines())
    assert shards.read_bytes() == generated and len(list((out / "work").iterdir())) == 1
    pseudo_label(recipe, out, "--at-most", "f1=-1", code=78)  # nothing is left: no entry, and said so
    pseudo_label(recipe, out)
    assert made(out) == before
    pseudo_label(recipe, out, "--seed", "1")
    assert made(out)[first["file"]] != before[first["file"]]


def test_filters():
    tokenizer = load_tokenizer(str(TEACHER))
    strict = Filters(2.0, 0.2, parse_limits(["repetition=0.9"], ["f1 = 0.5"]))
    assert strict.reason("i like cats .", "i like dogs .", tokenizer) == ""
    assert strict.reason(" \n", "hello", tokenizer) == "empty"
    assert strict.reason("no", "no i do not", tokenizer) == strict.reason("no i do not", "no", tokenizer)
    assert strict.reason("no", "no i do not", tokenizer) == "length ratio above 2"
    assert strict.reason("ha ha ha ha ha ha ha ha", "ha ha ha ha ha ha", tokenizer) == "repetition above 0.2"
    assert strict.reason("you hate dogs .", "i like cats .", tokenizer) == "f1 below 0.5"
    assert Filters().reason("ha ha ha ha ha", "x", tokenizer) == ""
    for given, said in (("rouge_k=1", "rouge_l\\?"), ("f1=x", "is no number"), ("f1", "is no number")):
        with pytest.raises(FilterError, match=said):
            parse_limits([given], [])


def test_without_a_teacher_somebody_has_to_be_named(recipe, tmp_path):
    random = ("teacher.path=null", "student.init=random", f"data.tokenizer={TEACHER}", "losses.weights={task: 1}")
    options = [part for one in random for part in ("--set", one)]
    assert "--model" in pseudo_label(recipe, tmp_path / "none", *options, code=78).stderr
    assert "f1" in pseudo_label(recipe, tmp_path / "none", "--at-least", "ef1=1", code=78).stderr


def test_datasets_of_other_target_languages_are_refused():
    """A model's settings begin all texts with one token: it has to be told, and be one for all datasets."""

    def check(*targets, family="m2m_100", **changed):
        pairs = {"kind": "pairs", "train": "x.tsv", "source_language": "eng_Latn"}
        tasks = [
            {**pairs, "label": str(number), **({} if target is None else {"target_language": target})}
            for number, target in enumerate(targets)
        ]
        section = {"datasets": tasks}
        recipe = Recipe.model_validate({"name": "x", "data": section, "optimizer": {"learning_rate": 1.0}})
        check_language(SimpleNamespace(recipe=recipe, family=family_named(family)), changed)

    check(None, None)
    check("deu_Latn", "deu_Latn", forced_bos_token_id=7)
    check("deu_Latn", decoder_start_token_id=7)
    check("deu_Latn", "fra_Latn", family="whisper", language="de")  # which is told each row's
    for targets, changed in [
        (("deu_Latn",), {}),
        (("deu_Latn", "fra_Latn"), {"forced_bos_token_id": 7}),
        (("deu_Latn", None), {"forced_bos_token_id": 7}),
    ]:
        with pytest.raises(PseudoLabelError, match=r"target languages are \{'0': 'deu_Latn'.*forced_bos_token_id=ID"):
            check(*targets, **changed)

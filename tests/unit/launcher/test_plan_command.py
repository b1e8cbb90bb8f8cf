"""`python -m launcher plan`: what is printed, whether it fits, and what would make it fit."""

import json
import re

import pytest
from typer.testing import CliRunner

from distill_engine.cluster.exit_codes import BAD_INPUT
from launcher.__main__ import app


@pytest.fixture
def plan(root, tmp_path):
    def run(*words: object, recipe: str = "bb3b_tinybert") -> tuple[int, str, dict]:
        file = tmp_path / "plan.json"
        command = ["plan", str(root / "recipes" / f"{recipe}.yaml"), "--json", str(file), *map(str, words)]
        said = CliRunner().invoke(app, command)
        return said.exit_code, said.output + said.stderr, json.loads(file.read_text()) if file.is_file() else {}

    return run


def test_the_flagship_fits_on_four_nodes(plan):
    code, said, numbers = plan("--nodes", 4, "--gpus-per-node", 8, "--gpu", "h100")
    assert code == 0 and "It fits." in said
    memory = numbers["memory_bytes"]
    assert memory["together"] == pytest.approx(sum(size for name, size in memory.items() if name != "together"))
    assert memory["teacher shard"] == pytest.approx(2.696e9 * 2 / 32, rel=1e-3)
    assert numbers["traffic_bytes"]["teacher gathering"]["between"] == pytest.approx(2.696e9 * 2 * 31 / 32, rel=1e-3)
    assert sum(v for k, v in numbers["seconds"].items() if k != "together") == pytest.approx(
        numbers["seconds"]["together"]
    )


def test_one_node_moves_nothing_between_nodes_and_one_gpu_nothing_at_all(plan):
    for words, within in ((("--nodes", 1, "--gpus-per-node", 8), True), (("--nodes", 1, "--gpus-per-node", 1), False)):
        traffic = plan(*words, "--gpu", "h200")[2]["traffic_bytes"].values()
        assert all(one["between"] == 0 for one in traffic)
        assert all((one["within"] > 0) is within for one in traffic)


def test_each_named_knob_really_makes_it_fit(plan):
    """Too big by its batch: every remedy, applied, must give a plan that fits."""
    base = ("--nodes", 1, "--gpus-per-node", 4, "--gpu", "v100", "--set", "batch.per_rank=160")
    code, said, numbers = plan(*base)
    assert code == 1 and "It does not fit." in said and numbers["remedies"]
    batch = next(one for one in numbers["remedies"] if one.startswith("batch.per_rank"))
    smaller = [word for part in batch.split(", ") for word in ("--set", part.replace(": ", "="))]
    assert plan(*base[:-2], *smaller)[0] == 0
    tried = 0
    for remedy in numbers["remedies"]:
        if remedy.startswith("student.activation"):
            tried += 1
            assert plan(*base, "--set", "student.activation_checkpointing=true")[0] == 0
    per_rank = int(batch.split(": ")[1].split(",")[0])
    assert plan(*base[:-2], "--set", f"batch.per_rank={per_rank + 1}")[0] == 1, "the largest that fits is named"


def test_more_ranks_need_less_each(plan):
    few = plan("--nodes", 1, "--gpus-per-node", 8)[2]["memory_bytes"]
    many = plan("--nodes", 8, "--gpus-per-node", 8)[2]["memory_bytes"]
    for item in ("teacher shard", "optimizer"):
        assert many[item] == pytest.approx(few[item] / 8)
    assert many["activations"] == few["activations"] and many["together"] < few["together"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--gpu", "h1000"), "Did you mean h100"),
        (("--set", "batch.per_rank=0"), "batch.per_rank"),
        (("--ds-config", "no.json"), "no.json"),
    ],
)
def test_refusals(plan, words, said):
    code, text, _ = plan(*words)
    assert code == BAD_INPUT and said in text


def test_the_plans_in_the_docs_are_what_is_printed(plan, root):
    """docs/families.md: recipe, parameters of the teacher, trained ones, memory."""
    page = (root / "docs" / "families.md").read_text()
    rows = re.findall(r"^\| `(\S+)\.yaml` \| (.*) \| (.*) \| (.*) \|$", page, re.MULTILINE)
    assert len(rows) == 6
    for recipe, teacher, trained, memory in rows:
        code, said, numbers = plan("--ds-config", root / "ds_configs" / "zero2_bf16.json", recipe=recipe)
        assert code == 0 and f"on 1 x 8 h100: teacher {teacher} (zero3), trained {trained}" in said.replace("\n", " ")
        assert f"{numbers['memory_bytes']['together'] / 1e9:.2f}" == memory, recipe

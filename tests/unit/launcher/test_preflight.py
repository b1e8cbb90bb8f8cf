"""Every bad node is named, all at once; good ones pass."""

import json
from dataclasses import replace

import pytest

from distill_engine.checkpoint.retention import Retention
from distill_engine.checkpoint.space import Space
from launcher.preflight import NodeFacts, compare, late, look

GPU = "NVIDIA H100, 550.54, 81559 MiB, 0"
GOOD = NodeFacts("n1", (GPU,) * 8, {"python": "3.11.2", "torch": "2.6.0"}, 0.2, 10**12, "", ("n1", "n2", "n3"))


def node(name: str, **changes) -> NodeFacts:
    return replace(GOOD, node=name, **changes)


def problems(*nodes: NodeFacts, asked: int = 3, gpus: int = 8) -> list[str]:
    return compare([one.to_json() for one in nodes], asked, gpus)[1]


def test_good_nodes_pass():
    assert problems(node("n1"), node("n2"), node("n3")) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"gpus": (GPU,) * 7}, "n2 shows 7 GPUs, the job asks for 8. Exclude it (sbatch --exclude=n2)"),
        ({"gpus": (*(GPU,) * 7, GPU[:-1] + "3")}, "n2 has a GPU with uncorrected memory errors"),
        ({"gpus": (GPU.replace("550", "535"),) * 8}, "driver is 550.54 on most nodes, but n2 has 535.54"),
        ({"versions": {"python": "3.11.2", "torch": "2.7.0"}}, "torch is 2.6.0 on most nodes, but n2 has 2.7.0"),
        ({"skew": -90.0}, "n2's clock is -90 s off"),
        ({"problem": "cannot use the run folder /x: Read-only file system"}, "n2 cannot use the run folder /x"),
    ],
)
def test_a_bad_node_is_named(changes, said):
    found = problems(node("n1"), node("n2", **changes), node("n3"))
    assert len(found) == 1 and said in found[0], found


def test_all_problems_come_together():
    found = problems(node("n1", gpus=()), node("n2", skew=100.0), asked=3)
    assert [text.split()[0] for text in found[:3]] == ["3", "n1", "n2's"]
    assert "2 answered (n1, n2)" in found[0]


def test_folders_that_are_not_one_folder():
    found = problems(*(node(name, seen=(name,)) for name in ("n1", "n2", "n3")))
    assert len(found) == 1 and "not one shared folder" in found[0]


def test_nodes_that_say_nothing_are_named_where_their_names_are_known():
    found = compare([node("n1").to_json()], 3, 8, ["n1", "n2", "n3"])[1]
    assert found[0].startswith("n2, n3 said nothing. Exclude (sbatch --exclude=n2,n3)")


def test_where_nobody_answers_the_nodes_are_not_to_blame():
    (problem,) = compare([], 2, 0, ["n1", "n2"])[1]
    assert "none of the 2 nodes answered" in problem and "exclude" not in problem.lower()


def test_the_space_asked_for_is_what_one_save_of_this_run_takes():
    space = Space(20 * 2**30, 5 * 2**30, Retention(2))
    free = {"n1": 24 * 2**30, "n2": 26 * 2**30}
    lines = [node(name, free_bytes=size, seen=("n1", "n2")).to_json() for name, size in free.items()]
    (problem,) = compare(lines, 2, 8, space=space)[1]
    assert problem.startswith("n1 sees 24.0 GiB free") and "a checkpoint takes 20.0 GiB (up to 2 kept" in problem
    assert "Not even one of each fits" in problem and "RUN_DIR" in problem
    assert compare(lines, 2, 8)[1] == [], "unknown: nothing is asked"


REFUSED = {"n1": "n1 port 15001: Connection refused"}


def test_a_late_node_that_was_waited_for_is_told_and_nothing_is_wrong():
    found, said = compare([node("n1", began=1e9).to_json(), node("n2", began=1e9 + 75).to_json()], 2, 8)
    assert said == [] and late(found) == [late(found)[0]] and late(found)[0].startswith("n2 came 75 s after")
    assert late([node("n1", began=1e9), node("n2", began=1e9 + 5), node("n3")]) == []


@pytest.mark.parametrize("head_is_late", [False, True])
def test_a_node_that_came_when_the_others_had_gone_is_late_and_the_network_is_not_blamed(head_is_late):
    missed = dict.fromkeys(("n1",), "no answer") if head_is_late else {}
    nodes = [
        node("n1", began=1e9 + (400 if head_is_late else 0)),
        node("n2", began=1e9 + (0 if head_is_late else 400), unreached=missed or REFUSED),
        node("n3", began=1e9, unreached=missed),
    ]
    found, said = compare([one.to_json() for one in nodes], 3, 8)
    who = "n1" if head_is_late else "n2"
    assert len(said) == 1 and said[0].startswith(f"{who} came 400 s after") and f"--exclude={who})" in said[0], said
    assert late(found) == []


def test_a_late_node_does_not_hide_a_pair_that_do_not_reach_each_other():
    nodes = [node("n1", began=1e9), node("n2", began=1e9 + 400, unreached=REFUSED)]
    nodes.append(node("n3", began=1e9, unreached={"n1": "timed out"}))
    said = problems(*nodes)
    assert len(said) == 2 and "n3 cannot connect to n1" in said[1] and "n2" not in said[1]


def test_pairs_that_do_not_reach_each_other_are_named_and_the_node_in_most_of_them_suspected():
    late = "10.0.0.2 port 4242: timed out"
    found = problems(node("n1", unreached={"n2": late}), node("n2"), node("n3", unreached={"n2": late}))
    assert len(found) == 1 and "n1, n3 cannot connect to n2 (10.0.0.2 port 4242: timed out)" in found[0], found
    assert "In most of these pairs: n2. Exclude (sbatch --exclude=n2)" in found[0]
    pair = problems(node("n1", unreached={"n2": late}), node("n2", unreached={"n1": late}), node("n3"))
    assert len(pair) == 2 and "In most of these pairs: n1, n2." in pair[1], "two nodes: either may be the bad one"


def test_a_start_that_contradicts_itself_is_reported(tmp_path):
    odd = look(tmp_path, "n1", {"RANK": "0"})
    assert "A launcher sets all five" in odd.unreached["n1"]
    said = compare([odd.to_json()], 1, 0)[1]
    assert any("n1 cannot connect to n1" in one for one in said)


def test_a_line_that_is_no_report():
    found = compare(["Warning: Permanently added n9\n", node("n1").to_json()], 1, 8)[1]
    assert len(found) == 1 and "Permanently added" in found[0]


def test_a_real_node(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    (tmp_path / ".preflight").mkdir()
    (tmp_path / ".preflight" / "n9@4.0").touch()
    first, second = look(tmp_path, "n1", {}), look(tmp_path, "n2", {})
    assert first.problem == "" and first.free_bytes > 0 and abs(first.skew) < 5
    assert first.versions["torch"] != "absent" and 0 < second.began - first.began < 60
    assert second.seen == ("n1", "n2"), "files of an earlier start do not count"
    assert NodeFacts(**{**json.loads(second.to_json()), "gpus": second.gpus, "seen": second.seen}) == second


def test_a_run_folder_that_cannot_be_used(tmp_path):
    (tmp_path / "file").touch()
    assert "cannot use the run folder" in look(tmp_path / "file" / "run", "n1", {}).problem

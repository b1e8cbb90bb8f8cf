"""Slurm's short forms written out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill_engine.cluster.hostlist import expand_hostlist, expand_tasks_per_node


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("n1", ["n1"]),
        ("n1,n2", ["n1", "n2"]),
        ("gpu[1-3]", ["gpu1", "gpu2", "gpu3"]),
        ("gpu[008-011]", ["gpu008", "gpu009", "gpu010", "gpu011"]),
        ("gpu[1,3-4,07]-ib", ["gpu1-ib", "gpu3-ib", "gpu4-ib", "gpu07-ib"]),
        ("r[1-2]n[1-2],login", ["r1n1", "r1n2", "r2n1", "r2n2", "login"]),
        ("a[1,2],b[3]", ["a1", "a2", "b3"]),
        ("node[9-11]", ["node9", "node10", "node11"]),
        ("dgx-a.cluster.org", ["dgx-a.cluster.org"]),
    ],
)
def test_host_lists(text, hosts):
    assert expand_hostlist(text) == hosts


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names no host"),
        ("gpu[1-3", "not closed"),
        ("gpu1-3]", "do not match at character 7"),
        ("gpu[a-b]", "'a-b' is neither"),
        ("gpu[3-1]", "'3-1' is empty"),
        ("gpu[]", "'' is neither"),
        ("gpu[1-999999]", "too long"),
        ("a[1-999]b[1-999]", "more than 65536"),
        ("gpu[1[2]]", "do not match"),
    ],
)
def test_what_is_no_host_list_is_refused(text, said):
    with pytest.raises(ValueError, match=said.replace("[", r"\[")):
        expand_hostlist(text)


@given(st.lists(st.integers(0, 9999), min_size=1, max_size=20), st.integers(1, 5))
def test_a_written_out_list_comes_back(numbers, width):
    names = [f"n{number:0{width}d}" for number in numbers]
    bracketed = "n[" + ",".join(name[1:] for name in names) + "]"
    assert expand_hostlist(bracketed) == names == expand_hostlist(",".join(names))


def test_tasks_per_node():
    assert expand_tasks_per_node("2(x3),1") == [2, 2, 2, 1]
    assert expand_tasks_per_node("8") == [8]
    for wrong in ("", "2x3", "2(x0)", "two"):
        with pytest.raises(ValueError, match="tasks per node"):
            expand_tasks_per_node(wrong)

"""Looking at training does not change it: gradient norms and sample replies over two real ranks."""

import pytest

NORM = "train/gradient_norm/"


@pytest.fixture(scope="module")
def norms(on_2):
    return on_2("watching.gradient_norms")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_measuring_leaves_training_as_it_is_to_the_last_bit(norms, precision):
    for rank in norms:
        assert rank[f"{precision} measured"]["digest"] == rank[precision]["digest"]


@pytest.mark.parametrize("precision, tolerance", [("fp32", 1e-4), ("bf16", 0.05)])
def test_norms_are_of_the_gradients_summed_over_ranks(norms, precision, tolerance):
    for rank in norms:
        found = {name: value for name, value in rank[f"{precision} measured"]["measured"][0].items() if NORM in name}
        assert len(found) == 10
        assert found == pytest.approx(rank["plain"], rel=tolerance)


def test_all_ranks_read_the_same(norms):
    first, second = (rank["fp32 measured"]["measured"] for rank in norms)
    assert first == second and len(first) == 3
    assert first[0] != first[1], "the student has moved"


def test_sample_replies_of_one_rank_leave_the_run_as_it_is(on_2):
    ranks = on_2("watching.samples")
    for rank in ranks:
        assert rank["sampled"] == rank["calm"]
    assert [step for step, _ in ranks[0]["said"]] == [4, 6] and ranks[1]["said"] == []


def test_a_sharded_teacher_says_what_the_plain_one_says_once_and_is_as_before(on_2):
    ranks = on_2("watching.teacher_samples")
    for rank in ranks:
        assert rank["found"] == rank["again"] == rank["wanted"] and len(set(rank["found"])) > 1
        assert len(rank["said"]) == (2 if rank is ranks[0] else 1), "asked once"
        assert rank["kept"] and rank["gathered"] == [] and rank["same_after"]


def test_ranks_whose_replies_end_apart_stay_together(on_2):
    ranks = on_2("watching.teacher_samples")
    assert [rank["tokens"] for rank in ranks] == [[3], [12]]
    for rank in ranks:
        assert rank["uneven"] == rank["uneven_wanted"]


@pytest.mark.parametrize("method", ["initial_scale", "gradient_norm", "gradient_alignment"])
def test_factors_are_equal_on_all_ranks_and_the_same_as_on_one(on_1, on_2, method):
    (alone,), (first, second) = on_1("watching.balanced"), on_2("watching.balanced")
    assert first[method] == second[method], "to the last bit"
    for one, two in zip(alone[method], first[method], strict=True):
        assert two == pytest.approx(one, rel=1e-3)
    assert first[method][0] != first[method][1] and len(first[method][0]) == 10

"""The four homes of a teacher on four real ranks of two "nodes": the same losses, and what crosses between the two."""

import pytest
import torch

HOMES = ("zero3", "node", "uneven", "replica", "offload")
SHARDED = ("zero3", "node", "uneven", "offload")
# Ranks that share the weights with each rank.
SHARERS = {"zero3": [4] * 4, "node": [2] * 4, "uneven": [3, 3, 3, 1], "replica": [1] * 4, "offload": [4] * 4}
NODES = {"uneven": [[0, 1, 2], [3]]}


@pytest.fixture(scope="module")
def found(on_2_nodes):
    return on_2_nodes("placement.features")


@pytest.mark.parametrize("home", HOMES)
def test_every_home_shows_the_plain_models_features_bit_for_bit(found, home):
    for rank in found:
        features, plain = rank[home]["features"], rank["plain"]
        assert len(features) == len(plain) == 18
        assert all(torch.equal(one, other) for one, other in zip(features, plain, strict=True))
        assert all(torch.equal(*pair) for pair in zip(rank["bart"][home], rank["bart"]["zero3"], strict=True))


@pytest.mark.parametrize("home", HOMES)
def test_each_rank_holds_its_part_and_nothing_can_be_trained(found, home):
    for rank, sharers in zip(found, SHARERS[home], strict=True):
        story, parameters = rank[home], rank["parameters"]
        assert parameters / sharers <= story["held"] <= parameters / sharers * 1.02
        assert story["frozen"] and story["on_host"]
        assert story["whole_after_the_pass"] == (parameters if home == "replica" else 0)
        assert (story["engine"] == "DeepSpeedEngine") == (home in SHARDED)


@pytest.mark.parametrize("home", HOMES)
def test_bytes_between_nodes_are_nought_within_them_and_counted_otherwise(found, home):
    parameters = found[0]["parameters"]
    assert all(rank[home]["nodes"] == NODES.get(home, [[0, 1], [2, 3]]) for rank in found)
    between = [rank[home]["between"] for rank in found]
    moved = [rank[home]["within"] + rank[home]["between"] for rank in found]
    if home in ("node", "uneven", "replica"):
        assert between == [0, 0, 0, 0]
    else:  # around the ring 0 1 2 3, ranks 0 and 2 hear from the other node
        assert between[1] == between[3] == 0
    for received, bytes_between, sharers in zip(moved, between, SHARERS[home], strict=True):
        whole = 4 * parameters * (sharers - 1) / sharers  # fp32; the embedding serves both stacks, and is fetched once
        assert whole <= received <= 1.01 * whole
        assert bytes_between in (0, received)


def test_the_optimizer_takes_the_same_steps_wherever_the_teacher_lives(on_2_nodes):
    for rank in on_2_nodes("placement.losses"):
        reference = rank.pop("zero3")
        assert reference["losses"][0] > 1 and reference["norms"][0] > 0.1
        for home, taken in rank.items():
            assert taken["losses"] == reference["losses"], home
            assert taken["norms"] == reference["norms"], home
            assert torch.equal(taken["weights"], reference["weights"]), home


def test_nodes_with_other_files_under_the_same_path_are_refused_on_every_rank(on_2_nodes):
    for rank in on_2_nodes("placement.unlike_files"):
        for home in ("node", "replica"):
            assert "rank 2 and 1 others have another teacher than rank 0" in rank[home]
            assert "different files on different nodes" in rank[home]


def test_a_window_is_one_pass_of_the_teacher_and_the_same_training(on_2):
    for rank in on_2("placement.window"):
        every, once = rank[False], rank[True]
        assert (once["passes"], every["passes"]) == (3, 6)
        assert 2 * once["received_in_the_last_step"] == every["received_in_the_last_step"] > 0
        assert once["losses"] == pytest.approx(every["losses"], rel=1e-5)
        assert once["norms"] == pytest.approx(every["norms"], rel=1e-4)
        torch.testing.assert_close(once["weights"], every["weights"], rtol=1e-4, atol=1e-5)
        assert once["sizes"] == every["sizes"] and len(set(once["sizes"])) > 1


def test_two_ranks_of_one_node_show_the_same_in_every_home(on_2):
    for rank in on_2("placement.losses"):
        reference = rank.pop("zero3")
        for home, taken in rank.items():
            assert taken["losses"] == reference["losses"], home
            assert torch.equal(taken["weights"], reference["weights"]), home

"""The teacher under ZeRO-3 on two real ranks, and what neither engine starts with."""

import pytest
import torch

FAMILIES = ("blenderbot", "bart")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sharded_teacher_shows_what_the_plain_model_shows(on_2, family):
    for rank in on_2("teacher.parity"):
        found = rank[family]
        assert len(found["features"]) == len(found["wanted"]) == 17
        for found_here, wanted in zip(found["features"], found["wanted"], strict=True):
            torch.testing.assert_close(found_here, wanted, rtol=0, atol=1e-6)
        assert found["probe_is_logits"] and found["searched"] == "", "a search is a pass like others"


@pytest.mark.parametrize("family", FAMILIES)
def test_each_rank_keeps_half_of_the_teacher_and_nothing_of_it_can_be_trained(on_2, family):
    ranks = [rank[family] for rank in on_2("teacher.parity")]
    for found in ranks:
        assert found["held"] <= found["all"] / 2 * 1.01
        assert found["whole_left"] == 0 and found["unavailable"], "a parameter stayed gathered after the forward pass"
        assert found["frozen"] and not found["in_training_mode"] and not found["gradients_asked"]
    assert sum(found["held"] for found in ranks) >= ranks[0]["all"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_logits_factors_can_be_used_after_the_pass_and_nothing_stays_gathered(on_2, family):
    for rank in on_2("teacher.head"):
        found = rank[family]
        for found_here, wanted in found["pairs"]:
            torch.testing.assert_close(found_here, wanted, rtol=0, atol=1e-5)
        assert found["available"] == []


def test_the_teacher_does_not_grow_over_200_steps(on_2):
    for found in on_2("teacher.growth"):
        first, *_, last = found["marks"]
        steps = 160  # between these marks
        assert last["tensors"] == first["tensors"]
        # one shard that is not given back in each step would be more than this
        assert last["resident"] - first["resident"] < steps * found["teacher_bytes"] / 2 / 2
        assert found["unavailable"]


@pytest.mark.parametrize(
    ("how", "names"),
    [
        ("missing", ["model.decoder.layers.1.fc1.weight", "missing_teacher"]),
        ("unexpected", ["model.decoder.layers.9.fc1.weight", "unexpected_teacher"]),
        ("mismatched", ["model.encoder.layers.0.self_attn.k_proj.bias", "[28]", "[32]"]),
        ("truncated", ["truncated_teacher", "copy or download it again"]),
        ("no_folder", ["nowhere"]),
    ],
)
def test_files_that_do_not_make_a_teacher_are_refused_by_name_on_every_rank(on_2, how, names):
    said = [rank[how] for rank in on_2("startup.refusals")]
    assert said[0] == said[1]
    assert said[0].startswith("TeacherFilesError: teacher.path ")
    assert all(name in said[0] for name in names), said[0]


def test_every_placement_shows_the_teacher_that_transformers_loads_and_the_copied_student_agrees(on_2_folders):
    for rank in on_2_folders("folders.found"):
        assert len(rank) == 2 * 11 * 2  # families, folders, placements
        for place, seen in rank.items():
            assert seen["logits"] < 1e-5 and seen["factors"] < 1e-4, place
            assert seen["agreement"] == 1.0, place


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("a tied head differs", ["lm_head.weight", "model.shared.weight", "tie_word_embeddings"]),
        ("a pickled layer too many", ["no part of it", "model.decoder.layers.4."]),
    ],
)
def test_a_folder_is_refused_in_every_placement_with_the_same_words(on_2_folders, what, names):
    said = {words for rank in on_2_folders("folders.refused") for (case, _), words in rank.items() if case == what}
    assert len(said) == 1
    assert [name for name in names if name not in "".join(said)] == [], said


@pytest.mark.parametrize(
    ("how", "begins", "names"),
    [
        ("whole_teacher", "TeacherError: ", ["not sharded", "model.shared.weight"]),
        ("leaked", "StudentEngineError: ", ["are sharded", "leaked into the student"]),
        ("stage", "StudentEngineError: ", ["ZeRO stage 1", "asks 2"]),
    ],
)
def test_engines_of_another_kind_than_asked_do_not_start(on_2, how, begins, names):
    for rank in on_2("startup.refusals"):
        assert rank[how].startswith(begins)
        assert all(name in rank[how] for name in names), rank[how]


def test_a_student_is_whole_even_if_it_is_built_while_the_teachers_sharding_is_on(on_2):
    for rank in on_2("startup.student_beside_leak"):
        assert rank["sharded"] == []
        assert rank["parameters"] > 10_000


def test_several_teachers_give_the_mean_of_their_probabilities_wherever_they_live(on_2):
    for found in on_2("rollouts.mixture"):
        for placement in ("zero3", "replica"):
            probabilities, encoder_output = found[placement]
            torch.testing.assert_close(probabilities, found["wanted"], rtol=1e-4, atol=1e-7)
            torch.testing.assert_close(encoder_output, found["encoder_output"], rtol=0, atol=1e-5)

"""An encoder that is not trained, or is the teacher's: terms that are left, and what is refused."""

import pytest

from distill_engine.recipe.rules import check_against_teacher, check_recipe
from distill_engine.recipe.schema import Recipe
from distill_engine.values import Stack

SHARED = {
    "name": "shared",
    "teacher": {"path": "a/teacher"},
    "student": {"share_encoder": True, "decoder_layers": 2},
    "losses": {"weights": {"task": 0.8, "prediction": 1.0, "hidden": 2.0, "self_attention": 1.0}},
    "data": {"datasets": [{"name": "demo"}]},
    "optimizer": {"learning_rate": 1e-3},
    "stop": {"max_steps": 10},
    "validation": {"patience": None, "every_steps": 5},
}
CONFIG = {
    "model_type": "whisper", "vocab_size": 51866, "d_model": 64, "encoder_layers": 4, "decoder_layers": 4,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128,
    "max_source_positions": 100, "max_target_positions": 200, "num_mel_bins": 80,
}  # fmt: skip
LAYERS = {Stack.ENCODER: (0, 1), Stack.DECODER: (0,)}


def recipe_of(**sections) -> Recipe:
    return Recipe.model_validate(SHARED | {key: SHARED.get(key, {}) | value for key, value in sections.items()})


def test_terms_that_look_at_the_encoder_alone_are_left_out():
    """Of weights that two terms share the decoder's remains, and everybody who asks the recipe sees that."""
    recipe = recipe_of()
    assert [str(problem) for problem in check_recipe(recipe)] == []
    assert not check_against_teacher(recipe, CONFIG)
    names = {term.name for term in recipe.losses.weights.terms}
    assert names == {"task", "prediction", "decoder_hidden", "decoder_self_attention"}
    asked = recipe.losses.weights.request(LAYERS)
    assert not asked.encoder_output and set(asked.hidden) == {Stack.DECODER}
    trained = recipe_of(student={"share_encoder": False})
    assert len(list(trained.losses.weights.terms)) == 6
    assert recipe.model_dump()["losses"] == trained.losses.model_dump()  # what is written down is what was asked for
    assert Recipe.model_validate(recipe.model_dump()) == recipe


def test_a_table_that_the_encoder_reads_is_frozen_with_it():
    """Of texts; an encoder of sounds has none."""
    recipe = recipe_of(losses={"weights": {"embedding": 4.0}})
    assert not check_recipe(recipe) and not check_against_teacher(recipe, CONFIG)
    text = CONFIG | {"model_type": "bart", "max_position_embeddings": 200}
    (problem,) = check_against_teacher(recipe, text)
    assert problem.path == "losses.weights.embedding" and "student.share_encoder is true" in str(problem)


@pytest.mark.parametrize(
    "sections, path, said",
    [
        ({"losses": {"weights": {"encoder": 3}}}, "losses.weights.encoder", "is 3, but student.share_encoder is true"),
        (
            {"losses": {"weights": {"encoder": 3}}, "student": {"share_encoder": False, "freeze_encoder": True}},
            "losses.weights.encoder", "is 3, but student.freeze_encoder is true",
        ),
        ({"student": {"init": "random"}}, "student.share_encoder", "student.init is random"),
        ({"teacher": {"source": "cache", "cache": "d"}}, "student.share_encoder", "teacher.source is cache"),
        ({"student": {"copy_final_norms": False}}, "student.copy_final_norms", "The shared encoder is the teacher's"),
        ({"student": {"encoder_layers": 3}}, "student.encoder_layers", "is 3, but the teacher's encoder has 4 layers"),
        (
            {"student": {"encoder_layers": 4, "encoder_init_map": [0, 1, 3, 2]}},
            "student.encoder_init_map", r"is [0, 1, 3, 2], but student.share_encoder is true",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(sections, path, said):
    recipe = recipe_of(**sections)
    found = [*check_recipe(recipe), *check_against_teacher(recipe, CONFIG)]
    assert [problem.path for problem in found] == [path]
    assert said in str(found[0])


@pytest.mark.parametrize("multiple, needed", [(1, 100 + 33 + 3), (8, 104 + 40 + 3)])
def test_a_token_budget_holds_a_window_of_sound_as_the_run_counts_it(multiple, needed):
    def found(budget: int) -> list[str]:
        batch = {"max_tokens": budget, "pad_to_multiple_of": multiple, "per_rank": 2}
        recipe = recipe_of(batch=batch, data={"label_tokens": 33})
        return [str(problem) for problem in check_against_teacher(recipe, CONFIG)]

    (said,) = found(needed - 1)
    assert (
        f"{needed} positions (a window of sound of 100, data.label_tokens 33" in said
        and f"max_tokens: {2 * needed}" in said
    )
    assert found(needed) == []

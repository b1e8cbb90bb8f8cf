"""Parameters counted without torch equal those of the real models."""

import pytest

from distill_engine.families.lookup import fresh_shape
from distill_engine.families.shape import Sizes
from distill_engine.recipe.load import load_recipe
from distill_engine.recipe.problem import RecipeError
from launcher.job import projection_parameters
from launcher.shapes import student_shape, teacher_shape


@pytest.mark.parametrize("family", ["blenderbot", "bart"])
def test_the_count_is_the_models(family):
    import torch
    from transformers import (
        BartConfig,
        BartForConditionalGeneration,
        BlenderbotConfig,
        BlenderbotForConditionalGeneration,
    )

    sizes = {"vocab_size": 101, "d_model": 24, "max_position_embeddings": 40, "encoder_layers": 2, "decoder_layers": 3}
    sizes |= {"encoder_ffn_dim": 36, "decoder_ffn_dim": 36, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    with torch.device("meta"):
        if family == "bart":
            model = BartForConditionalGeneration(BartConfig(**sizes))
        else:
            model = BlenderbotForConditionalGeneration(BlenderbotConfig(**sizes))
    shape = fresh_shape(family, 101, Sizes(2, 3, 24, 36, 4, 40))
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    layers = model.model.decoder.layers[0], model.model.encoder.layers[0]
    counted = tuple(sum(p.numel() for p in layer.parameters()) for layer in layers)
    assert (shape.decoder_layer, shape.encoder_layer) == counted


def test_known_teachers_need_no_network(root, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    recipe = load_recipe(root / "recipes" / "bb3b_tinybert.yaml")
    teacher = teacher_shape(recipe)
    assert teacher is not None and 2.6e9 < teacher.parameters < 2.8e9
    student = student_shape(recipe, teacher)
    assert (student.encoder_layers, student.decoder_layers, student.vocab) == (2, 9, 8008)
    # 2 embeddings and 11 hidden states, each 2560 x 2560 + 2560
    assert projection_parameters(recipe, student, teacher) == 13 * (2560 * 2560 + 2560)


def test_the_cache_of_downloads_is_looked_into(root, monkeypatch, tmp_path):
    folder = tmp_path / "hub" / "models--some--model" / "snapshots" / "abc"
    folder.mkdir(parents=True)
    (folder / "config.json").write_bytes((root / "recipes/demo/teacher/config.json").read_bytes())
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    shape = teacher_shape(load_recipe(root / "recipes" / "demo.yaml", ["teacher.path=some/model"]))
    assert shape is not None and (shape.width, shape.decoder_layers) == (96, 6)


def test_an_unknown_teacher_is_refused(root, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(RecipeError, match="neither in a folder of that name nor in the Hugging Face cache"):
        teacher_shape(load_recipe(root / "recipes" / "demo.yaml", ["teacher.path=no/such"]))


def test_without_a_teacher_the_vocabulary_is_the_tokenizers(root):
    overrides = ["teacher.path=null", f"data.tokenizer={root}/recipes/demo/tokenizer"]
    recipe = load_recipe(root / "recipes" / "demo.yaml", overrides)
    assert teacher_shape(recipe) is None and student_shape(recipe, None).vocab == 1024
    with pytest.raises(RecipeError, match=r"student.width is not given"):
        student_shape(load_recipe(root / "recipes" / "demo.yaml", [*overrides, "student.width=null"]), None)

"""Shapes counted without torch are those of the real modules; students of every family hold what they should."""

from collections import Counter
from dataclasses import replace

import pytest
import tiny_families
import torch

from distill_engine.data.tokens.layout import SpecialTokens
from distill_engine.families.lookup import family_named, family_of, shape_of
from distill_engine.families.shape import Sizes
from distill_engine.models.loading import Checkpoint
from distill_engine.models.weight_files import WeightsError
from distill_engine.registry import names
from distill_engine.student.build import TeacherLayers, build_student, student_config
from distill_engine.values import Stack

NAMES = list(tiny_families.PUBLISHED)
NARROW = Sizes(encoder_layers=2, decoder_layers=1, width=8, ffn_width=20, heads=2, dropout=0.0)


def counted(model) -> Counter:
    return Counter(p.numel() for p in model.parameters())


def shape_as_published(name):
    """From what the published config.json says, of tying too."""
    _, values, _ = tiny_families.PUBLISHED[name]
    config = tiny_families.config(name).to_dict()
    return family_of(config).shape(config | {k: v for k, v in values.items() if k == "tie_word_embeddings"})


@pytest.mark.parametrize("name", NAMES)
def test_tensors_are_counted_one_by_one(name):
    model, shape = tiny_families.model(name), shape_as_published(name)
    assert +shape.tensors == counted(model)
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    narrow = build_student(
        family_of(model.config), student_config(model.config, NARROW), None, 0,
        own_head=name in tiny_families.OWN_HEADS,
    )  # fmt: skip
    assert +shape.resized(NARROW).tensors == counted(narrow)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_frozen_with_an_encoder_is_counted(name):
    """All that it reads, a table that the decoder has, too, included."""
    counted_here = sum(p.numel() for p in tiny_families.model(name).get_encoder().parameters())
    assert shape_as_published(name).encoder == counted_here


def test_families_cover_the_registry():
    assert {family for family, _, _ in tiny_families.PUBLISHED.values()} == set(names("families"))


@pytest.mark.parametrize("family", names("families"))
def test_a_model_without_a_teacher_has_the_shape_it_was_asked_for(family):
    """One row per family; Sizes without positions where there is no table."""
    from transformers import AutoConfig

    from distill_engine.families.lookup import fresh_shape

    sizes = Sizes(2, 1, 16, 20, 2, 24)
    special = SpecialTokens(pad=0, start=1, end=2)
    config = AutoConfig.for_model(family, **family_named(family).fresh(sizes, 40, special))
    made = build_student(family_named(family), config, None, 0, own_head=family in ("mt5",))
    assert +fresh_shape(family, 40, sizes).tensors == counted(made)


@pytest.mark.parametrize("name", NAMES)
def test_students_copy_mapped_layers(name, tmp_path):
    folder = tiny_families.save(name, tmp_path)
    checkpoint = Checkpoint(folder)
    assert checkpoint.own_head == (name in tiny_families.OWN_HEADS)
    teacher = checkpoint.load(torch.float32)
    family, maps = family_of(teacher.config), {Stack.ENCODER: (0, 2), Stack.DECODER: (2,)}
    config = student_config(teacher.config, Sizes(encoder_layers=2, decoder_layers=1))
    student = build_student(family, config, TeacherLayers(checkpoint, maps), 0, own_head=checkpoint.own_head)
    mine, theirs = student.state_dict(), teacher.state_dict()
    for parameter, value in mine.items():
        assert torch.equal(value, theirs[family.teacher_name(parameter, maps)]), parameter
    assert shape_of(student.config).depth(Stack.DECODER) == 1
    wrong = [p for p in mine if p not in theirs]
    assert not wrong and set(student.all_tied_weights_keys) == set(teacher.all_tied_weights_keys)


def test_position_biases_come_from_where_they_are():
    """One table serves all T5 layers; umT5 has one in each."""
    maps = {Stack.ENCODER: (2,), Stack.DECODER: (1, 2)}
    parameter = "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    assert family_named("t5").teacher_name(parameter, maps) == parameter
    assert family_named("umt5").teacher_name(parameter, maps) == parameter.replace("block.0", "block.1")


def test_the_language_that_is_written_must_be_said():
    """mBART-50 and NLLB: nothing in the files of a many-to-many model says it; mBART's decoder starts with it."""
    for family in ("mbart", "m2m_100"):
        tokens = SpecialTokens(pad=1, end=2, start=0, decoder_start=2, source=61)
        assert "forced_bos_token_id" in family_named(family).unsettled(tokens)
        assert family_named(family).unsettled(replace(tokens, forced=62)) == ""
        layout = family_named(family).layout(replace(tokens, forced=62))
        assert (layout.context_prefix, layout.context_suffix, layout.decoder_prefix) == ((61,), (2,), (2, 62))
    first = family_named("mbart").layout(SpecialTokens(pad=1, end=2, start=0, decoder_start=63, source=61))
    assert (first.context_prefix, first.context_suffix, first.decoder_prefix) == ((), (2, 61), (63,))


def test_sizes_that_a_family_does_not_have_are_not_asked_for(root):
    from distill_engine.recipe.load import load_recipe
    from distill_engine.recipe.rules import student_alone_is_complete
    from launcher.shapes import student_shape

    alone = ["teacher.path=null", f"data.tokenizer={root}/recipes/demo/tokenizer", "student.positions=null"]
    for family, wanted in (("t5", []), ("bart", ["student.positions"])):
        recipe = load_recipe(root / "recipes" / "demo.yaml", [*alone, f"student.family={family}"])
        assert [problem.path for problem in student_alone_is_complete(recipe)] == wanted
        if not wanted:
            assert student_shape(recipe, None).positions is None


def test_deeper_decoders_that_cannot_generate_are_named():
    shape = shape_of(tiny_families.config("t5-small"))
    assert family_named("t5").obstacle(shape) == ""
    assert "fails for deeper decoders" in family_named("t5").obstacle(shape.resized(Sizes(decoder_layers=4)))


def test_computed_positions_need_not_be_in_the_file_and_other_tensors_must(tmp_path):
    import teacher_folders
    from safetensors.torch import save_file

    folder = tiny_families.save("pegasus-xsum", tmp_path)
    stored = teacher_folders.tensors_of(folder)
    stored.pop("model.encoder.embed_positions.weight", None)
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    checkpoint = Checkpoint(folder)
    assert checkpoint.computes_parameters and not checkpoint.holds("model.encoder.embed_positions.weight")
    plain = tiny_families.model("pegasus-xsum")
    table = checkpoint.load(torch.float32).get_parameter("model.encoder.embed_positions.weight")
    assert torch.equal(table, plain.get_parameter("model.encoder.embed_positions.weight"))
    del stored["model.encoder.layer_norm.weight"]
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"1 tensor is missing .*encoder\.layer_norm\.weight"):
        Checkpoint(folder)

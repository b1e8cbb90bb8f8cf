"""Building students: what is copied, from where and how little is read for it; random starts by ParlAI's statistics."""

import math

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from distill_engine.data.tokens.layout import SpecialTokens
from distill_engine.families.lookup import family_named
from distill_engine.families.parlai_init import sinusoidal_positions
from distill_engine.families.shape import Sizes
from distill_engine.models import weight_files
from distill_engine.models.adapter import adapt
from distill_engine.models.loading import Checkpoint
from distill_engine.student.build import (
    build_student,
    fresh_config,
    student_config,
)
from distill_engine.values import FeatureRequest, Stack

SPECIAL = SpecialTokens(pad=0, end=2, start=1)
MAPS = ((1,), (0, 2))


def source_of(name: str) -> str:
    """The teacher's name for a tensor of the student, by MAPS."""
    for stack, layers in zip(Stack, MAPS, strict=True):
        for own, teacher_layer in enumerate(layers):
            if name.startswith(f"model.{stack.value}.layers.{own}."):
                return name.replace(f".layers.{own}.", f".layers.{teacher_layer}.", 1)
    return name


# ---- copied layers ---------------------------------------------------------------------------------------------------


def test_every_tensor_is_the_mapped_teacher_tensor_bit_by_bit(family, folders):
    folder = folders.teacher(family)
    stored, student = folders.tensors(folder), folders.student(family, folder)
    copied = [name for name in student.state_dict() if name not in folders.TIED]
    assert len(copied) > 30
    for name in copied:
        assert torch.equal(student.state_dict()[name], stored[source_of(name)]), name
    for name in folders.TIED:
        assert student.get_parameter(name) is student.model.shared.weight
    assert all(p.dtype == torch.float32 and p.requires_grad for p in student.parameters())


def test_a_half_precision_teacher_gives_a_float32_student(folders, tiny, tmp_path):
    tiny.model("bart", decoder_layers=4).half().save_pretrained(tmp_path / "half")
    student = folders.student("bart", tmp_path / "half")
    stored = folders.tensors(tmp_path / "half")
    assert student.model.shared.weight.dtype == student.config.dtype == torch.float32
    assert torch.equal(student.model.shared.weight, stored["model.shared.weight"].float())


def test_the_same_depth_copied_in_order_is_the_teacher(family, folders, tiny):
    folder = folders.teacher(family)
    student = folders.student(family, folder, maps=((0, 1), (0, 1, 2, 3))).eval()
    teacher = tiny.model(family, decoder_layers=4)
    batch = tiny.batch(family)
    logits = [adapt(model)(batch, FeatureRequest()).logits for model in (student, teacher)]
    assert torch.equal(*logits)


def test_final_norms_are_copied_unless_parlais_way_is_asked_for(family, folders):
    folder = folders.teacher(family)
    norms = {p + suffix: torch.tensor(float(suffix == "weight")) for p in family_named(family).final_norms
             for suffix in ("weight", "bias")}  # fmt: skip
    ours, parlais = (folders.student(family, folder, norms=copied).state_dict() for copied in (True, False))
    assert len(norms) == 4
    for name, start in norms.items():
        assert torch.equal(ours[name], folders.tensors(folder)[name])
        assert (parlais[name] == start).all()
    assert all(torch.equal(ours[name], parlais[name]) for name in ours if name not in norms)


def test_position_tables_may_be_shorter_than_the_teachers(family, folders):
    folder = folders.teacher(family)
    student = folders.student(family, folder, positions=10)
    rows = 10 + family_named(family).form.position_rows
    for stack in Stack:
        name = family_named(family).position_table(stack)
        assert torch.equal(student.get_parameter(name), folders.tensors(folder)[name][:rows])
    with pytest.raises(ValueError, match=r"embed_positions\.weight is \[3[02], 16\].*student\.positions"):
        folders.student(family, folder, positions=30)


@pytest.mark.parametrize("sizes", [{"width": 8, "heads": 2}, {"ffn_width": 8}])
def test_other_widths_cannot_be_copied(family, folders, sizes):
    message = r"student\.init is teacher_layers, but model\.\S+ is \[.*\] in the student and model\.\S+ is \[.*random"
    with pytest.raises(ValueError, match=message):
        folders.student(family, folders.teacher(family), **sizes)


def test_a_teacher_without_the_zero_logits_bias_is_complete(folders):
    folder = folders.teacher("bart")
    stored = folders.tensors(folder)
    del stored["final_logits_bias"]
    save_file(stored, folder / "model.safetensors")
    assert (folders.student("bart", folder).final_logits_bias == 0).all()


@pytest.mark.parametrize("layout", ["pickle", "old pickle without prefix"])
def test_students_from_pickles_equal_those_from_safetensors(family, folders, layout):
    folder = folders.teacher(family)
    expected = folders.student(family, folder).state_dict()
    bare = "without prefix" in layout
    folders.pickle(folder, old_format="old" in layout, rename=lambda n: n.removeprefix("model.") if bare else n)
    actual = folders.student(family, folder).state_dict()
    assert all(torch.equal(expected[name], actual[name]) for name in expected)


def test_only_mapped_layers_are_read_and_each_tensor_once(family, folders, monkeypatch):
    folder = folders.teacher(family)
    read: list[str] = []
    real = Checkpoint.read
    monkeypatch.setattr(Checkpoint, "read", lambda self, name: read.append(name) or real(self, name))
    opened = []
    monkeypatch.setattr(weight_files, "safe_open", spying(weight_files.safe_open, opened))
    student = folders.student(family, folder)
    needed = [source_of(name) for name in student.state_dict() if name not in folders.TIED]
    assert sorted(read) == sorted(needed) and len(set(read)) == len(read)
    assert sorted(opened) == sorted(needed)  # nothing else came from the disk
    unmapped = ("model.encoder.layers.0.", "model.decoder.layers.1.", "model.decoder.layers.3.")
    assert not [name for name in opened if name.startswith(unmapped)]


def spying(real, taken: list[str]):
    """safe_open that notes which tensors are taken."""

    class Spy:
        def __init__(self, *args, **kwargs) -> None:
            self.handle = real(*args, **kwargs)

        def __enter__(self):
            self.handle.__enter__()
            return self

        def __exit__(self, *reason):
            return self.handle.__exit__(*reason)

        def keys(self):
            return self.handle.keys()

        def get_slice(self, name: str):
            return self.handle.get_slice(name)

        def get_tensor(self, name: str):
            taken.append(name)
            return self.handle.get_tensor(name)

    return Spy


# ---- configurations --------------------------------------------------------------------------------------------------


def test_student_config_changes_sizes_only(family, tiny):
    teacher = tiny.config(family, encoder_layerdrop=0.4, decoder_layerdrop=0.2)
    config = student_config(teacher, Sizes(encoder_layers=1, decoder_layers=2, dropout=0.3))
    assert (config.encoder_layers, config.num_hidden_layers, config.decoder_layers) == (1, 1, 2)
    assert (config.dropout, config.d_model, config.encoder_attention_heads) == (0.3, 16, 2)
    assert (config.encoder_layerdrop, config.decoder_layerdrop) == (0.0, 0.0)
    assert (teacher.encoder_layers, teacher.encoder_layerdrop, teacher.dropout) == (2, 0.4, 0.0)  # left alone
    narrow = student_config(teacher, Sizes(width=8, ffn_width=12, heads=4, positions=7, attention_dropout=0.2))
    assert (narrow.d_model, narrow.encoder_ffn_dim, narrow.decoder_ffn_dim) == (8, 12, 12)
    assert (narrow.encoder_attention_heads, narrow.decoder_attention_heads) == (4, 4)
    assert (narrow.max_position_embeddings, narrow.attention_dropout, narrow.encoder_layers) == (7, 0.2, 2)


def test_a_configuration_without_a_teacher(family, tiny):
    table = family_named(family)
    sizes = Sizes(1, 1, 16, 32, 2, 24, 0.0, 0.0)
    config = fresh_config(table, sizes, tiny.VOCABULARY, SPECIAL)
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (0, 1, 2)
    assert config.decoder_start_token_id == (1 if family == "blenderbot" else 2)
    assert config.scale_embedding == (family == "blenderbot") and config.tie_word_embeddings
    model = build_student(table, config, None, seed=0)
    assert adapt(model)(tiny.batch(family), FeatureRequest()).logits.shape[-1] == tiny.VOCABULARY


# ---- random starts ---------------------------------------------------------------------------------------------------


def fresh(family: str, seed: int = 0, width: int = 64):
    sizes = Sizes(2, 2, width, 4 * width, 4, 40, 0.1, 0.1)
    return build_student(family_named(family), fresh_config(family_named(family), sizes, 500, SPECIAL), None, seed)


def test_a_seed_decides_every_weight(family):
    one, same, other = (fresh(family, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    differing = [name for name in one if not torch.equal(one[name], other[name])]
    assert len(differing) >= 2 * 6 + 2 * 10 + 1  # matrices and the embedding


def test_callers_random_stream_is_untouched(family, folders):
    folder = folders.teacher(family)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    fresh(family)
    folders.student(family, folder, seed=8)
    assert torch.equal(before, torch.get_rng_state())


def test_initial_distributions_are_parlais(family):
    model = fresh(family, width=96)
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or module is model.lm_head:
            continue
        outputs, inputs = module.weight.shape
        std, bound = math.sqrt(2 / (inputs + outputs)), math.sqrt(6 / (inputs + outputs))
        assert module.weight.std().item() == pytest.approx(std, rel=0.05), name
        assert abs(module.weight.mean().item()) < 4 * std / math.sqrt(inputs * outputs), name
        beyond = (module.weight.abs() > bound).float().mean().item()
        if "attn." in name:  # Xavier normal: 8 % lie beyond the uniform one's bound of sqrt(3) std
            assert beyond == pytest.approx(0.083, abs=0.02), name
        else:
            assert beyond == 0, name
        assert (module.bias == 0).all(), name
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all() and (module.bias == 0).all(), name
    shared = model.model.shared.weight
    assert shared[1:].std().item() == pytest.approx(96**-0.5, rel=0.03)
    assert (shared[SPECIAL.pad] == 0).all() and (shared[1:].abs().sum(1) > 0).all()
    assert model.lm_head.weight is shared and model.model.encoder.embed_tokens.weight is shared


def test_a_random_student_of_an_untied_teacher_has_tables_of_its_own(family, tiny):
    config = student_config(tiny.config(family, tie_word_embeddings=False), Sizes(width=96, heads=4))
    model = build_student(family_named(family), config, None, seed=0)
    stacks = (model.model.encoder.embed_tokens, model.model.decoder.embed_tokens)
    tables = [one.weight for one in (model.model.shared, *stacks, model.lm_head)]
    assert len({id(table) for table in tables}) == len({table.sum().item() for table in tables}) == 4
    for table in tables:
        assert table[1:].std().item() == pytest.approx(96**-0.5, rel=0.06)
        assert (table[SPECIAL.pad] == 0).all()
    assert [table.requires_grad for table in tables] == [False, True, True, True]  # transformers never reads the first


def test_position_tables_of_random_students(family):
    model = fresh(family)
    tables = [model.get_parameter(family_named(family).position_table(stack)) for stack in Stack]
    if family == "blenderbot":
        assert all(torch.equal(table, sinusoidal_positions(40, 64)) for table in tables)
    else:
        assert all(table.shape == (42, 64) and table.std().item() == pytest.approx(1 / 8, rel=0.05) for table in tables)
        assert not torch.equal(*tables)


@pytest.mark.parametrize("width", [6, 7])
def test_sinusoidal_codes_by_the_formula(width):
    table = sinusoidal_positions(50, width)
    for position in (0, 1, 13, 49):
        for column in range(width):
            angle = position / 10000 ** (2 * (column // 2) / width)
            expected = math.sin(angle) if column % 2 == 0 else math.cos(angle)
            assert table[position, column].item() == pytest.approx(expected, abs=1e-6)
    assert table.dtype == torch.float32


def test_a_frozen_position_table_stays_as_it_is(family, tiny):
    """What `student.train_position_tables: false` relies on: a table without a gradient, everything else with one."""
    model = fresh(family)
    names = {family_named(family).position_table(stack) for stack in Stack}
    for name in names:
        model.get_parameter(name).requires_grad_(False)
    adapt(model)(tiny.batch(family), FeatureRequest()).logits.square().sum().backward()
    without = {name for name, p in model.named_parameters() if p.grad is None}
    assert without == names


def test_initialising_again_changes_only_what_is_random(family):
    model = fresh(family)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        family_named(family).initialise(model)
    same = [name for name, tensor in model.state_dict().items() if torch.equal(tensor, before[name])]
    assert all("norm" in name or name.endswith("bias") or "positions" in name for name in same)

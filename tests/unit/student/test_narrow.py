"""A narrower student out of its teacher: what is dead is dropped and nothing changes, and nothing is left to chance."""

import pytest
import tiny_families as tiny
import torch
from torch import nn

from distill_engine.families.lookup import family_of, shape_of
from distill_engine.families.shape import Axis, Sizes
from distill_engine.models.adapter import adapt
from distill_engine.student.build import build_student, student_config
from distill_engine.student.narrow import narrow
from distill_engine.student.projections import Projections
from distill_engine.student.watched import Watched
from distill_engine.values import AttentionKind, FeatureRequest, Stack

TEXTS = [name for name in tiny.PUBLISHED if not name.startswith("whisper")]
COMPUTED = [name for name in TEXTS if shape_of(tiny.config(name)).form.computed]
ALL_LAYERS = dict.fromkeys(Stack, (0, 1, 2))
LIVE = torch.tensor([0, 2, 3, 6, 9, 10, 13, 15])  # channels
NEURONS = torch.arange(1, tiny.FFN, 2)
HALF = {"width": tiny.WIDTH // 2, "ffn_width": tiny.FFN // 2, "heads": 1}


def batches(name, count=12):
    return [tiny.batch(name, contexts=(9, 7, 4), labels=(5, 8, 6), seed=seed) for seed in range(count)]


def narrowed(teacher, name, seed=1, maps=ALL_LAYERS, **sizes):
    """A student that is narrowed out of a teacher, its choice and its family."""
    family = family_of(teacher.config)
    layers = {f"{stack.value}_layers": len(chosen) for stack, chosen in maps.items()}
    own_head = name in tiny.OWN_HEADS
    config = student_config(teacher.config, Sizes(**layers, **sizes))
    student = build_student(family, config, None, seed, own_head=own_head).eval()
    return student, narrow(student, Watched(teacher, family), batches(name), maps)


def exact(model):
    """Norms without what keeps them from dividing by 0, so that their statistics scale."""
    for module in model.modules():
        for key in ("eps", "variance_epsilon"):
            if isinstance(getattr(module, key, None), float):
                setattr(module, key, 1e-12)
    return model


def said(model, name):
    return [adapt(model)(batch, FeatureRequest()).logits for batch in batches(name, 2)]


@torch.no_grad()
def kill(model, *, channels, neurons, heads):
    """Let only LIVE channels, NEURONS and the last head of each attention do anything. Live channels have the mean 0
    everywhere, as LayerNorm takes the mean of all: a part is then normalised as the whole is, but for a scale."""
    family = family_of(model.config)
    dead = torch.ones(tiny.WIDTH, dtype=torch.bool)
    dead[LIVE] = False

    def settle(values, axis=-1):
        """Dead channels to 0, live ones around their mean."""
        moved = values.movedim(axis, -1)
        moved[..., LIVE] -= moved[..., LIVE].mean(-1, keepdim=True)
        moved[..., dead] = 0

    for name, module in model.named_modules():
        out, into = family.maps.get(name.rpartition(".")[2], (None, None))
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        if into is Axis.NEURON and neurons:
            gone = torch.ones(tiny.FFN, dtype=torch.bool)
            gone[NEURONS] = False
            weight[:, gone] = 0
        if into is Axis.VALUE and heads:
            weight[:, : weight.shape[1] // 2] = 0
        if not channels:
            continue
        if out is Axis.WIDTH:
            settle(weight, 0)
            if bias is not None:
                settle(bias)
        elif isinstance(module, nn.Embedding) and into is None and weight.shape[1] == tiny.WIDTH:
            settle(weight)
        elif weight is not None and weight.ndim == 1:
            weight.fill_(0.7)
            weight[dead] = 0
            if bias is not None:
                settle(bias)
        elif name == "lm_head":
            settle(weight)
    return exact(model)


# ---- what is dead ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in TEXTS if name not in COMPUTED])
def test_dead_channels_heads_and_neurons_are_dropped_and_the_function_stays(name):
    teacher = kill(tiny.model(name), channels=True, neurons=True, heads=True)
    student, choice = narrowed(teacher, name, **HALF)
    assert torch.equal(choice.channels, LIVE)
    assert all(kept.tolist() == [1] for kept in choice.heads.values()) and len(choice.heads) >= 9
    assert all(torch.equal(kept, NEURONS) for kept in choice.neurons.values()) and len(choice.neurons) == 6
    for ours, wanted in zip(said(exact(student), name), said(teacher, name), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-3, atol=1e-3)
    assert sum(p.numel() for p in student.parameters()) < 0.6 * sum(p.numel() for p in teacher.parameters())


@pytest.mark.parametrize("name", COMPUTED)
def test_dead_neurons_are_dropped_where_positions_are_computed(name):
    """Channels would take their positions along."""
    teacher = kill(tiny.model(name, activation_function="gelu"), channels=False, neurons=True, heads=False)
    student, choice = narrowed(teacher, name, ffn_width=HALF["ffn_width"])
    assert all(torch.equal(kept, NEURONS) for kept in choice.neurons.values())
    assert all(kept.tolist() == [0, 1] for kept in choice.heads.values())
    for ours, wanted in zip(said(student, name), said(teacher, name), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-3, atol=1e-4)


def test_heads_become_smaller_where_what_they_do_has_fewer_dimensions():
    """Queries, keys and values of each head lie in half of its dimensions, which are no elements of it."""
    name = "blenderbot-400M-distill"
    teacher = kill(tiny.model(name), channels=True, neurons=True, heads=False)
    size = tiny.WIDTH // tiny.HEADS
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for module_name, module in teacher.named_modules():
            if module_name.endswith(("q_proj", "k_proj", "v_proj")):
                bases = [torch.linalg.qr(torch.randn(size, size // 2, generator=draw))[0] for _ in range(tiny.HEADS)]
                flat = torch.block_diag(*(basis @ basis.T for basis in bases))
                module.weight.copy_(flat @ module.weight)
                module.bias.copy_(flat @ module.bias)
    student, choice = narrowed(teacher, name, width=tiny.WIDTH // 2, ffn_width=tiny.FFN // 2)
    assert {tuple(kept.shape) for kept in choice.inside.values()} == {(2, 4, 8)} and len(choice.inside) == 3 * 9
    for ours, wanted in zip(said(exact(student), name), said(teacher, name), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-3, atol=1e-3)
    kinds = dict.fromkeys(AttentionKind, (0, 1, 2))
    batch, asked = batches(name, 1)[0], FeatureRequest(logits=False, attention=kinds)
    ours, wanted = (adapt(model)(batch, asked).attention for model in (student, teacher))
    for site, value in ours.items():  # what attention terms compare, at positions that count
        queries = batch.mask_of(site[0].query_stack)
        keys = batch.label_mask if site[0] is AttentionKind.DECODER_SELF else batch.context_mask
        both = (queries[:, None, :, None] & keys[:, None, None, :]).expand(-1, tiny.HEADS, -1, -1)
        scores = [one.scale * one.query @ one.key.mT for one in (value, wanted[site])]
        torch.testing.assert_close(scores[0][both], scores[1][both], rtol=1e-3, atol=1e-3)


# ---- what is alive ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TEXTS)
def test_a_narrow_student_is_nearer_to_its_teacher_than_chance_and_nothing_of_it_is_left_to_chance(name):
    teacher, maps = tiny.model(name), {Stack.ENCODER: (0, 2), Stack.DECODER: (2,)}
    (one, choice), (same, _) = (narrowed(teacher, name, seed=seed, maps=maps, **HALF) for seed in (1, 2))
    state = one.state_dict()
    assert all(torch.equal(value, same.state_dict()[key]) and value.isfinite().all() for key, value in state.items())
    assert choice.channels.tolist() == sorted(set(choice.channels.tolist())) and len(choice.channels) == 8
    family = family_of(teacher.config)
    random = build_student(family, one.config, None, 1, own_head=name in tiny.OWN_HEADS).eval()
    assert distance(one, teacher, name) < distance(random, teacher, name)
    if family.form.bias_tables == "first":  # one table serves all self-attentions of a stack
        for stack in Stack:
            kept = {tuple(v.tolist()) for k, v in choice.heads.items() if f"{stack.value}.block" in k and "Self" in k}
            assert len(kept) == 1


def distance(student, teacher, name) -> float:
    """KL from the teacher at all positions that count."""
    batch = tiny.batch(name, contexts=(9, 7, 4), labels=(5, 8, 6), seed=99)
    logs = [
        adapt(model)(batch, FeatureRequest()).logits[batch.label_mask].log_softmax(-1) for model in (student, teacher)
    ]
    return nn.functional.kl_div(*logs, reduction="batchmean", log_target=True).item()


def test_projections_begin_as_what_undoes_the_choice():
    name = "bart-large-cnn"
    teacher = kill(tiny.model(name), channels=True, neurons=True, heads=True)
    student, choice = narrowed(teacher, name, **HALF)
    asked = FeatureRequest(
        logits=False, encoder_output=True, embeddings=frozenset(Stack), hidden=dict.fromkeys(Stack, (0, 1, 2))
    )
    adapters = adapt(exact(student)), adapt(teacher)
    with torch.no_grad():
        pairs = [(batch, *(adapter(batch, asked) for adapter in adapters)) for batch in batches(name)]
    projections = Projections(asked, tiny.WIDTH // 2, tiny.WIDTH, seed=1)
    projections.fit(pairs, ALL_LAYERS, choice.channels)
    batch, own, wanted = pairs[0]
    found = projections(own)
    torch.testing.assert_close(
        found.encoder_output.tensor()[batch.context_mask],
        wanted.encoder_output[batch.context_mask],
        rtol=1e-2,
        atol=5e-3,
    )
    for (stack, layer), states in found.hidden.items():
        right, mask = wanted.hidden[stack, layer], batch.mask_of(stack)
        torch.testing.assert_close(states.tensor()[mask], right[mask], rtol=1e-2, atol=5e-3)
    undone = projections.embedding["encoder"].weight
    assert torch.equal(undone.abs().argmax(0), choice.channels)

"""The student's own samples: laid out as labels are, drawn by seed and position, and nothing else is touched."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import tiny_families
import torch

from distill_engine.models.adapter import adapt
from distill_engine.rollouts.config import RolloutSection
from distill_engine.rollouts.protocol import RolloutParts
from distill_engine.rollouts.student import STUDENT, relabelled
from distill_engine.values import IGNORED_LABEL, FeatureRequest

LIMIT = 9
FAMILIES = (
    "bart-large-cnn", "blenderbot-400M-distill", "nllb-200-distilled-600M", "opus-mt-en-de", "flan-t5-small",
    "whisper-large-v3",
)  # fmt: skip


def parts_of(name: str, *, share: float = 1.0, top_p: float = 1.0, **changed) -> RolloutParts:
    layout, family = tiny_families.layout(name), tiny_families.family_named(tiny_families.PUBLISHED[name][0])
    masked = family.masked_id(layout.start_id)
    never = {layout.pad_id, *([] if masked is None else [masked])} - {layout.end_id}
    parts = RolloutParts(
        seed=3, rank=0, world_size=2, section=RolloutSection(share=share, top_p=top_p), new_tokens=LIMIT, layout=layout,
        end_ids=(layout.end_id,), suppressed=tuple(sorted(never)), forced=None, pad_to_multiple_of=1, max_tokens=None,
    )  # fmt: skip
    return replace(parts, **changed)


class Engine:
    """What a rollout sees of the engine."""

    def __init__(self, model):
        self.module = SimpleNamespace(model=model.train())

    def train(self):
        self.module.model.train()

    def eval(self):
        self.module.model.eval()


def said_by(row: torch.Tensor) -> list[int]:
    return row[row != IGNORED_LABEL].tolist()


@pytest.mark.parametrize("name", FAMILIES)
def test_samples_are_laid_out_as_labels_and_are_what_the_student_predicts_there(name):
    """With all but the most probable token cut off, a sample is the argmax of the pass that the losses see."""
    dropout = "dropout_rate" if "t5" in name else "dropout"
    parts, model = parts_of(name, top_p=1e-6), tiny_families.model(name, **{dropout: 0.4})
    batch, engine = tiny_families.batch(name), Engine(model)
    if "whisper" in name:  # a row in another language than the run's
        assert batch.decoder_input_ids[1, 1] == tiny_families.OTHER_LANGUAGE
        batch.decoder_input_ids[1, 1] = tiny_families.LANGUAGE
    begun = batch.decoder_input_ids[:, : len(parts.layout.decoder_prefix)].tolist()
    own = model.generation_config
    before = torch.random.get_rng_state()
    (sampled,) = STUDENT.open(parts).batches([batch], None, engine)
    assert torch.equal(before, torch.random.get_rng_state()), "dropout of training is as without samples"
    assert model.training and all(module.training for module in model.modules()) and model.generation_config is own
    assert sampled.sampled and not batch.sampled and torch.equal(sampled.example_ids, batch.example_ids)
    layout = parts.layout
    for read, prompt, labels in zip(sampled.decoder_input_ids.tolist(), begun, sampled.labels, strict=True):
        said = said_by(labels)
        assert labels[: layout.label_pad_prefix].eq(IGNORED_LABEL).all() and labels[layout.label_pad_prefix] >= 0
        assert 1 <= len(said) <= LIMIT and layout.end_id not in said[:-1] and layout.pad_id not in said
        assert len(said) == LIMIT or said[-1] == layout.end_id
        expected = [*prompt, *said[:-1]]
        assert read == expected + [layout.pad_id] * (len(read) - len(expected))
    with torch.no_grad():
        logits = adapt(model.eval())(sampled, FeatureRequest()).logits
    logits[..., list(parts.suppressed)] = -torch.inf
    assert torch.equal(logits.argmax(dim=-1)[sampled.label_mask], sampled.labels[sampled.label_mask])


def test_draws_follow_from_seed_step_rank_and_micro_batch_alone():
    name = "blenderbot-400M-distill"
    model, group = tiny_families.model(name), [tiny_families.batch(name), tiny_families.batch(name, seed=1)]

    def steps(count: int, *, begin: int = 0, **changed):
        rollout = STUDENT.open(parts_of(name, **changed))
        rollout.load_state_dict({"steps": begin})
        found = [rollout.batches(group, None, Engine(model)) for _ in range(count)]
        assert rollout.state_dict() == {"steps": begin + count}
        return [batch for step in found for batch in step]

    def same(one, other) -> list[bool]:
        return [
            a.labels.shape == b.labels.shape and torch.equal(a.labels, b.labels)
            for a, b in zip(one, other, strict=True)
        ]

    undisturbed = steps(4, share=0.5)
    torch.manual_seed(99)
    assert all(same(undisturbed[4:], steps(2, begin=2, share=0.5))), "as if never stopped"
    chosen = [batch.sampled for batch in steps(24, share=0.25, new_tokens=1)]
    assert chosen == [batch.sampled for batch in steps(24, share=0.25, new_tokens=1, rank=1)], "no rank waits"
    assert 6 <= sum(chosen) <= 18
    all_of = steps(2)
    assert not any(same(all_of, steps(2, rank=1))) and not any(same(all_of, steps(2, seed=4)))
    assert not any(same(all_of[:2], all_of[2:]))
    gold = [batch for batch in steps(4, share=0.25) if not batch.sampled]
    assert all(any(batch is own for own in group) for batch in gold), "the data's own are as they were"


def test_samples_keep_within_the_token_budget_or_golds_length():
    name = "blenderbot-400M-distill"
    model = tiny_families.model(name)
    with torch.no_grad():
        model.final_logits_bias[0, tiny_families.END] = -1e4  # never ends by itself
    batch = tiny_families.batch(name, contexts=(6, 3), labels=(2, 1))

    def length(**changed) -> int:
        (sampled,) = STUDENT.open(parts_of(name, **changed)).batches([batch], None, Engine(model))
        assert sampled.label_mask.sum() == 2 * sampled.labels.shape[1], "both run to the limit"
        return sampled.labels.shape[1]

    own = batch.inputs.length
    assert length() == LIMIT
    assert length(max_tokens=2 * (own + 5)) == 5 and length(max_tokens=2 * (own + 5), pad_to_multiple_of=4) == 4
    assert length(max_tokens=2) == batch.labels.shape[1] == 3


def test_a_forced_first_token_is_said_first():
    (sampled,) = STUDENT.open(parts_of("t5-small", forced=41)).batches(
        [tiny_families.batch("t5-small")], None, Engine(tiny_families.model("t5-small"))
    )
    assert sampled.labels[:, 0].tolist() == [41, 41]


def test_ids_are_cut_at_the_first_end_token_and_padded_as_batches_are():
    name = "bart-large-cnn"
    parts = parts_of(name, pad_to_multiple_of=4, end_ids=(tiny_families.END, 50))
    end, pad, start = tiny_families.END, tiny_families.PAD, tiny_families.START
    ids = torch.tensor([[7, end, pad, pad, pad], [8, 9, 10, 50, 11]])
    made = relabelled(tiny_families.batch(name), ids, parts)
    off = IGNORED_LABEL
    assert made.labels.tolist() == [[off, 7, end, off, off], [off, 8, 9, 10, 50]]
    assert made.decoder_input_ids.tolist() == [[end, start, 7, pad, pad], [end, start, 8, 9, 10]]
    short = relabelled(tiny_families.batch(name), ids[:, :1], replace(parts, new_tokens=3))
    assert short.labels.tolist() == [[off, 7, off, off], [off, 8, off, off]], "never longer than a sample may be"
    assert short.decoder_input_ids.tolist() == [[end, start, pad, pad]] * 2

"""A teacher that predicts gold labels no better than chance is refused; one that knows some of them is not."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_families
import torch
from tokenizers import ByteLevelBPETokenizer

from distill_engine.assembly.knowledge import gold_batches, require_knowledge
from distill_engine.data.episodes import Episode, Turn
from distill_engine.data.tokens.layout import SequenceLayout
from distill_engine.data.tokens.tokenize import DialogueTokenizer
from distill_engine.models.adapter import adapt
from distill_engine.recipe.problem import RecipeError
from distill_engine.values import IGNORED_LABEL, Batch

# one rank agrees with itself
SETTING = SimpleNamespace(name="tiny"), "teachers.1.path", Path("some/teacher"), lambda value: value
BATCHES = [tiny_families.batch("t5-small", seed=seed) for seed in range(3)]


class Plain:
    def __init__(self, model):
        self._adapter = adapt(model)

    @torch.no_grad()
    def features(self, batch, request):
        return self._adapter(batch, request)


def trained():
    """Three steps of a good optimizer are enough to know which of 64 tokens the few labels are."""
    model = tiny_families.model("t5-small")
    optimizer = torch.optim.Adam(model.parameters(), 0.03)
    for _ in range(3):
        for batch in BATCHES:
            labels = {"decoder_input_ids": batch.decoder_input_ids, "labels": batch.labels}
            model(**batch.inputs.keywords, **labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def test_random_weights_are_refused_with_what_to_look_at():
    said = r"teachers.1.path is some/teacher, whose perplexity on \d+ gold(.|\n)*64 tokens(.|\n)*allow_noise"
    with pytest.raises(RecipeError, match=said):
        require_knowledge(Plain(tiny_families.model("t5-small")), BATCHES, *SETTING)


def test_a_teacher_that_knows_something_is_taken_and_a_few_tokens_prove_nothing():
    require_knowledge(Plain(trained()), BATCHES, *SETTING)
    few = tiny_families.batch("t5-small", contexts=(3, 3), labels=(14, 14))
    require_knowledge(Plain(tiny_families.model("t5-small")), [few], *SETTING)


LAYOUT = SequenceLayout(pad_id=0, start_id=1, end_id=2, context_suffix=(2,), decoder_prefix=(1,))


def batches_of(datasets: int, examples: int, label: str) -> list[Batch]:
    backend = ByteLevelBPETokenizer()
    backend.train_from_iterator(["a word or two"], vocab_size=270, show_progress=False)
    tokenizer = SimpleNamespace(backend_tokenizer=backend._tokenizer, SPECIAL_TOKENS_ATTRIBUTES=())
    encoder = DialogueTokenizer(tokenizer, LAYOUT, "\n", 64, 64)
    episodes = [Episode((Turn(f"word {number}", label),)) for number in range(examples)]
    held = [encoder.tokenise(episodes) for _ in range(datasets)]
    recipe = SimpleNamespace(batch=SimpleNamespace(pad_to_multiple_of=1))
    return list(gold_batches(SimpleNamespace(valid_datasets=held, layout=LAYOUT, recipe=recipe)))


def test_every_dataset_is_asked_and_short_labels_are_asked_for_more():
    long = "a label of more than a few tokens"
    seen = [number for batch in batches_of(19, 30, long) for number in batch.dataset_ids.tolist()]
    assert set(seen) == set(range(19)) and len(seen) == 20  # one of each, and the two that fill the last batch
    assert [len(batch) for batch in batches_of(3, 30, long)] == [2] * 8
    assert [len(batch) for batch in batches_of(1, 3, long)] == [2, 1]
    short = batches_of(1, 100, "")  # nothing but the end token
    assert sum(int((batch.labels != IGNORED_LABEL).sum()) for batch in short) == 32 and len(short) == 16

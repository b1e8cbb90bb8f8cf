"""Whisper's own: what `generate` puts before texts is what training reads, languages, and heads that follow sound."""

import tiny_families
import torch

from distill_engine.data.tokens.layout import SpecialTokens
from distill_engine.evaluate.generate import generate_ids, own_settings
from distill_engine.families.lookup import family_named
from distill_engine.models.adapter import adapt
from distill_engine.models.generation_settings import Decoder, settle_student
from distill_engine.models.own_settings import OwnSettings
from distill_engine.setup.languages import told_language
from distill_engine.values import FeatureRequest

NAME = "whisper-large-v3"
FAMILY = family_named("whisper")
MANY = tiny_families.PUBLISHED[NAME][2]
ENGLISH_ALONE = {"is_multilingual": False, "no_timestamps_token_id": 63}


def test_prompts_are_those_of_generate():
    """Named, forced in the old way, listened for, and of models for English alone."""
    de, transcribe, translate, silent = tiny_families.OTHER_LANGUAGE, 4, 3, 63
    assert FAMILY.prompt(MANY) == (de, transcribe, silent)
    assert FAMILY.prompt(MANY | {"language": "german", "task": "translate"}) == (de, translate, silent)
    assert FAMILY.prompt(MANY | {"language": "de", "task": None}) == (de, transcribe, silent)
    assert FAMILY.prompt(MANY | {"return_timestamps": True}) == (de, transcribe)
    unsaid = MANY | {"language": None, "task": None}
    assert FAMILY.prompt(unsaid) == (None, transcribe, silent)
    assert FAMILY.prompt(unsaid | {"forced_decoder_ids": [[1, None], [2, 4]]}) == (None, transcribe, silent)
    assert FAMILY.prompt(ENGLISH_ALONE) == FAMILY.prompt(ENGLISH_ALONE | {"forced_decoder_ids": [[1, 63]]}) == (silent,)
    said = []
    for settings in (MANY, MANY | {"task": "translate"}):
        model = tiny_families.model(NAME)
        model.generation_config.update(**settings)
        model.generation_config.task = settings["task"]
        model.model.decoder.register_forward_pre_hook(
            lambda _module, _args, given: said.append(given["input_ids"].tolist()) if given else None, with_kwargs=True
        )
        model.generate(**tiny_families.batch(NAME).inputs.keywords, max_new_tokens=1)
    first = [row for row in said if len(row[0]) > 1]
    assert first == [[[1, *FAMILY.prompt(MANY)]] * 2, [[1, *FAMILY.prompt(MANY | {"task": "translate"})]] * 2]


def test_the_prompt_is_read_and_not_learnt():
    batch = tiny_families.batch(NAME)
    assert (batch.labels[:, :3] == -100).all() and (batch.labels[:, 3] != -100).all()
    assert batch.decoder_input_ids[0, :4].tolist() == [1, *FAMILY.prompt(MANY)]


def test_the_language_is_said_by_the_data_or_by_the_teacher():
    special = SpecialTokens(pad=2, end=2, decoder_start=1, prompt=(None, 4, 63))
    assert "no `language`" in FAMILY.unsettled(special)
    aimed = FAMILY.towards(special, tiny_families.LANGUAGE)
    assert FAMILY.unsettled(aimed) == "" and FAMILY.layout(aimed).decoder_prefix == (1, tiny_families.LANGUAGE, 4, 63)
    alone = SpecialTokens(pad=2, end=2, decoder_start=1, prompt=(63,))
    assert FAMILY.unsettled(alone) == "" and "English alone" in FAMILY.unsettled(FAMILY.towards(alone, 61))
    model = tiny_families.model(NAME)
    own = OwnSettings(model.generation_config, "generation_config.json")
    own.config.language = None
    assert told_language(FAMILY, own, special, aimed) == {"language": "<|en|>"} and own.config.language == "<|en|>"


def test_a_student_says_token_by_token_what_its_decoder_was_trained_to_say():
    """Greedy, without suppressed tokens: each is the largest logit of a teacher-forced pass over all before it."""
    model = tiny_families.model(NAME)
    own = OwnSettings(model.generation_config, "generation_config.json")
    decoder = Decoder.of(model.config, own.config)
    settled = settle_student(own, decoder, 6)
    assert settled.values["decoder_start_token_id"] == 1 and not settled.notes
    assert settled.values.get("forced_bos_token_id") is None  # what follows the start is the prompt's business
    inputs = tiny_families.batch(NAME).inputs
    ids = generate_ids(model, inputs, own_settings(model, 6))
    batch = tiny_families.batch(NAME)
    adapter = adapt(model)
    never = [7, 8, 9, tiny_families.END]
    read = torch.tensor([decoder.prefix] * 2)
    for position in range(4):
        batch = type(batch).of(inputs, read, read)
        with torch.no_grad():
            logits = adapter(batch, FeatureRequest()).logits[:, -1]
        logits[:, never if position == 0 else [8, 9]] = -1e9
        assert torch.equal(logits.argmax(-1), ids[:, position])
        read = torch.cat([read, ids[:, position : position + 1]], dim=1)


def test_heads_that_follow_the_sound_go_where_their_layers_went():
    heads = {"alignment_heads": [[0, 1], [2, 0], [2, 1]]}
    assert FAMILY.fitted(heads, (0, 2)) == {"alignment_heads": [[0, 1], [1, 0], [1, 1]]}
    assert FAMILY.fitted(heads, (1,)) == FAMILY.fitted(heads, ()) == {"alignment_heads": None}
    assert FAMILY.fitted({}, (0,)) == {}


def test_new_tokens_leave_room_for_the_prompt():
    model = tiny_families.model(NAME)
    own = OwnSettings(model.generation_config, "generation_config.json")
    own.config.max_new_tokens = 100
    settled = settle_student(own, Decoder.of(model.config, own.config), 6)
    assert settled.values["max_new_tokens"] == tiny_families.POSITIONS - 4

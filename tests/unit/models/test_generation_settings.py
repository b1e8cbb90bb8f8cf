"""One rule for generation: what plain transformers says on an export is what samples, teacher replies, evaluation,
latency and chat say, token for token, over a table of settings; and what cannot work is capped and said, or refused."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    BlenderbotConfig,
    BlenderbotForConditionalGeneration,
)
from typer.testing import CliRunner

from distill_engine.assembly.student_module import student_module
from distill_engine.cli import app
from distill_engine.evaluate.chat import ContextRules, Conversation
from distill_engine.evaluate.generate import own_settings
from distill_engine.evaluate.latency import measure
from distill_engine.evaluate.latency_rows import Case
from distill_engine.evaluate.measure import load_model
from distill_engine.evaluate.run import ReplySettings, Work, run_evaluation
from distill_engine.evaluate.samples import SampleReplies, recipe_prompts
from distill_engine.evaluate.set import EvaluationSet
from distill_engine.evaluate.teacher_replies import teacher_replies
from distill_engine.export.hf import probe_of, write_student
from distill_engine.losses.config import LossWeights
from distill_engine.losses.objective import Objective
from distill_engine.models.generation_settings import Decoder, settle
from distill_engine.models.own_settings import GenerationError, read_settings
from distill_engine.recipe.problem import RecipeError
from distill_engine.recipe.rules import read_recipe
from distill_engine.setup.prepare import prepare
from distill_engine.telemetry.sinks import SinkGroup

ROOT = Path(__file__).parents[3]
CPU = torch.device("cpu")
MODELS = {
    "blenderbot": (BlenderbotConfig, BlenderbotForConditionalGeneration),
    "bart": (BartConfig, BartForConditionalGeneration),
}
SAID = "hello do you have a dog or cat"
POSITIONS, LABEL_TOKENS = 48, 16
TABLE = {
    "nothing": {},
    "beams": {"num_beams": 4},
    "min_length": {"min_length": 11, "max_length": 20},
    "min_new_tokens": {"min_new_tokens": 9, "max_new_tokens": 14, "num_beams": 2},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2, "max_length": 24},
    "encoder_no_repeat_ngram_size": {"encoder_no_repeat_ngram_size": 2, "max_length": 24},
    "forced_bos": {"forced_bos_token_id": 300},
    "forced_eos": {"forced_eos_token_id": 301, "max_length": 9},
    "suppress_tokens": {"suppress_tokens": [148, 300, 140, 12]},
    "begin_suppress_tokens": {"begin_suppress_tokens": [140, 148]},
    "bad_words": {"bad_words_ids": [[140], [148], [5, 6]], "num_beams": 3},
    "length_penalty": {"num_beams": 3, "length_penalty": 2.5, "max_length": 14},
    "early_stopping": {"num_beams": 3, "early_stopping": True, "length_penalty": 0.3},
    "never_early": {"num_beams": 3, "early_stopping": "never", "max_length": 14},
    "max_new_tokens": {"max_new_tokens": 5},
    "longer than labels": {"max_new_tokens": 3 * LABEL_TOKENS - 2},
    "both limits": {"max_length": 6, "max_new_tokens": 12},
    "sampled": {"do_sample": True, "top_k": 20, "temperature": 1.5},
    "sampled beams": {"do_sample": True, "num_beams": 3, "top_p": 0.9},
    "repetition_penalty": {"repetition_penalty": 1.4, "max_length": 20},
    "without effect": {"do_sample": False, "temperature": 0.4, "length_penalty": 3.0},
    "several ends": {"eos_token_id": [2, 140, 148], "max_length": 20},
    "several replies": {"num_beams": 3, "num_return_sequences": 2},
    "too long": {"max_length": 500, "min_length": 90},
}


class Alone:
    rank, world_size = 0, 1

    def broadcast(self, value):
        return value


def save_teacher(folder, family, **config):
    config_class, model_class = MODELS[family]
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "recipes" / "demo" / "tokenizer")
    sizes = {
        "vocab_size": len(tokenizer), "d_model": 32, "encoder_layers": 1, "decoder_layers": 2,
        "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
        "max_position_embeddings": POSITIONS, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
        "forced_eos_token_id": 2, "decoder_start_token_id": 2 if family == "bart" else 1, "init_std": 0.3,
        "scale_embedding": family == "blenderbot",
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model_class(config_class(**sizes | config)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def teacher(family, tmp_path):
    return save_teacher(tmp_path / "teacher", family)


def set_generation(folder, settings, file="generation_config.json"):
    """Into that file; config.json alone is how folders were written before there was a file of its own."""
    held = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(held | settings))
    if file == "config.json":
        (folder / "generation_config.json").unlink()


def recipe_file(tmp_path, teacher, **student):
    data = tmp_path / "talk.txt"
    data.write_text(f"text:{SAID}\tlabels:my name is bo\tepisode_done:True\n")
    recipe = {
        "name": "tiny",
        "teacher": {"path": str(teacher)},
        "student": {"encoder_layers": 1, "decoder_layers": 1, "init": "teacher_layers", **student},
        "losses": {"weights": {"task": 1.0}},
        "data": {
            "datasets": [{"name": "parlai_text", "label": "talk", "train": str(data), "valid": str(data)}],
            "context_tokens": 24, "label_tokens": LABEL_TOKENS, "cache_dir": str(tmp_path / "cache"),
        },
        "batch": {"per_rank": 1},
        "optimizer": {"learning_rate": 0.01},
        "validation": {"every_steps": 1, "samples": 1},
        "stop": {"max_steps": 1},
        "logging": {"wandb": {"mode": "disabled"}},
    }  # fmt: skip
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    return file


def exported(tmp_path, teacher, **student):
    """What was prepared, the folder of its untrained student, and what was said."""
    file = recipe_file(tmp_path, teacher, **student)
    ready, said = prepare(read_recipe(file), file), []
    module = student_module(ready, Objective(LossWeights(task=1.0), {}), said.append)
    folder = tmp_path / "export"
    write_student(module.adapter.model, ready.tokenizer, folder, "# card\n", probe_of(module.adapter.model))
    return ready, folder, said


def five_paths(ready, model, tmp_path):
    """Path -> (context ids, generated ids of its first reply), as `model.generate` was asked and answered."""
    seen, heard = {}, []

    def generate(**options):
        ids = type(model).generate(model, **options)
        heard.append((options["input_ids"].tolist(), ids[0].tolist()))
        return ids

    model.generate = generate
    prompts, labels = recipe_prompts(ready), ready.valid_labels
    SampleReplies(ready, prompts, model, SinkGroup([], pytest.fail))(1, 0.0)
    seen["samples"] = heard.pop()
    teacher_replies(ready, model, prompts, tmp_path, Alone(), lambda text: None)
    seen["teacher replies"] = heard.pop()
    examples = EvaluationSet(ready.valid_datasets, ready.layout, ready.tokenizer, 1)
    spoken = ReplySettings(LABEL_TOKENS)
    run_evaluation({"m": model}, None, examples, labels, ready.tokenizer, Work(tmp_path / "partial"), spoken)
    seen["evaluation"] = heard.pop()
    data = ready.recipe.data
    rules = ContextRules(data.delimiter, data.context_tokens, data.history_end_token)
    conversation = Conversation(model, ready.tokenizer, rules, own_settings(model, LABEL_TOKENS))
    torch.manual_seed(0)
    conversation.answer(SAID)
    seen["chat"] = heard.pop()
    beams = model.generation_config.num_beams or 1
    context = torch.tensor(ready.valid_datasets[0].example(0).context_ids, dtype=torch.long)[None]
    measure({"m": model}, [Case("free", beams)], [context], rounds=1, warm_up=0, new_tokens=LABEL_TOKENS)
    seen["latency"] = heard.pop()
    assert heard == []
    return seen


def plain(folder, context, **options):
    """Nothing of this project: a folder, transformers, a seed."""
    model = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    torch.manual_seed(0)
    ids = torch.tensor(context)
    return model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0].tolist()


@pytest.mark.parametrize("row", TABLE)
def test_all_paths_say_what_plain_transformers_says_on_the_export(family, teacher, tmp_path, row):
    settings = TABLE[row]
    set_generation(teacher, settings)
    ready, folder, _ = exported(tmp_path, teacher)
    model = load_model(folder, CPU)
    assert own_settings(model, LABEL_TOKENS) == {}, "nothing is left to complete in an export"
    seen = five_paths(ready, model, tmp_path)
    context = seen["samples"][0]
    assert {str(asked) for asked, _ in seen.values()} == {str(context)}, "one context on all paths"
    wanted = plain(folder, context)
    latency = seen.pop("latency")[1]  # of beams, never sampled
    assert {path: ids for path, (_, ids) in seen.items()} == dict.fromkeys(seen, wanted)
    assert latency == plain(folder, context, do_sample=False)
    written = json.loads((folder / "generation_config.json").read_text())
    kept = {name: value for name, value in settings.items() if name not in ("suppress_tokens", "min_length")}
    if row != "too long":
        assert {name: written[name] for name in kept} == kept
    assert set(written.get("suppress_tokens") or []) == {*settings.get("suppress_tokens", []), *(
        [1] if family == "blenderbot" else []
    )}  # fmt: skip
    assert len(wanted) <= POSITIONS


@pytest.mark.parametrize("row", ["nothing", "beams", "min_length", "bad_words", "sampled", "without effect"])
def test_settings_in_config_json_alone_are_the_same_settings(family, teacher, tmp_path, row):
    set_generation(teacher, TABLE[row])
    ready, folder, _ = exported(tmp_path, teacher)
    context = [ready.valid_datasets[0].example(0).context_ids.tolist()]
    wanted = plain(folder, context), json.loads((folder / "generation_config.json").read_text())
    old = save_teacher(tmp_path / "old", family)
    set_generation(old, TABLE[row], "config.json")
    assert read_settings(old).source == "config.json"
    theirs = AutoModelForSeq2SeqLM.from_pretrained(old).generation_config
    assert read_settings(old).config.to_diff_dict() == theirs.to_diff_dict(), "as transformers takes them"
    _, again, _ = exported(tmp_path, old)
    written = json.loads((again / "generation_config.json").read_text())
    assert plain(again, context) == wanted[0]
    assert {name: written[name] for name in TABLE[row]} == {name: wanted[1][name] for name in TABLE[row]}


def test_the_table_changes_what_is_said(family, tmp_path):
    """Else the comparisons above would prove little."""
    said = set()
    possible = [settings for row, settings in TABLE.items() if row != "too long"]  # plain generate() fails with it
    for number, settings in enumerate(possible):
        folder = save_teacher(tmp_path / str(number), family)
        set_generation(folder, settings)
        said.add(str(plain(folder, [[1, 300, 400, 2]])))
    assert len(said) >= 10


def test_a_decoder_that_starts_otherwise_is_told_and_the_student_starts_as_it_was_trained(family, teacher, tmp_path):
    other = 1 if family == "bart" else 2
    for file in ("config.json", "generation_config.json"):
        held = json.loads((teacher / file).read_text())
        (teacher / file).write_text(json.dumps(held | {"decoder_start_token_id": other}))
    ready, folder, said = exported(tmp_path, teacher)
    first = 3 - other
    assert any(f"decoder_start_token_id is {first}, not the teacher's {other}" in one for one in said)
    reads = list(ready.layout.decoder_prefix)
    context = [ready.valid_datasets[0].example(0).context_ids.tolist()]
    assert plain(folder, context)[: len(reads)] == reads
    for file in ("config.json", "generation_config.json"):
        assert json.loads((folder / file).read_text())["decoder_start_token_id"] == first


def test_a_shorter_position_table_caps_the_limits_and_says_so(family, teacher, tmp_path):
    set_generation(teacher, {"max_length": 47, "min_length": 40})
    ready, folder, said = exported(tmp_path, teacher, positions=32)
    assert any("max_length is 32, not 47: the position table has 32 rows" in one for one in said)
    assert any("min_length is 32, not 40" in one for one in said)
    context = [ready.valid_datasets[0].example(0).context_ids.tolist()]
    assert len(plain(folder, context)) == 32
    # also an export from before there was this rule, and whatever a person asks for
    set_generation(folder, {"max_length": 60})
    model = load_model(folder, CPU)
    five_paths(ready, model, tmp_path)
    assert own_settings(model, 8, {"max_new_tokens": 99})["max_new_tokens"] == 31
    with pytest.raises(GenerationError, match=r"do not fit model 'm', which has 32 positions\. Ask for 31 or fewer"):
        measure({"m": model}, [Case("fixed")], [torch.tensor(context)], rounds=1, warm_up=0, new_tokens=32)


def test_what_is_asked_wins(family, teacher):
    model = load_model(teacher, CPU)
    own, decoder = model.generation_config, Decoder.of(model.config, model.generation_config)
    own.update(max_new_tokens=20, min_new_tokens=7, suppress_tokens=[9])
    asked = settle(own, decoder, 8, {"max_length": 6, "min_length": 2, "num_beams": 2}).changes
    assert (asked["max_length"], asked["max_new_tokens"], asked["min_new_tokens"]) == (6, None, None)
    ids = torch.tensor([[1, 300, 400, 2]])
    assert model.generate(ids, **asked).shape[1] <= 6
    others = settle(own, decoder, 8, {"suppress_tokens": [7]}).values["suppress_tokens"]
    assert others == ([1, 7] if family == "blenderbot" else [7])


@pytest.mark.parametrize(
    "settings, reason",
    [
        ({"forced_bos_token_id": 300, "suppress_tokens": [300]}, "holds generation settings that transformers refuses"),
        ({"forced_bos_token_id": 99999}, "forced_bos_token_id is 99999, but the vocabulary has"),
        ({"early_stopping": "soon"}, "holds generation settings that transformers refuses"),
        ({"max_new_tokens": 0}, "holds generation settings that transformers refuses"),
        ({"max_length": "60"}, "max_length is '60'. It has to be a number of tokens"),
    ],
)
def test_what_cannot_work_is_refused(family, teacher, tmp_path, settings, reason):
    set_generation(teacher, settings)
    file = recipe_file(tmp_path, teacher)
    with pytest.raises(RecipeError, match=re.escape(reason)):
        prepare(read_recipe(file), file)
    done = CliRunner().invoke(app, ["check", "--recipe", str(file)])
    assert done.exit_code == 78 and reason in " ".join(done.output.split())


def test_a_damaged_file_is_passed_over_as_transformers_does_and_said(family, teacher, tmp_path):
    (teacher / "generation_config.json").write_text('{"num_beams": 3,')
    _, _, said = exported(tmp_path, teacher)
    assert any("generation_config.json is not used, config.json is: it cannot be read" in one for one in said)


def test_check_shows_the_effective_settings(family, teacher, tmp_path):
    set_generation(teacher, {"num_beams": 3, "max_length": 90})
    done = CliRunner().invoke(app, ["check", "--recipe", str(recipe_file(tmp_path, teacher))])
    assert done.exit_code == 0, done.output
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.output.splitlines() if "│" in line]
    shown = {row[0]: row[1] for row in rows if len(row) == 3}
    assert (shown["num_beams"], shown["max_length"], shown["do_sample"]) == ("3", str(POSITIONS), "false")
    assert shown.get("suppress_tokens") == ("[1]" if family == "blenderbot" else None)
    assert shown.get("forced_bos_token_id") == ("1" if family == "bart" else None)
    assert f"generation: max_length is {POSITIONS}, not 90" in done.output

"""Evaluation of real models: independent numbers, any number of processes, interruptions, ParlAI's own report."""

import json
import math
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    BartConfig,
    BlenderbotConfig,
    BlenderbotForConditionalGeneration,
)

from distill_engine.cluster.other_ranks import OthersFailedError
from distill_engine.data.corpora.demo import demo_episodes
from distill_engine.data.kinds.dialogue_source import DialogueSpec
from distill_engine.data.readers import stream_dataset
from distill_engine.data.tokens.layout import SequenceLayout, SpecialTokens
from distill_engine.data.tokens.tokenize import DialogueTokenizer, load_tokenizer
from distill_engine.evaluate import run as evaluation
from distill_engine.evaluate.generate import GenerationError, own_settings, parse_settings, replies
from distill_engine.evaluate.measure import ModelError, load_model, prediction_kernel
from distill_engine.evaluate.run import ReplySettings, Work, run_evaluation
from distill_engine.evaluate.set import EvaluationSet
from distill_engine.families.lookup import family_named
from distill_engine.losses.kernels import dispatch, prediction_blocks
from distill_engine.metrics.replies import Answered, reply_metrics
from distill_engine.models.adapter import Adapter
from distill_engine.values import Tokens

ROOT = Path(__file__).parents[3]
TEACHER = ROOT / "recipes" / "demo" / "teacher"
CPU = torch.device("cpu")
LABELS = ("pets", "sums")
SPOKEN = ReplySettings(new_tokens=10)


def blenderbot_layout() -> SequenceLayout:
    return family_named("blenderbot").layout(SpecialTokens(0, 2, 1), True)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(str(TEACHER))


@pytest.fixture(scope="module")
def datasets(tokenizer):
    encoder = DialogueTokenizer(tokenizer, blenderbot_layout(), "\n", 100, 24)
    episodes = demo_episodes("valid", 36, 3)
    return [encoder.tokenise(episodes[::2]), encoder.tokenise(episodes[1::2])]


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> Path:
    """The teacher with 2 of its 6 decoder layers."""
    folder = tmp_path_factory.mktemp("student")
    config = AutoConfig.from_pretrained(TEACHER)
    config.decoder_layers = 2
    AutoModelForSeq2SeqLM.from_pretrained(TEACHER, config=config, ignore_mismatched_sizes=True).save_pretrained(folder)
    return folder


def examples(datasets, tokenizer, per_batch=8) -> EvaluationSet:
    return EvaluationSet(datasets, blenderbot_layout(), tokenizer, per_batch)


def loaded(student):
    return {"teacher": load_model(TEACHER, CPU), "student": load_model(student, CPU)}


def evaluate(folder, datasets, tokenizer, student, spoken=SPOKEN, **options):
    work = Work(folder, **options)
    models = loaded(student)
    return run_evaluation(models, models["teacher"], examples(datasets, tokenizer), LABELS, tokenizer, work, spoken)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, datasets, tokenizer, student):
    """An evaluation by one process, never interrupted."""
    return evaluate(tmp_path_factory.mktemp("whole"), datasets, tokenizer, student)


def test_each_example_comes_once_and_its_text_is_the_data(datasets, tokenizer):
    all_of_it = examples(datasets, tokenizer)
    texts = [text for number in range(len(all_of_it)) for text in all_of_it.texts(number)]
    assert len(texts) == all_of_it.examples == sum(map(len, datasets))
    said = [turn.label for episode in demo_episodes("valid", 36, 3) for turn in episode.turns]
    assert sorted(text.reference for text in texts) == sorted(said)
    rows = sum(len(all_of_it.batch(number)) for number in range(len(all_of_it)))
    assert rows == len(texts)


def test_values_against_a_plain_computation(whole, datasets, tokenizer, student):
    """One example after the other through plain transformers models, without our adapter, loader or sums."""
    models = {name: AutoModelForSeq2SeqLM.from_pretrained(f).eval() for name, f in (("t", TEACHER), ("s", student))}
    found = {}
    for label, dataset in zip(LABELS, datasets, strict=True):
        loss = kl = right = tokens = agree = exact = 0.0
        for index in range(len(dataset)):
            example = dataset.example(index)
            reference = torch.tensor(example.label_ids).long()
            inputs = {
                "input_ids": torch.tensor(example.context_ids)[None].long(),
                "decoder_input_ids": torch.cat([torch.tensor([1]), reference[:-1]])[None],
            }
            with torch.no_grad():
                logits = {name: model(**inputs).logits[0] for name, model in models.items()}
            for one in logits.values():
                one[:, 1] = -1e20  # Blenderbot never predicts its start token
            loss += functional.cross_entropy(logits["s"], reference, reduction="sum").item()
            log = {name: one.log_softmax(-1) for name, one in logits.items()}
            kl += functional.kl_div(log["s"], log["t"], log_target=True, reduction="sum").item()
            said = logits["s"].argmax(-1)
            right += (said == reference).sum().item()
            agree += (said == logits["t"].argmax(-1)).sum().item()
            exact += float((said == reference).all())
            tokens += len(reference)
        found[label] = {
            "ppl": math.exp(loss / tokens), "loss": loss / tokens, "teacher_kl": kl / tokens,
            "token_acc": right / tokens, "teacher_acc": agree / tokens, "token_em": exact / len(dataset),
        }  # fmt: skip
    values = whole.values["student"]
    for label, row in found.items():
        assert {name: values[f"{label}/{name}"] for name in row} == pytest.approx(row, rel=1e-4)
    for name in found["pets"]:
        mean = sum(row[name] for row in found.values()) / 2
        assert values[name] == pytest.approx(mean, rel=1e-4)
    assert values["exs"] == sum(map(len, datasets))


def test_the_teacher_is_its_own_equal(whole):
    teacher, student = whole.values["teacher"], whole.values["student"]
    assert teacher["teacher_kl"] == 0.0 and teacher["teacher_acc"] == 1.0
    assert student["teacher_kl"] > 0.01 and student["ppl"] > teacher["ppl"]
    assert student["f1"] < teacher["f1"] and teacher["bleu"] > 10


def test_replies_in_batches_are_replies_alone(whole, datasets, tokenizer):
    """One context after the other, through plain generate, gives the same metrics."""
    model = AutoModelForSeq2SeqLM.from_pretrained(TEACHER).eval()
    said, references, lengths = [], [], []
    for dataset in datasets:
        for index in range(len(dataset)):
            ids = model.generate(
                torch.tensor(dataset.example(index).context_ids)[None].long(), max_new_tokens=10, suppress_tokens=[1]
            )[0, 1:].tolist()
            said.append(tokenizer.decode(ids, skip_special_tokens=True).strip())
            lengths.append(len(ids))
            reference = dataset.tokens[dataset.bounds[index, 2] : dataset.bounds[index, 3]]
            references.append([tokenizer.decode(reference.tolist())])
    expected = reply_metrics([Answered(*one) for one in zip(said, lengths, references, strict=True)])
    values = whole.values["teacher"]
    pooled = ("bleu", "interdistinct-1", "interdistinct-2")
    assert {name: values[name] for name in pooled} == pytest.approx({name: expected[name] for name in pooled})
    share = len(datasets[0]) / (len(datasets[0]) + len(datasets[1]))
    for name in ("f1", "accuracy", "repetition", "reply_tokens"):
        mixed = share * values[f"pets/{name}"] + (1 - share) * values[f"sums/{name}"]
        assert mixed == pytest.approx(expected[name]), name
        assert values[name] == pytest.approx((values[f"pets/{name}"] + values[f"sums/{name}"]) / 2)


@pytest.mark.parametrize("world_size", [2, 3])
def test_any_number_of_processes_gives_the_same_bits(tmp_path, whole, datasets, tokenizer, student, world_size):
    everybodys = [loaded(student) for _ in range(world_size)]  # transformers cannot load in several threads at once

    def rank(number):
        models, work = everybodys[number], Work(tmp_path, number, world_size)
        data = examples(datasets, tokenizer)
        return run_evaluation(models, models["teacher"], data, LABELS, tokenizer, work, SPOKEN)

    with ThreadPoolExecutor(world_size) as pool:
        everyone = list(pool.map(rank, range(world_size)))
    for one in everyone:
        assert one == whole


class PlugPulledError(Exception):
    pass


def test_nobody_waits_for_a_process_that_has_given_up(tmp_path, datasets, tokenizer, student):
    everybodys = [loaded(student) for _ in range(2)]

    def fail(name, done, batches):
        raise PlugPulledError("no memory left")

    def rank(number):
        models, work = everybodys[number], Work(tmp_path, number, 2, advance=fail if number == 1 else None)
        data = examples(datasets, tokenizer)
        return run_evaluation(models, models["teacher"], data, LABELS, tokenizer, work, None)

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.submit(rank, 0), pool.submit(rank, 1)
        with pytest.raises(PlugPulledError):
            second.result(timeout=120)
        with pytest.raises(OthersFailedError, match=r"will not come: rank-1: PlugPulledError: no memory left"):
            first.result(timeout=120)


def test_several_processes_do_not_begin_afresh(tmp_path, datasets, tokenizer, student):
    with pytest.raises(ModelError, match="--fresh"):
        evaluate(tmp_path, datasets, tokenizer, student, spoken=None, resume=False, world_size=2)


def test_values_are_the_same_where_large_logits_are_never_formed(tmp_path, datasets, tokenizer, student, monkeypatch):
    as_logits = evaluate(tmp_path / "logits", datasets, tokenizer, student, spoken=None)
    monkeypatch.setattr(dispatch, "SMALL_LOGITS_BYTES", 0)
    monkeypatch.setattr(prediction_blocks, "BLOCK_BYTES", 2**18)
    monkeypatch.setattr(Adapter, "_logits", None)
    in_blocks = evaluate(tmp_path / "blocks", datasets, tokenizer, student, spoken=None)
    assert in_blocks.values == {name: pytest.approx(values, rel=1e-5) for name, values in as_logits.values.items()}
    counted = ("token_acc", "token_em", "teacher_acc")
    for name, values in in_blocks.values.items():
        assert [values[value] for value in counted] == [as_logits.values[name][value] for value in counted]


def test_families_that_never_predict_another_token_are_compared_by_whole_logits(monkeypatch):
    monkeypatch.setattr(dispatch, "SMALL_LOGITS_BYTES", 0)
    batch = SimpleNamespace(labels=torch.zeros(2, 3, dtype=torch.int64))
    bart, blenderbot, other = (
        SimpleNamespace(config=config)
        for config in (BartConfig(), BlenderbotConfig(), BlenderbotConfig(bos_token_id=5))
    )
    assert prediction_kernel({"m": bart}, None, batch) == prediction_kernel({"m": bart}, bart, batch) == "chunked"
    assert prediction_kernel({"m": blenderbot}, blenderbot, batch) == "chunked"
    for teacher in (blenderbot, other):
        assert prediction_kernel({"m": bart}, teacher, batch) == "reference"
    assert prediction_kernel({"m": blenderbot}, other, batch) == "reference"


def test_an_interrupted_evaluation_goes_on_where_it_was(tmp_path, whole, datasets, tokenizer, student, monkeypatch):
    def until_third(name, done, batches):
        if name == "student" and done == 3:
            raise PlugPulledError

    with pytest.raises(PlugPulledError):
        evaluate(tmp_path, datasets, tokenizer, student, advance=until_third)
    for file in tmp_path.rglob("rank-0.jsonl"):  # a kill in the middle of a write leaves half a line
        file.write_bytes(file.read_bytes()[:-30])
    computed = []
    measured = evaluation.measured

    def counted(models, *rest):
        computed.append(list(models))
        return measured(models, *rest)

    monkeypatch.setattr(evaluation, "measured", counted)
    assert evaluate(tmp_path, datasets, tokenizer, student) == whole
    batches = len(examples(datasets, tokenizer))
    assert computed == [["teacher", "student"]] * (batches - 2)
    computed.clear()
    assert evaluate(tmp_path, datasets, tokenizer, student) == whole
    assert computed == []
    evaluate(tmp_path, datasets, tokenizer, student, spoken=None, resume=False)
    assert len(computed) == batches
    evaluate(tmp_path, datasets, tokenizer, student, spoken=ReplySettings(4))  # another question, other results
    assert len(computed) == 2 * batches


def test_samples_hold_every_models_reply(whole):
    assert 3 <= len(whole.samples) <= 12
    for sample in whole.samples:
        assert set(sample.replies) == {"teacher", "student"} and sample.dataset in LABELS
        assert sample.context and sample.reference
    assert len({sample.context for sample in whole.samples}) > 2


def test_own_settings_are_kept_and_completed():
    model = load_model(TEACHER, CPU)
    assert own_settings(model, 10) == {"max_new_tokens": 10, "suppress_tokens": [1]}
    model.generation_config.update(max_length=7, suppress_tokens=[9], num_beams=4)
    assert own_settings(model, 10) == {"suppress_tokens": [1, 9]}
    assert own_settings(model, 10, {"num_beams": 2, "max_new_tokens": 3})["max_new_tokens"] == 3


def test_own_beams_are_used(tokenizer):
    model = load_model(TEACHER, CPU)
    ids = torch.tensor([tokenizer("who are you?")["input_ids"] + [2]])
    plain = replies(model, tokenizer, Tokens(ids, torch.ones_like(ids)), own_settings(model, 12))
    model.generation_config.update(num_beams=3, min_length=12)
    long = replies(model, tokenizer, Tokens(ids, torch.ones_like(ids)), own_settings(model, 12))
    assert long[0].tokens >= 11 > plain[0].tokens > 1


def test_settings_from_the_command_line():
    assert parse_settings(["num_beams=3", "do_sample=false"]) == {"num_beams": 3, "do_sample": False}
    with pytest.raises(GenerationError, match=r"Did you mean num_beams\?"):
        parse_settings(["num_beam=3"])
    with pytest.raises(GenerationError, match="name=value"):
        parse_settings(["num_beams"])


def test_models_that_do_not_fit_are_refused(tmp_path, datasets, tokenizer, tiny):
    model = tiny.model("blenderbot")
    with pytest.raises(ModelError, match=r"token id \d+, model 'x' has 29 embedding rows"):
        run_evaluation({"x": model}, None, examples(datasets, tokenizer), LABELS, tokenizer, Work(tmp_path), None)
    wide = tiny.model("blenderbot", vocab_size=1100, max_position_embeddings=128)
    with pytest.raises(ModelError, match="predicts 1100 tokens, the teacher 1024"):
        run_evaluation(
            {"x": wide},
            load_model(TEACHER, CPU),
            examples(datasets, tokenizer),
            LABELS,
            tokenizer,
            Work(tmp_path),
            None,
        )
    short = tiny.model("blenderbot", vocab_size=1100, max_position_embeddings=24)
    with pytest.raises(ModelError, match="model 'x' has 24 positions"):
        run_evaluation({"x": short}, None, examples(datasets, tokenizer), LABELS, tokenizer, Work(tmp_path), None)


# ---- a real ParlAI run -------------------------------------------------------------------------------------------

PARTS = {
    "attention": "self_attn", "self_attention": "self_attn", "encoder_attention": "encoder_attn", "q_lin": "q_proj",
    "k_lin": "k_proj", "v_lin": "v_proj", "out_lin": "out_proj", "lin1": "fc1", "lin2": "fc2",
    "norm_embeddings": "layer_norm", "embeddings": "embed_tokens", "position_embeddings": "embed_positions",
    "norm1": "self_attn_layer_norm", "norm3": "final_layer_norm",
}  # fmt: skip


def from_parlai(folder: Path) -> BlenderbotForConditionalGeneration:
    """ParlAI's model file as a transformers model."""
    state = torch.load(folder / "model", map_location="cpu", weights_only=True)["model"]
    config = BlenderbotConfig(
        vocab_size=608, d_model=32, encoder_layers=2, decoder_layers=3, encoder_ffn_dim=64, decoder_ffn_dim=64,
        encoder_attention_heads=4, decoder_attention_heads=4, max_position_embeddings=128, scale_embedding=True,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    model = BlenderbotForConditionalGeneration(config)
    named = {"model.shared.weight": state["embeddings.weight"], "lm_head.weight": state["embeddings.weight"]}
    named["final_logits_bias"] = torch.zeros(1, 608)
    for name, value in state.items():
        if name in ("START", "embeddings.weight"):
            continue
        decoder = name.startswith("decoder")
        second = {"norm2": "encoder_attn_layer_norm" if decoder else "final_layer_norm"}
        words = [(PARTS | second).get(word, word) for word in name.split(".") if word != "ffn"]
        named["model." + ".".join(words)] = value
    model.load_state_dict(named)
    return model.eval()


@pytest.mark.parametrize("split", ["valid", "test"])
def test_the_report_of_a_parlai_run(tmp_path, split):
    """Loss, ppl, token_acc and token_em of every dataset, as ParlAI printed them (4 digits), from the raw files on."""
    root = Path(os.environ.get("TASKDATA_DIR") or Path(__file__).parents[2] / "fixtures" / "taskdata")
    report = json.loads((root / "tiny_parlai" / "blender" / f"model.{split}").read_text().split(f"{split}:", 1)[1])
    names = ("blended_skill_talk", "convai2:normalized", "empathetic_dialogues", "wizard_of_wikipedia")
    tokenizer = load_tokenizer(str(root / "toy_dict" / "hf"))
    encoder = DialogueTokenizer(tokenizer, blenderbot_layout(), "  ", 128, 128)
    data = [
        encoder.tokenise(list(stream_dataset(DialogueSpec(name=name, root=str(root / "raw")), split))) for name in names
    ]
    model = from_parlai(root / "tiny_parlai" / "blender")
    batches = EvaluationSet(data, blenderbot_layout(), tokenizer, 4)
    values = run_evaluation({"m": model}, None, batches, names, tokenizer, Work(tmp_path), None).values["m"]
    assert values["exs"] == report["exs"] == 18
    for prefix in ("", *(f"{name}/" for name in names)):
        for metric in ("loss", "ppl", "token_acc", "token_em"):
            told, ours = report[prefix + metric], values[prefix + metric]
            assert float(f"{ours:.4g}") == pytest.approx(told, rel=1e-9), prefix + metric

"""ParlAI commands as recipes: the sample command exactly, and each rule on its own."""

import json
import shlex
from pathlib import Path

import pytest

from distill_engine.interop.parlai.options.command_line import read_command
from distill_engine.interop.parlai.options.errors import ParlaiError
from distill_engine.interop.parlai.options.render import checked, recipe_yaml
from distill_engine.interop.parlai.options.translate import translate
from distill_engine.recipe.load import load_recipe
from distill_engine.recipe.yaml_text import parse_yaml

ROOT = Path(__file__).parents[5]
OPT = ROOT / "tests" / "fixtures" / "taskdata" / "tiny_parlai" / "blender" / "model.opt"

# TinyBERT-style distillation of BlenderBot 3B, as ParlAI's documentation gives it.
SAMPLE = """parlai train_model --allow-missing-init-opts True --init-model None
    --init-opt data/models/blender/blender_3B/model.opt
    --model projects.anti_scaling.distillation:DistillNarrowTransformerAgent
    --teacher-model data/models/blender/blender_3B/model --batchsize 16 --embedding-size 2560 --ffn-size 10240
    --fp16 True --gpu -1 --learningrate 0.0001 --lr-scheduler reduceonplateau --max-lr-steps -1 --max-train-time -1
    --model-parallel False --save-after-valid True --skip-generation True
    --task blended_skill_talk,wizard_of_wikipedia,convai2:normalized,empathetic_dialogues
    -veps -1 -vmm min -vmt ppl -vp 20 -vtim 900 --n-encoder-layers 2 --n-decoder-layers 9
    --embedding-loss-coeff 4 --hidden-loss-coeff 64 --self-attn-loss-coeff 4 --enc-dec-attn-loss-coeff 64
    --encoder-loss-coeff 0 --pred-loss-coeff 64 --task-loss-coeff 1 --model-file /save/bb3b_tinybert/model"""
BASE = "-t convai2 -m transformer/generator -vmt ppl -vtim 60 --variant prelayernorm --activation gelu "


def translated(words):
    return translate(read_command(shlex.split(words)))


def recipe(words):
    return checked(translated(words).recipe)


def notes(words):
    return {note.flag: note.text for note in translated(words).notes}


def test_the_sample_command_is_the_recipe_of_the_same_model(tmp_path):
    path = tmp_path / "translated.yaml"
    path.write_text(recipe_yaml(translated(SAMPLE)))
    assert load_recipe(path) == load_recipe(ROOT / "recipes" / "bb3b_tinybert.yaml")


def test_each_flag_of_it_without_equivalent_has_a_comment():
    text = recipe_yaml(translated(SAMPLE))
    for flag in ("--allow-missing-init-opts True", "--gpu -1", "--model-parallel False", "--skip-generation True"):
        assert f"# - {flag}: " in text
    assert "blender_3B/model.opt: is not at hand" in text and "update_freq" in text


def test_a_models_own_opt_is_inherited_when_it_is_at_hand(tmp_path):
    (tmp_path / "model.opt").write_text(json.dumps({"update_freq": 2, "warmup_updates": 100, "beam_size": 10, "x": 1}))
    words = SAMPLE.replace("data/models/blender/blender_3B/model.opt", str(tmp_path / "model.opt"))
    found, said = recipe(words), notes(words)
    assert (found.batch.accumulation_steps, found.schedule.warmup_steps) == (2, 100)
    assert "beam-size 10 (inherited)" in said and "x" in said


def test_an_opt_file_alone_is_a_command():
    found = checked(translate(read_command([], OPT)).recipe)
    assert (found.name, found.student.decoder_layers, found.stop.max_steps) == ("tiny_blender", 3, 20)
    assert [task.weight for task in found.data.datasets] == [1, 3, 3, 3] and found.data.delimiter == "  "
    assert (found.optimizer.name, found.optimizer.amsgrad, found.schedule.warmup_steps) == ("adam", True, 3)
    assert found.teacher.path is None and found.losses.weights["task"] == 1


AGENT = "-m projects.anti_scaling.distillation:"
TEACHER = " --teacher-model zoo:blender/blender_3B/model -t convai2 -vmt ppl -vtim 9 --pred-loss-coeff 1 "


def test_the_four_agents():
    wide = recipe(AGENT + "DistillTransformerAgent --variant prelayernorm" + TEACHER + "--self-attn-loss-coeff 3")
    assert (wide.student.init, wide.student.projections, wide.student.copy_final_norms) == (
        "teacher_layers",
        "auto",
        False,
    )
    assert wide.losses.weights["self_attention"] == 0
    fresh = recipe(AGENT + "DistillTransformerAgent --copy-teacher-weights false" + TEACHER)
    assert fresh.student.init == "random"
    bart = recipe(AGENT + "DistillNarrowBartAgent --self-attn-loss-coeff 3 -esz 512" + TEACHER)
    assert (bart.student.family, bart.student.width, bart.student.heads, bart.student.positions) == (
        "bart",
        512,
        16,
        1024,
    )
    assert bart.losses.weights["self_attention"] == 3 and bart.batch.pad_to_multiple_of == 8


def test_a_teacher_of_ones_own_is_converted_first():
    words = AGENT + "DistillTransformerAgent" + TEACHER.replace("zoo:blender/blender_3B/model", "/m/big/model")
    assert recipe(words).teacher.path == "/m/big/hf"
    assert "distill import-parlai /m/big/model /m/big/hf" in notes(words)["--teacher-model /m/big/model"]


def test_plain_training_starts_from_init_model_or_at_random():
    tuned = recipe(BASE + "--init-model zoo:blender/blender_400Mdistill/model")
    assert (tuned.teacher.path, tuned.student.init) == ("facebook/blenderbot-400M-distill", "teacher_layers")
    assert tuned.losses.weights.model_dump() == {**dict.fromkeys(tuned.losses.weights.model_dump(), 0.0), "task": 1.0}
    assert recipe(BASE).student.init == "random" and recipe(BASE).teacher.path is None
    assert recipe("-m bart -t convai2 -vmt ppl -vtim 9").teacher.path == "facebook/bart-large"


@pytest.mark.parametrize(
    "flags, key, value",
    [
        ("-opt mem_eff_adam", "optimizer.amsgrad", False),
        ("-opt adam", "optimizer.amsgrad", True),
        ("-opt adam --fp16 true --fp16-impl mem_efficient", "optimizer.amsgrad", False),
        ("-opt adamw", "optimizer.weight_decay", 0.01),
        ("-opt sgd -mom 0.9 --nesterov false", "optimizer.momentum", 0.9),
        ("-clip 0", "optimizer.clip_norm", None),
        ("-beta 0.8,0.9 -opt adam", "optimizer.betas", (0.8, 0.9)),
        ("--lr-scheduler none", "schedule.name", "constant"),
        ("--lr-scheduler linear -tstep 9", "stop.max_steps", 9),
        ("--warmup-updates 7 --warmup-rate 0.5", "schedule.warmup_start", 0.5),
        ("-tr 64", "data.context_tokens", 64),
        ("-tr 64 --label-truncate 32", "data.label_tokens", 32),
        ("--n-positions 77", "data.label_tokens", 77),
        ("--history-add-global-end-token end", "data.history_end_token", True),
        ("--history-add-global-end-token none", "data.history_end_token", False),
        ("-dp /data", "data.root", "/data"),
        ("-dynb full -tr 100 -bs 4", "batch.max_tokens", 800),
        ("--update-freq 3", "batch.accumulation_steps", 3),
        ("-vp -1 -tstep 5", "validation.patience", None),
        ("-vp 3", "validation.patience", 3),
        ("-vmt token_acc", "validation.direction", "max"),
        ("-vmt convai2/loss", "validation.metric", "convai2/loss"),
        ("--aggregate-micro true", "validation.average", "micro"),
        ("--eval-batchsize 2", "validation.per_rank_batch", 2),
        ("-vcut 1.5", "validation.stop_at", 1.5),
        ("-stim 30", "checkpoint.every_seconds", 30.0),
        ("-eps 2.5", "stop.max_epochs", 2.5),
        ("--seed 7", "seed", 7),
        ("-lstep 5", "logging.every_steps", 5),
        ("--wandb-project p --wandb-log false", "logging.wandb.mode", "disabled"),
        ("-nl 3 -ndl 4", "student.encoder_layers", 3),
        ("-nl 3 -ndl 4", "student.decoder_layers", 4),
        ("--learn-positional-embeddings true", "student.train_position_tables", True),
        ("--checkpoint-activations true", "student.activation_checkpointing", True),
        ("-mtw stochastic", "data.weights_mean", "passes"),
        ("-mf /runs/my.model.v2", "name", "my.model.v2"),
        ("-mf '/tmp/a b/model'", "name", "a_b"),
    ],
)
def test_single_flags(flags, key, value):
    found = recipe(BASE + flags)
    for part in key.split("."):
        found = getattr(found, part)
    assert found == value


def test_tasks_and_their_files():
    words = (
        BASE.replace("-t convai2", "")
        + "-t "
        + (
            "fromfile:parlaiformat:fromfile_datapath=/d/a:fromfile_datatype_extension=true,jsonfile,"
            "wizard_of_wikipedia:WizardDialogKnowledgeTeacher:topic_split,fromfile:fbformat:fromfile_datapath=/d/b.txt,"
            "dailydialog --jsonfile-datapath /d/c --label-turns both -mtw 2,3"
        )
    )
    tasks = recipe(words).data.datasets
    assert [task.name for task in tasks] == [
        "parlai_text",
        "conversations",
        "wizard_of_wikipedia",
        "fbdialog",
        "parlai_text",
    ]
    assert (tasks[0].train, tasks[0].valid) == ("/d/a_train.txt", "/d/a_valid.txt")
    assert (tasks[1].train, tasks[1].label_turns, tasks[3].train) == ("/d/c", "both", "/d/b.txt")
    assert tasks[2].topic_split and [task.weight for task in tasks] == [2, 3, 1, 1, 1]
    assert (
        tasks[4].train == "dailydialog_train.txt"
        and "convert_data_to_parlai_format" in notes(words)["--task dailydialog"]
    )


def test_values_without_equivalent_have_a_comment():
    said = notes(BASE + "-opt adafactor --lr-scheduler invsqrt -vmt f1 -dynb batchsort -vme 100 --variant xlm")
    assert {"--optimizer adafactor", "--lr-scheduler invsqrt", "--validation-metric f1", "--variant xlm"} <= said.keys()
    assert {"--dynamic-batching batchsort", "--validation-max-exs"} <= said.keys()


@pytest.mark.parametrize(
    "words, said",
    [
        ("-t convai2", "no --model"),
        ("-m bart", "no --task"),
        ("-t convai2 -m seq2seq", "--model is 'seq2seq'"),
        (AGENT + "DistillBartAgent -t convai2", "no --teacher-model"),
        ("-t fromfile -m bart", "no --fromfile-datapath"),
        ("-t jsonfile --jsonfile-datapath x --label-turns third -m bart", "--label-turns is 'third'"),
        (BASE + "-bs 0", "batch.per_rank"),
        (BASE + "--dropout 1.5", "student.dropout"),
    ],
)
def test_commands_without_any_equivalent_are_refused(words, said):
    with pytest.raises(ParlaiError, match=said):
        recipe(words)


def test_the_text_reads_back_and_says_what_to_repair():
    translation = translated(BASE + "--delimiter '\n'")
    text = recipe_yaml(translation)
    assert 'delimiter: "\\n"' in text
    assert parse_yaml(text).data == json.loads(json.dumps(translation.recipe))
    assert "`distill check` will ask to repair this first" in text and "data.root" in text

"""benchmarks/parlai_demo.py: ParlAI gets the recipe's own numbers and dialogues, and turns are counted right."""

import sys
import time
from pathlib import Path

import parlai_demo as bench
import pytest
from runs import DEMO_RECIPE, RunFailedError
from turns import Course, Mark, Program, course, take_turns

from distill_engine.data.corpora.demo import demo_episodes
from distill_engine.data.formats.parlai_text import read_parlai_text
from distill_engine.interop.parlai.options.command_line import read_command
from distill_engine.interop.parlai.options.render import recipe_yaml
from distill_engine.interop.parlai.options.translate import translate
from distill_engine.recipe.load import load_recipe
from distill_engine.recipe.rules import check_recipe, read_recipe

TICK = 0.02  # what the system's clock of processor time counts in, and then some
WRITER = """
import sys, time
for step in range(1, 4):
    while time.process_time() < step * 0.1:
        pass
    with open(sys.argv[1], "a") as log:
        log.write(f'{{"kind": "train", "step": {step}}}\\n')
while time.process_time() < 0.5:  # so that it is there when its last line is found
    pass
if len(sys.argv) > 2:
    sys.exit("no more")
"""


def test_parlais_flags_say_what_the_recipe_says(tmp_path):
    recipe = read_recipe(DEMO_RECIPE, list(bench._COMMON))
    flags = bench.parlai_flags(recipe, tmp_path, tmp_path, seed=7)
    # our own reading of ParlAI's command line knows no local files as a task, and has a row for all the rest
    flags[flags.index("--task") + 1] = "blended_skill_talk"
    for ours in ("--fromfile-datapath", "--fromfile-datatype-extension"):
        del flags[flags.index(ours) : flags.index(ours) + 2]
    (tmp_path / "again.yaml").write_text(recipe_yaml(translate(read_command(["-bs", "1", *flags], None), "again")))
    again = load_recipe(tmp_path / "again.yaml")
    same = recipe.student.model_dump(include={"width", "ffn_width", "heads", "encoder_layers", "decoder_layers",
                                              "positions", "dropout", "attention_dropout"})  # fmt: skip
    assert again.student.model_dump(include=set(same)) == same
    terms = ("task", "encoder", "hidden", "prediction")
    assert [again.losses.weights[term] for term in terms] == [recipe.losses.weights[term] for term in terms]
    assert again.batch.per_rank == recipe.batch.per_rank == 64 and again.seed == 7
    for field in ("learning_rate", "clip_norm", "name"):
        assert getattr(again.optimizer, field) == getattr(recipe.optimizer, field)
    for field in ("delimiter", "context_tokens", "label_tokens", "history_end_token"):
        assert getattr(again.data, field) == getattr(recipe.data, field)
    assert (again.schedule.name, again.schedule.warmup_steps) == ("linear", recipe.schedule.warmup_steps)
    assert again.stop.max_steps == recipe.stop.max_steps == bench.STEPS
    assert again.validation.every_steps == recipe.validation.every_steps == bench.VALIDATE_EVERY


def test_every_row_is_a_sound_recipe():
    for row, (_, ds_config, overrides) in bench.ROWS.items():
        recipe = read_recipe(DEMO_RECIPE, [*bench._COMMON, *overrides])
        assert check_recipe(recipe) == [], row
        assert ds_config == "" or (Path(bench.ROOT) / "ds_configs" / ds_config).is_file()


def test_both_read_the_same_dialogues(tmp_path):
    file = tmp_path / "demo_valid.txt"
    file.write_text("".join(f"{line}\n" for line in bench.dialogue_lines(read_recipe(DEMO_RECIPE, []), "valid")))
    assert list(read_parlai_text(str(file))) == demo_episodes("valid", 1000, 1)


def writer(name, tmp_path, *more):
    log = tmp_path / f"{name}.jsonl"
    command = [sys.executable, "-S", "-c", WRITER, str(log), *more]
    return Program(name, command, log, lambda line: (line["kind"], line["step"], None), {}, tmp_path / f"{name}.txt")


def test_programs_take_turns_and_only_their_own_time_counts(tmp_path):
    both = [writer("one", tmp_path), writer("other", tmp_path)]
    began = time.monotonic()
    take_turns(both, 0.1)
    took = time.monotonic() - began
    for program in both:
        assert [mark.step for mark in program.marks] == [1, 2, 3]
        assert program.marks[-1].seconds >= 0.3 - TICK  # it worked so long, none of it while the other did
        assert 0.3 - TICK <= program.marks[-1].cpu_seconds <= program.marks[-1].seconds + 2 * TICK
    assert sum(program.marks[-1].seconds for program in both) <= took


def test_a_program_that_fails_ends_the_others_and_says_why(tmp_path):
    fine, broken = writer("fine", tmp_path), writer("broken", tmp_path, "fail")
    with pytest.raises(RunFailedError, match=r"broken ended with code 1\nno more"):
        take_turns([broken, fine], 0.2)
    assert fine._process.poll() is not None


def test_a_course_of_steps_and_validations():
    marks = [
        Mark("train", 10, None, 7.0, 70.0),  # 5 s of start, then 0.2 s a step
        Mark("train", 20, None, 9.0, 90.0),
        Mark("valid", 20, 4.0, 12.0, 120.0),
        Mark("train", 30, None, 15.0, 150.0),  # holds what came after the validation: no piece of its own
        Mark("train", 40, None, 17.0, 170.0),
        Mark("valid", 40, 1.0, 20.0, 200.0),
    ]
    found = course(marks, "seconds")
    assert found.per_step == pytest.approx(0.2)
    assert found.reached == {20: (4.0, pytest.approx(7.0)), 40: (1.0, pytest.approx(15.0))}
    assert course(marks, "cpu_seconds").reached[40] == (1.0, pytest.approx(150.0))
    assert found.time_to(4.5) == found.time_to(4.0) == pytest.approx(7.0)
    assert found.time_to(2.0) == pytest.approx(11.0)  # half of the way from log 4 to log 1
    assert found.time_to(0.9) is None
    with pytest.raises(ValueError, match="1 lines of training"):
        course(marks[:1], "seconds")


def test_rows_are_compared_with_parlais_third_validation():
    theirs = Course(0.2, {100: (1.6, 20.0), 200: (1.5, 40.0), 300: (1.4, 60.0)})
    ours = Course(0.1, {100: (1.5, 15.0), 200: (1.4, 30.0)})
    goal = bench.ParlAIs.of(theirs, theirs)
    assert bench.measured(ours, theirs, goal) == {
        "valid_ppl": {"100": 1.5, "200": 1.4}, "seconds_per_step": 0.1, "cpu_seconds_per_step": 0.2,
        "seconds_to_third": 30.0, "cpu_seconds_to_third": 60.0, "share_of_parlai": 0.5, "cpu_share_of_parlai": 1.0,
    }  # fmt: skip
    assert bench.ParlAIs.of(ours, ours) is None and "share_of_parlai" not in bench.measured(ours, ours, None)
    assert bench.summarised([{"a": 1, "b": {"c": 2}, "d": None}, {"a": 3, "b": {"c": 4}, "d": 1}]) == {
        "a": 2, "b": {"c": 3}, "d": None,
    }  # fmt: skip

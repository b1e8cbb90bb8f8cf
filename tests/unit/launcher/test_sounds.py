"""Plans of students that hear: a context is a window of sound, however many tokens texts may have."""

from dataclasses import replace

import pytest
import tiny_speaker
import yaml
from tones import FRAMES, tones

from distill_engine.families.lookup import family_named
from launcher.hardware import GPUS
from launcher.job_files import read_job
from launcher.memory_model import memory
from launcher.plan import USABLE_MEMORY, fits
from launcher.remedies import remedies

GPU = GPUS["h100"]
LABELS, MULTIPLE = 24, 8


@pytest.fixture
def recipe(tmp_path):
    """A recipe for tones, with a teacher of which a plan reads the configuration alone."""
    data = {split: str(tones(tmp_path, rows, f"{split}.jsonl")) for split, rows in (("train", 5), ("valid", 3))}
    content = {
        "name": "speech",
        "teacher": {"path": str(tiny_speaker.save(tmp_path / "teacher"))},
        "student": {"decoder_layers": 1},
        "data": {"tasks": [{"kind": "speech", **data}], "label_tokens": LABELS},
        "batch": {"per_rank": 2, "pad_to_multiple_of": MULTIPLE},
        "optimizer": {"name": "adamw", "learning_rate": 1e-3},
        "validation": {"patience": None},
        "stop": {"max_steps": 2},
    }
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


@pytest.fixture
def job(recipe, root):
    def make(*overrides: str):
        files = root / "ds_configs" / "zero2.json", root / "ds_configs" / "teacher_zero3.json"
        return read_job(recipe, list(overrides), 1, 1, *files, GPU)

    return make


def test_a_budget_counts_windows_of_sound_and_its_remedy_is_a_recipe(job):
    window, skips = FRAMES // 2, family_named("whisper").decoder_skips
    example = -(-window // MULTIPLE) * MULTIPLE + LABELS + skips
    assert window % MULTIPLE and job().example_length == example
    rows = 64
    # no budget need hold a thousand tokens that nobody reads
    planned, half = (job(f"batch.max_tokens={n * example}", "data.context_tokens=1000") for n in (rows, rows // 2))
    assert (planned.micro_batch, planned.contexts, half.micro_batch) == (rows, rows * window, rows // 2)
    small = replace(GPU, memory=sum(sum(memory(one).values()) for one in (planned, half)) / 2 / USABLE_MEMORY)
    text = remedies(planned, small)[0]
    assert text.startswith("batch.max_tokens: ")
    tokens, accumulation = (int(part.split(": ")[1]) for part in text.split(", "))
    remedied = job(f"batch.max_tokens={tokens}", f"batch.accumulation_steps={accumulation}")
    assert rows // 2 <= remedied.micro_batch < rows and fits(remedied, small)
    assert job(f"batch.max_tokens={example}").micro_batch == 1, "the least that a remedy names is a recipe"

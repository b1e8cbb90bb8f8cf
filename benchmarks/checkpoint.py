"""How long training is held up by a checkpoint: written while it waits, and written in the background.

    python benchmarks/checkpoint.py [--repeats N] [--folder DIR] [--json FILE]

A random Blenderbot student of about 50 million parameters in the product's own engine (ZeRO-2, AdamW, one rank), its
checkpoints in DIR (default: a temporary folder), alternately in both ways, a step of training between them. Prints one
JSON object; benchmarks/README.md explains its fields.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from transformers import BlenderbotConfig, BlenderbotForConditionalGeneration  # noqa: E402

from distill_engine.checkpoint.checkpoints import Checkpoints  # noqa: E402
from distill_engine.checkpoint.parts import RngPart  # noqa: E402
from distill_engine.checkpoint.retention import Retention  # noqa: E402
from distill_engine.engine import distributed  # noqa: E402
from distill_engine.engine.config import OptimizerSection  # noqa: E402
from distill_engine.engine.ds_config import load_ds_config, student_config  # noqa: E402
from distill_engine.engine.student import CHECKPOINT_CLASSES, StudentEngine  # noqa: E402
from distill_engine.models.adapter import adapt  # noqa: E402
from distill_engine.student.projections import StudentModule  # noqa: E402
from distill_engine.telemetry.machine import machine_record  # noqa: E402

VOCABULARY, WIDTH, INNER, LAYERS, HEADS = 8008, 640, 2560, (2, 5), 16
TOKENS = (4, 32)  # of the step between two checkpoints: batch, length


def student(ranks: distributed.Ranks) -> StudentEngine:
    """An engine with random weights, whose optimizer has all its state."""
    config = BlenderbotConfig(
        vocab_size=VOCABULARY, d_model=WIDTH, encoder_layers=LAYERS[0], decoder_layers=LAYERS[1],
        encoder_ffn_dim=INNER, decoder_ffn_dim=INNER, encoder_attention_heads=HEADS, decoder_attention_heads=HEADS,
        max_position_embeddings=128,
    )  # fmt: skip
    torch.manual_seed(0)
    ds_config, _ = student_config(
        load_ds_config(ROOT / "ds_configs" / "zero2_fp32.json"), batch_per_rank=TOKENS[0], accumulation_steps=1,
        world_size=ranks.world_size, clip_norm=1.0, fp16_supported=False, bf16_supported=True,
    )  # fmt: skip
    module = StudentModule(adapt(BlenderbotForConditionalGeneration(config)), None)
    return StudentEngine(module, ds_config, OptimizerSection(name="adamw", learning_rate=1e-5))


def step(engine: StudentEngine) -> float:
    """One optimizer step over random tokens; its seconds."""
    started = time.perf_counter()
    ids = torch.randint(5, VOCABULARY, TOKENS)
    outputs = engine.module.model(input_ids=ids, labels=ids)
    engine.backward(outputs.loss)
    engine.step(1e-5)
    return time.perf_counter() - started


def waited(checkpoints: Checkpoints, engine: StudentEngine, number: int) -> dict[str, float]:
    """Seconds that a checkpoint takes while training waits for it."""
    started = time.perf_counter()
    assert checkpoints.save(number, {"student": engine, "rng": RngPart(0)})
    return {"held_up": time.perf_counter() - started, "step": step(engine)}


def background(checkpoints: Checkpoints, engine: StudentEngine, number: int) -> dict[str, float]:
    """Seconds that training stands still for the copy and at the end, and until the checkpoint counts."""
    started = time.perf_counter()
    assert checkpoints.begin(number, {"student": engine, "rng": RngPart(0)})
    held_up = time.perf_counter() - started
    steps = []
    done: bool | None = None
    while done is None:
        steps.append(step(engine))
        looked = time.perf_counter()
        done = checkpoints.finish(wait=False)
        held_up += time.perf_counter() - looked
    assert done
    return {"held_up": held_up, "step": statistics.mean(steps), "complete_after": time.perf_counter() - started}


def measure(folder: Path, repeats: int) -> dict[str, Any]:
    """Both ways in turn, so that whatever else the machine does hits both alike."""
    ranks = distributed.start()
    engine = student(ranks)
    checkpoints = Checkpoints(folder, ranks, identity={}, keep=Retention(1), allowed_globals=CHECKPOINT_CLASSES)
    for _ in range(2):
        step(engine)
    waited(checkpoints, engine, 1)  # the first one pays for what all later ones find ready
    rounds: dict[str, list[dict[str, float]]] = {"waited": [], "background": []}
    for repeat in range(repeats):
        rounds["waited"].append(waited(checkpoints, engine, 2 + 2 * repeat))
        rounds["background"].append(background(checkpoints, engine, 3 + 2 * repeat))
    info = checkpoints.latest_complete()
    assert info is not None and info.step == 1 + 2 * repeats
    return {
        "parameters": engine.parameter_count(),
        "checkpoint_bytes": info.bytes,
        "repeats": repeats,
        "seconds_between": [step(engine) for _ in range(3)],
        **{way: _summary(found) for way, found in rounds.items()},
    }


def _summary(found: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    return {
        name: {"median": statistics.median(values), "least": min(values), "most": max(values)}
        for name in found[0]
        if (values := [one[name] for one in found])
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="checkpoints of each kind")
    parser.add_argument("--folder", type=Path, default=None, help="where they are written: the disk that is measured")
    parser.add_argument("--json", type=Path, default=None, help="also write the result there")
    given = parser.parse_args()
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        found = measure(Path(folder), given.repeats) | {"machine": machine_record()}
    distributed.stop()
    text = json.dumps(found, indent=1)
    if given.json is not None:
        given.json.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()

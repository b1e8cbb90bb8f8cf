"""One student by every program that runs it: PyTorch, ONNX Runtime and CTranslate2, each also in int8.

    python benchmarks/backends.py [--student runs/demo/best] [--rounds 20] [--json FILE]

Two models: a student of the demo, whose replies to validation prompts show what int8 changes, and one of a Marian
model's shape (6 encoder and 2 decoder layers of 512) with random weights, where speed shows; of that one equal replies
say nothing about a trained model. What is timed is what `distill latency --backends` times: every round times every
backend, one after the other, greedily, a fixed number of tokens, one context at a time. Needs the extras onnx and
ctranslate2, and the run of `make demo`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoConfig, AutoModelForSeq2SeqLM, GenerationConfig, PreTrainedTokenizerFast

from distill_engine.commands.backends import WARM_UP, opened
from distill_engine.commands.backends import measured as by_programs
from distill_engine.evaluate.agreement import Prompts, random_prompts, validation_prompts
from distill_engine.evaluate.compare import prepared, split_datasets
from distill_engine.telemetry.machine import machine_record

ROOT = Path(__file__).resolve().parents[1]
NEW_TOKENS, PROMPTS = 32, 64
BACKENDS = ("torch", "torch-int8", "onnx", "onnx-int8", "ctranslate2", "ctranslate2-int8")


def of_shape(folder: Path, words: int, width: int = 512, layers: tuple[int, int] = (6, 2)) -> Path:
    """A random model as big as an OPUS-MT student of that depth, with a tokenizer of as many words."""
    pad, end = words - 1, 0
    sizes = {"d_model": width, "encoder_ffn_dim": 4 * width, "decoder_ffn_dim": 4 * width}
    config = AutoConfig.for_model(
        "marian", vocab_size=words, encoder_layers=layers[0], decoder_layers=layers[1], encoder_attention_heads=8,
        decoder_attention_heads=8, max_position_embeddings=512, pad_token_id=pad, eos_token_id=end, bos_token_id=None,
        decoder_start_token_id=pad, activation_function="swish", scale_embedding=True, **sizes,
    )  # fmt: skip
    torch.manual_seed(0)
    model: Any = AutoModelForSeq2SeqLM.from_config(config)
    with torch.no_grad():
        model.get_input_embeddings().weight[pad] = 0  # as published ones have it
    model.generation_config = GenerationConfig(
        pad_token_id=pad, eos_token_id=end, decoder_start_token_id=pad, max_length=64, suppress_tokens=[pad]
    )
    model.save_pretrained(folder)
    vocabulary = {"</s>": end, "<unk>": 1, "<pad>": pad} | {f"w{number}": number for number in range(2, pad)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return folder


def measured(name: str, student: Path, prompts: Prompts, rounds: int) -> list[dict[str, Any]]:
    """One row per backend."""
    with tempfile.TemporaryDirectory() as folder:
        programs = opened(str(student), BACKENDS, Path(folder), prompts)
        found = by_programs(str(student), programs, prompts, rounds, NEW_TOKENS)
    for row in found:
        print(f"{name:28} {row.backend:17} {row.tokens_per_second:8.1f} tokens/s {row.ms_per_reply:8.2f} ms/reply "
              f"{row.mib_on_disk:8.2f} MiB {row.agreement:7.1%} equal", flush=True)  # fmt: skip
    return [{**asdict(row), "model": name} for row in found]


def main() -> None:
    """Measure, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default="runs/demo/best", help="a student of recipes/demo.yaml")
    parser.add_argument("--rounds", type=int, default=20, help="timings of each backend")
    parser.add_argument("--words", type=int, default=32_000, help="vocabulary of the random model")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "backends_cpu.json")
    asked = parser.parse_args()
    student = Path(asked.student)
    if not (student / "config.json").is_file():
        parser.error(f"--student {student}: no model is there. `make demo` makes runs/demo/best.")
    ready = prepared([str(student)], ROOT / "recipes" / "demo.yaml", ())
    dataset = next(iter(split_datasets(ready, "valid").values()))
    prompts = validation_prompts(dataset, ready.tokenizer, PROMPTS)
    rows = measured("demo student", student, prompts, asked.rounds)
    with tempfile.TemporaryDirectory() as folder:
        published = of_shape(Path(folder) / "student", asked.words)
        rows += measured("random (6+2, 512 wide)", published, random_prompts(asked.words - 1, 16, 24), asked.rounds)
    protocol = {
        "new_tokens": NEW_TOKENS, "rounds": asked.rounds, "warm_up": WARM_UP, "batch": 1, "beams": 1,
        "threads": torch.get_num_threads(), "prompts": {"demo student": PROMPTS, "random (6+2, 512 wide)": 16},
        "order": "every round times every backend, one after the other",
    }  # fmt: skip
    libraries = {name: version(name) for name in ("torch", "transformers", "onnx", "onnxruntime", "ctranslate2")}
    whole = {"machine": machine_record(), "libraries": libraries, "protocol": protocol, "rows": rows}
    asked.json.write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

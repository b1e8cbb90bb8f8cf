"""One student by every program that runs it: PyTorch, ONNX Runtime and CTranslate2, each also in int8.

    python benchmarks/backends.py [--rounds 10] [--json benchmarks/results/backends_cpu.json]

Two models: the demo's teacher, whose replies to validation prompts show what int8 changes, and one of a Marian model's
shape (6 encoder and 2 decoder layers of 512) with random weights, where speed shows. Every round times every backend,
one after the other, greedily, a fixed number of tokens, one context at a time. Needs the extras onnx and ctranslate2.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSeq2SeqLM, GenerationConfig, PreTrainedTokenizerFast

from distill_engine.data.tokens.tokenize import load_tokenizer
from distill_engine.evaluate.agreement import agreement
from distill_engine.evaluate.compare import contexts_of, prepared, split_datasets
from distill_engine.evaluate.generate import decoded
from distill_engine.evaluate.latency import measure
from distill_engine.evaluate.latency_rows import Case
from distill_engine.evaluate.measure import load_model
from distill_engine.export.convert import converted
from distill_engine.export.protocol import files_mib
from distill_engine.telemetry.machine import machine_record

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "recipes" / "demo" / "teacher"
NEW_TOKENS, WARM_UP, PROMPTS = 32, 2, 64
EXPORTS = {"onnx": None, "onnx-int8": "int8", "ctranslate2": None, "ctranslate2-int8": "int8"}


def int8_twin(model: Any) -> Any:
    """The same model with int8 weights in its linear layers; activations are quantised while it runs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is on its way out of PyTorch, into torchao
        return torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)


def backends(student: Path, folder: Path) -> Iterator[tuple[str, Any, float]]:
    """(name, what generates, MiB on disk) of each."""
    model = load_model(student, torch.device("cpu"))
    yield "torch", model, files_mib(student, "*.safetensors")
    small, written = int8_twin(model), io.BytesIO()
    torch.save(small.state_dict(), written)
    yield "torch-int8", small, written.getbuffer().nbytes / 2**20
    for name, quantize in EXPORTS.items():
        made: Any = converted(student, name.removesuffix("-int8"), quantize, folder / name)
        yield name, made, made.mib_on_disk


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


def measured(name: str, student: Path, contexts: list[Tensor], golds: list[str], rounds: int) -> list[dict[str, Any]]:
    """One row per backend."""
    with tempfile.TemporaryDirectory() as folder:
        found = list(backends(student, Path(folder)))
        models = {backend: model for backend, model, _ in found}
        case = Case("fixed")
        timings = measure(models, [case], contexts, rounds, WARM_UP, NEW_TOKENS)
        tokenizer, rows = load_tokenizer(str(student)), []
        for backend, model, mib in found:
            alike = agreement(models["torch"], model, tokenizer, contexts, golds, NEW_TOKENS)
            seconds = sorted(one.seconds for one in timings[backend, case])
            median = seconds[len(seconds) // 2]
            quality = {metric: pair[1] for metric, pair in alike.metrics.items()}
            rows.append({
                "model": name, "backend": backend, "tokens_per_second": round(NEW_TOKENS / median, 1),
                "ms_per_reply": round(1000 * median, 2), "ms_p20": round(1000 * seconds[len(seconds) // 5], 2),
                "ms_p80": round(1000 * seconds[4 * len(seconds) // 5], 2), "agreement": alike.share,
                "mib_on_disk": round(mib, 2), "quality": quality,
            })  # fmt: skip
            print(json.dumps({key: value for key, value in rows[-1].items() if key != "quality"}), flush=True)
        return rows


def main() -> None:
    """Measure, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10, help="timings of each backend")
    parser.add_argument("--words", type=int, default=32_000, help="vocabulary of the random model")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "backends_cpu.json")
    asked = parser.parse_args()
    recipe = ROOT / "recipes" / "demo.yaml"
    dataset = next(iter(split_datasets(prepared([str(DEMO)], recipe, ()), "valid").values()))
    contexts = contexts_of(dataset, torch.device("cpu"), PROMPTS)
    stride = max(1, len(dataset) // len(contexts))
    tokenizer = load_tokenizer(str(DEMO))
    golds = [decoded(tokenizer, dataset.example(n * stride).label_ids.tolist()) for n in range(len(contexts))]
    rows = measured("demo teacher (2+6, 96 wide)", DEMO, contexts, golds, asked.rounds)
    draw = torch.Generator().manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        student = of_shape(Path(folder) / "student", asked.words)
        random = [torch.randint(2, asked.words - 1, (1, 24), generator=draw) for _ in range(16)]
        rows += measured("random (6+2, 512 wide)", student, random, [], asked.rounds)
    protocol = {"new_tokens": NEW_TOKENS, "rounds": asked.rounds, "warm_up": WARM_UP, "batch": 1, "beams": 1,
                "threads": torch.get_num_threads(), "prompts": PROMPTS}  # fmt: skip
    whole = {"machine": machine_record(), "protocol": protocol, "rows": rows}
    asked.json.write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""`make g2p`: distillation on real data, CMUdict's spelling to pronunciation (recipes/g2p).

    python benchmarks/g2p.py                                   # the teacher, and one student distilled from it
    python benchmarks/g2p.py --arms distilled shrink_and_finetune from_scratch --seeds 3 \\
        --out benchmarks/results/g2p.json

Every model answers every held-out test word, greedily and with 4 beams; a word is right if any of its pronunciations is
met. Runs are kept in runs/g2p and not repeated: what was broken off goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from runs import ROOT, RunFailedError, complete, start_run, this_machine

sys.path.insert(0, str(ROOT / "recipes" / "g2p"))
from g2p_data import references_of, write_data
from g2p_scoring import Score, score

from distill_engine.evaluate.compare import compare
from distill_engine.evaluate.generate import own_settings, replies
from distill_engine.evaluate.measure import load_model
from distill_engine.telemetry.machine import machine_record
from distill_engine.telemetry.quiet import quiet_libraries
from distill_engine.values import Tokens

RECIPE = ROOT / "recipes" / "g2p" / "student.yaml"
TEACHER = ROOT / "recipes" / "g2p" / "teacher"
DATA = ROOT / "runs" / "g2p" / "data"
_TERMS = ("encoder", "embedding", "hidden", "self_attention", "cross_attention", "prediction")
_TASK_ALONE = (*(f"losses.weights.{term}=0" for term in _TERMS), "losses.feature_steps=null")
_FEATURES = [f"losses.weights.{term}=0" for term in _TERMS if term != "prediction"]
_NO_TEACHER = ("teacher.path=null", "student.init=random", "data.tokenizer=recipes/g2p/tokenizer")
ARMS = {
    "distilled": (),
    "shrink_and_finetune": _TASK_ALONE,
    "from_scratch": (*_TASK_ALONE, *_NO_TEACHER),
    "features_to_the_end": ("losses.feature_steps=null",),
    "prediction_alone": (*_FEATURES, "losses.feature_steps=null"),
}
BEAMS = (1, 4)
_WORDS_AT_A_TIME = 256
_SAMPLE = 300


def main() -> int:
    """Train what is missing, evaluate, print; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="*", choices=tuple(ARMS), default=["distilled"], help="students to train")
    parser.add_argument("--seeds", type=int, default=1, help="seeds 1 to N of each")
    parser.add_argument("--words", type=int, default=None, help="score about N test words only")
    parser.add_argument("--ds-config", type=Path, default=None, help="DeepSpeed JSON (default: fp32 on a CPU)")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="a.b=value",
                        help="change one value of the recipe in all runs")  # fmt: skip
    parser.add_argument("--out", type=Path, default=None, help="write the result as JSON")
    given = parser.parse_args()
    quiet_libraries(0)
    if not (DATA / "test.txt").is_file():
        write_data(DATA)
    if not TEACHER.is_dir():
        sys.stderr.write(f"there is no {TEACHER}: recipes/g2p/README.md says how it is trained.\n")
        return 1
    folders = {"teacher": [TEACHER]} | {arm: [] for arm in given.arms}
    try:
        for seed in range(1, given.seeds + 1):
            for arm in given.arms:
                folders[arm].append(trained(arm, seed, given.overrides, given.ds_config))
    except RunFailedError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    result = summarise(folders, given.words) | {"overrides": given.overrides, "machine": machine_record()}
    if given.out is not None:
        given.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    show(result)
    return 0


def trained(arm: str, seed: int, overrides: Sequence[str], ds_config: Path | None) -> Path:
    """The best student of a run that has ended; raises RunFailedError."""
    machine, folder = this_machine(1, ds_config), ROOT / "runs" / "g2p" / f"{arm}-{seed}"
    own = [*ARMS[arm], f"seed={seed}", f"name=g2p-{arm.replace('_', '-')}-{seed}", *overrides]
    if not complete(folder, own, RECIPE):
        start_run(folder, machine, own, recipe=RECIPE)
    return folder / "best"


def summarise(folders: Mapping[str, Sequence[Path]], words: int | None) -> dict[str, Any]:
    """Means and spreads (largest minus smallest) over the seeds of each kind of model; rates in percent."""
    rows = {name: [evaluated(folder, words) for folder in of_name] for name, of_name in folders.items()}
    sample = scored(load_model(TEACHER, device()), TEACHER, _SAMPLE, 1)
    first = {name: str(of_name[0]) for name, of_name in folders.items()}
    compared = compare(list(first.values()), RECIPE, [], str(TEACHER), with_latency=True)
    means: dict[str, dict[str, float]] = {}
    for value in ("wer", "per", "wer_4_beams", "per_4_beams", "valid_ppl"):
        found = {name: [row[value] for row in of_name] for name, of_name in rows.items()}
        means[f"{value}_mean"] = {name: statistics.mean(values) for name, values in found.items()}
        means[f"{value}_spread"] = {name: max(values) - min(values) for name, values in found.items()}
    return {
        "seeds": {name: len(of_name) for name, of_name in folders.items()},
        "test_words": len(test_words(words)),
        **means,
        "parameters": {name: compared[folder]["parameters"] for name, folder in first.items()},
        "ms_per_word": {name: compared[folder]["ms_per_reply"] for name, folder in first.items()},
        "per_seed": rows,
        "teacher_sample": {"words": _SAMPLE, "wer": 100 * sample.wer},  # what a test repeats
    }


def device() -> torch.device:
    """The first GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def scored(model: Any, folder: Path, words: int | None, beams: int) -> Score:
    """The score of a model on about so many test words; None: all."""
    right = test_words(words)
    return score(pronounced(model, folder, list(right), beams), right)


def evaluated(folder: Path, words: int | None) -> dict[str, float]:
    """WER and PER in percent with every number of BEAMS, and the perplexity of validation."""
    model = load_model(folder, device())
    values = {"valid_ppl": compare([str(folder)], RECIPE, [], None, with_latency=False)[str(folder)]["ppl"]}
    for beams in BEAMS:
        found = scored(model, folder, words, beams)
        suffix = "" if beams == 1 else f"_{beams}_beams"
        values |= {f"wer{suffix}": 100 * found.wer, f"per{suffix}": 100 * found.per}
    return values


def test_words(count: int | None) -> dict[str, tuple[str, ...]]:
    """About `count` held-out words, evenly spread over the dictionary, with all their pronunciations; None: all."""
    everything = list(references_of(DATA / "test.txt").items())
    return dict(everything[:: max(1, len(everything) // (count or len(everything)))])


def pronounced(model: Any, folder: Path, words: Sequence[str], beams: int) -> dict[str, str]:
    """What a model says for each word, by greedy decoding (`beams` 1) or beam search."""
    from distill_engine.data.tokens.tokenize import load_tokenizer

    tokenizer: Any = load_tokenizer(str(folder))
    settings = own_settings(model, 39, {"num_beams": beams, "do_sample": False})
    said: dict[str, str] = {}
    for batch in _batches(words):
        texts = [" ".join(word) + f" {tokenizer.eos_token}" for word in batch]
        ids = tokenizer(texts, add_special_tokens=False, return_tensors="pt").to(model.device)
        answers = replies(model, tokenizer, Tokens(ids["input_ids"], ids["attention_mask"]), settings)
        said |= {word: answer.text for word, answer in zip(batch, answers, strict=True)}
    return said


def _batches(words: Sequence[str]) -> Iterator[list[str]]:
    """Words of one length at a time: no padding."""
    by_length: dict[int, list[str]] = {}
    for word in words:
        by_length.setdefault(len(word), []).append(word)
    for same in by_length.values():
        for start in range(0, len(same), _WORDS_AT_A_TIME):
            yield same[start : start + _WORDS_AT_A_TIME]


def show(result: Mapping[str, Any]) -> None:
    """The table."""
    table = Table(title=f"CMUdict: {result['test_words']:,} held-out words, any pronunciation counts")
    headers = ("", "seeds", "parameters", "valid ppl", "WER %", "PER %", "WER %, 4 beams", "ms per word")
    for header in headers:
        table.add_column(header, justify="left" if header == "" else "right")
    for name, seeds in result["seeds"].items():
        table.add_row(
            name.replace("_", " "),
            str(seeds),
            f"{result['parameters'][name]:,.0f}",
            f"{result['valid_ppl_mean'][name]:.3f}",
            f"{result['wer_mean'][name]:.2f} ± {result['wer_spread'][name] / 2:.2f}",
            f"{result['per_mean'][name]:.2f}",
            f"{result['wer_4_beams_mean'][name]:.2f}",
            f"{result['ms_per_word'][name]:.1f}",
        )
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())

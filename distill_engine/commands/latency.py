"""`distill latency`: how long several models take to reply, under one protocol."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from distill_engine.commands.backends import judged, opened, print_backends, rows_of
from distill_engine.commands.evaluate import JsonOption, ModelsArgument
from distill_engine.commands.latency_tables import show
from distill_engine.commands.terminal import SetOption, refuse

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from distill_engine.evaluate.agreement import Prompts
    from distill_engine.evaluate.latency_rows import Case, LatencyRow
    from distill_engine.values import Audio

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_CONTEXTS = 64


def latency(
    models: ModelsArgument,
    recipe: Annotated[
        Path | None,
        typer.Option("--recipe", help="Recipe whose contexts are answered; default: a run folder's, else random."),
    ] = None,
    overrides: SetOption = [],  # noqa: B006  typer copies it
    modes: Annotated[str, typer.Option("--modes", help="fixed: --new-tokens each; free: as the model likes.")] = (
        "fixed,free"
    ),
    beams: Annotated[str, typer.Option("--beams", help="Beam sizes, 1 is greedy.")] = "1,4,10",
    batches: Annotated[str, typer.Option("--batches", help="Contexts answered at a time.")] = "1,8,32",
    dtypes: Annotated[str, typer.Option("--dtypes", help="fp32, bf16, fp16; those that the device supports.")] = (
        "fp32"
    ),
    attention: Annotated[str, typer.Option("--attention", help="transformers' attention: sdpa, eager.")] = "sdpa",
    kv_cache: Annotated[bool, typer.Option("--kv-cache/--no-kv-cache", help="Cache keys and values.")] = True,
    compiled: Annotated[bool, typer.Option("--compile", help="Time each case with torch.compile, too.")] = False,
    backends: Annotated[
        str,
        typer.Option("--backends", help="Programs: torch, torch-int8, onnx, onnx-int8, ctranslate2, ctranslate2-int8."),
    ] = "torch",
    new_tokens: Annotated[int, typer.Option(min=2, help="Tokens of a reply in fixed cases.")] = 32,
    rounds: Annotated[int, typer.Option(min=1, help="Timings of each case.")] = 10,
    warm_up: Annotated[int, typer.Option(min=0, help="Rounds before them that do not count.")] = 2,
    context_tokens: Annotated[int, typer.Option(min=1, help="Length of random contexts.")] = 64,
    json_file: JsonOption = None,
) -> None:
    """Milliseconds per reply, tokens per second and memory of several models, in one interleaved run."""
    try:
        chosen = case_list(modes, beams, batches, kv_cache, compiled)
        names = _words("--dtypes", dtypes, tuple(DTYPES)), _words("--attention", attention, ("sdpa", "eager"))
        programs = _backends(backends, *names, kv_cache, compiled)
        record = _record(new_tokens, rounds, warm_up)
        found: list[LatencyRow] = []
        asked = _Asked(models, recipe, overrides, chosen, context_tokens, rounds, warm_up, new_tokens, programs)
        with TemporaryDirectory() as folder:
            for dtype in names[0]:
                for kind in names[1]:
                    found += _group(asked, dtype, kind, record, Path(folder))
    except (ValueError, OSError) as error:
        refuse(error)
    show(found, record["notes"])
    compared, metrics = record.pop("compared", ([], []))
    if compared:
        print_backends(compared, metrics)
        record["backends"] = [asdict(row) for row in compared]
    if json_file is not None:
        whole = {**record, "rows": [asdict(row) for row in found]}
        json_file.write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class _Asked:
    """What one call times, and where contexts come from."""

    models: list[str]
    recipe: Path | None
    overrides: list[str]
    cases: list[Case]
    context_tokens: int
    rounds: int
    warm_up: int
    new_tokens: int
    backends: list[str]


def _backends(given: str, dtypes: list[str], attentions: list[str], kv_cache: bool, compiled: bool) -> list[str]:
    """The programs; raises ValueError for what those beside PyTorch do not have."""
    from distill_engine.export.backends import TORCH, chosen_backends

    chosen = chosen_backends(given)
    others = [name for name in chosen if name != TORCH]
    asked = {
        f"--dtypes {','.join(dtypes)}": dtypes != ["fp32"],
        f"--attention {','.join(attentions)}": attentions != ["sdpa"],
        "--no-kv-cache": not kv_cache,
        "--compile": compiled,
    }
    wrong = [option for option, given in asked.items() if given]
    if others and wrong:
        raise ValueError(
            f"{', '.join(wrong)}: options of PyTorch, which {', '.join(others)} (--backends) do not have. Leave them "
            "out, or --backends; a backend's name says its precision."
        )
    return chosen


def _group(asked: _Asked, dtype: str, attention: str, record: dict[str, Any], folder: Path) -> list[LatencyRow]:
    """All cases of all models in one precision and attention; a precision the device lacks gives a note."""
    import torch

    from distill_engine.evaluate.compare import model_folder, own_device
    from distill_engine.evaluate.generate import notes_on
    from distill_engine.evaluate.latency import measure, unsupported
    from distill_engine.evaluate.latency_rows import rows
    from distill_engine.evaluate.measure import load_model
    from distill_engine.families.lookup import family_of

    device, kind = own_device(), getattr(torch, DTYPES[dtype])
    reason = unsupported(device, kind)
    if reason is not None:
        record["notes"].append(f"{dtype} is left out: {reason}")
        return []
    loaded = {name: load_model(model_folder(name), device, kind) for name in asked.models}
    for model in loaded.values():
        model.set_attn_implementation(attention)
    notes = [f"{name}: {note}" for name, model in loaded.items() for note in notes_on(model, asked.new_tokens)]
    record["notes"] += [note for note in notes if note not in record["notes"]]
    if asked.backends == ["torch"]:
        contexts, record["contexts"] = _contexts(asked, loaded, device)
        with progress_bar(f"{dtype} {attention}") as advance:
            amounts = asked.rounds, asked.warm_up, asked.new_tokens
            return rows(loaded, measure(loaded, asked.cases, contexts, *amounts, advance))
    if any(family_of(model.config).inputs != "tokens" for model in loaded.values()):
        raise ValueError("--backends: programs beside PyTorch are timed on models that read texts. Leave it out.")
    prompts, metrics = _prompts(asked, loaded)
    record["contexts"] = prompts.source
    loaded.clear()  # each program opens its own
    return _by_programs(asked, prompts, metrics, record, folder)


def _contexts(asked: _Asked, loaded: dict[str, Any], device: torch.device) -> tuple[list[Tensor | Audio], str]:
    """Contexts of the recipe's validation data, or random ones that all models' vocabularies hold; and which."""
    import torch

    from distill_engine.evaluate.compare import CompareError, contexts_of, prepared, split_datasets

    try:
        datasets = split_datasets(prepared(asked.models, asked.recipe, asked.overrides), "valid")
        return contexts_of(next(iter(datasets.values())), device, _CONTEXTS), "validation"
    except CompareError:
        if asked.recipe is not None:
            raise
    from distill_engine.evaluate.agreement import random_prompts
    from distill_engine.families.lookup import shape_of

    windows = {shape_of(model.config).window for model in loaded.values()}
    if (window := next(iter(windows))) is not None:
        from distill_engine.values import Audio as Sound

        if len(windows) > 1:
            raise CompareError("some of the models read other windows of sound than others, or text. Time them apart.")
        heard = torch.ones(1, window.positions, dtype=torch.long, device=device)
        noise = torch.randn(_CONTEXTS, 1, window.channels, window.frames,
                            generator=torch.Generator().manual_seed(0)).to(device)  # fmt: skip
        return [Sound(one, heard) for one in noise], "random windows of sound"
    words = min(shape_of(model.config).vocab for model in loaded.values())
    longest = min(shape_of(model.config).longest for model in loaded.values())
    length = min(asked.context_tokens, longest)
    prompts = random_prompts(words, _CONTEXTS, length)
    return [one.to(device) for one in prompts.contexts], f"random tokens, {length} each"


def _by_programs(
    asked: _Asked, prompts: Prompts, metrics: list[str], record: dict[str, Any], folder: Path
) -> list[LatencyRow]:
    """All cases of all models in all programs; what they are worth beside PyTorch is left in the record."""
    from distill_engine.evaluate.backend_rows import HEADLINE
    from distill_engine.evaluate.latency import measure
    from distill_engine.evaluate.latency_rows import Variant, rows

    programs = {
        name: opened(name, asked.backends, folder / str(number), prompts) for number, name in enumerate(asked.models)
    }
    variants = {
        f"{name} ({one.backend})": Variant(name, one)
        for name, found in programs.items()
        for one in found
        if one.backend in asked.backends
    }
    timed = {key: variant.program.model for key, variant in variants.items()}
    cases = asked.cases if HEADLINE in asked.cases else [HEADLINE, *asked.cases]
    with progress_bar("backends") as advance:
        timings = measure(timed, cases, prompts.contexts, asked.rounds, asked.warm_up, asked.new_tokens, advance)
    compared = []
    for name, found in programs.items():
        of_model = {
            one.backend: timings[f"{name} ({one.backend})", HEADLINE] for one in found if one.backend in asked.backends
        }
        compared += rows_of(name, found, of_model, prompts, asked.new_tokens)
    record["compared"] = compared, metrics or list(compared[0].quality)[:2]
    wanted = {key: measured for key, measured in timings.items() if key[1] in asked.cases}
    return rows({name: found[0].model for name, found in programs.items()}, wanted, variants)


def _prompts(asked: _Asked, loaded: dict[str, Any]) -> tuple[Prompts, list[str]]:
    """The recipe's validation data with right answers, or random contexts; and by what such data is judged."""
    import torch

    from distill_engine.evaluate.agreement import Prompts, validation_prompts
    from distill_engine.evaluate.compare import CompareError, prepared, split_datasets

    try:
        ready = prepared(asked.models, asked.recipe, asked.overrides)
        dataset = next(iter(split_datasets(ready, "valid").values()))
        return validation_prompts(dataset, ready.tokenizer, _CONTEXTS), judged(ready)
    except CompareError:
        if asked.recipe is not None:
            raise
    contexts, source = _contexts(asked, loaded, torch.device("cpu"))
    return Prompts([one for one in contexts if isinstance(one, torch.Tensor)], [], source), []


def _record(new_tokens: int, rounds: int, warm_up: int) -> dict[str, Any]:
    import torch

    from distill_engine.telemetry.machine import machine_record

    protocol = {
        "new_tokens": new_tokens, "rounds": rounds, "warm_up": warm_up, "threads": torch.get_num_threads(),
        "order": "every round times every case on every model, one after the other",
    }  # fmt: skip
    return {"machine": machine_record(), "protocol": protocol, "notes": []}


def case_list(modes: str, beams: str, batches: str, kv_cache: bool, compiled: bool) -> list[Case]:
    """Every combination of comma-separated lists. Raises ValueError for a list that is none."""
    from distill_engine.evaluate.latency_rows import Case

    return [
        Case("fixed" if mode == "fixed" else "free", number, batch, kv_cache, kind)
        for mode in _words("--modes", modes, ("fixed", "free"))
        for number in _numbers("--beams", beams)
        for batch in _numbers("--batches", batches)
        for kind in ([False, True] if compiled else [False])
    ]


def _words(option: str, given: str, known: Sequence[str]) -> list[str]:
    words = [word.strip() for word in given.split(",") if word.strip()]
    wrong = [word for word in words if word not in known]
    if wrong or not words:
        raise ValueError(f"{option} {given!r}: a comma-separated list of {', '.join(known)} is needed.")
    return list(dict.fromkeys(words))


def _numbers(option: str, given: str) -> list[int]:
    words = [word.strip() for word in given.split(",") if word.strip()]
    if not words or not all(word.isdecimal() and int(word) > 0 for word in words):
        raise ValueError(f"{option} {given!r}: a comma-separated list of positive numbers is needed, as in 1,4,10.")
    return list(dict.fromkeys(map(int, words)))


@contextmanager
def progress_bar(title: str) -> Iterator[Any]:
    """A function (done, all) that moves a bar on stderr."""
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task(title)
        yield lambda done, total: progress.update(bar, completed=done, total=total)

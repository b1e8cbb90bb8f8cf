"""The student as others use it: a Hugging Face folder, verified before it counts, published in one atomic step."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel

from distill_engine.cluster.files import rename_synced, sync_folder, sync_tree
from distill_engine.families.lookup import family_of, shape_of
from distill_engine.models.loading import Checkpoint
from distill_engine.values import Audio, Batch, Tokens

_CARD = "README.md"


class ExportError(RuntimeError):
    """The written folder does not hold the same model."""


def host_model(model: PreTrainedModel) -> PreTrainedModel:
    """The same model with the same weights in host memory, sharing nothing: training may go on with the original."""
    with torch.device("meta"):
        twin = type(model)(copy.deepcopy(model.config))
    copies: dict[tuple[int, torch.Size], torch.Tensor] = {}  # tied weights are one tensor in both

    def of(tensor: torch.Tensor) -> torch.Tensor:
        key = (tensor.data_ptr(), tensor.shape)
        if key not in copies:
            copies[key] = tensor.detach().to("cpu", copy=True)
        return copies[key]

    twin.all_tied_weights_keys = dict(model.all_tied_weights_keys)
    held = model.state_dict()
    twin.load_state_dict({name: of(tensor) for name, tensor in held.items()}, assign=True)
    for name, buffer in model.named_buffers():
        if name not in held:  # computed when a model is made, and so not computed on meta (position codes)
            owner, _, last = name.rpartition(".")
            setattr(twin.get_submodule(owner), last, of(buffer))
    twin.tie_weights(recompute_mapping=False)
    twin.generation_config = copy.deepcopy(model.generation_config)
    return twin.eval()


def write_student_files(model: PreTrainedModel, tokenizer: Any, folder: Path) -> None:
    """All of a student but its weights: config, generation config and tokenizer, forced to the disk."""
    model.config.save_pretrained(folder)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    _save_readers(model, tokenizer, folder)
    sync_tree(folder)


def write_student(
    model: PreTrainedModel, tokenizer: Any, folder: Path, card: str, probe: Batch, *, finite: bool = True
) -> None:
    """Write weights (safetensors), config, generation config, tokenizer and model card into a new folder.

    The folder is then loaded again as a user would and its logits are compared with the live model's. The weights
    are those that were validated: in mixed precision the 16-bit ones, not the optimizer's float32 copies. At the end
    all of it is on the disk itself.

    finite  NaN in the weights is refused as well

    Raises ExportError if they differ (the folder is removed), OSError if it cannot be written.
    """
    if folder.exists():
        shutil.rmtree(folder)
    try:
        _save_weights(model, folder)
        _save_readers(model, tokenizer, folder)
        (folder / _CARD).write_text(card, encoding="utf-8")
        for file in folder.iterdir():  # safetensors lets only the owner read what it writes
            file.chmod((folder / _CARD).stat().st_mode)
        _verify(model, folder, probe, finite)
        sync_tree(folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _save_readers(model: PreTrainedModel, tokenizer: Any, folder: Path) -> None:
    """The tokenizer, and from the folder that it came from what else makes a model's inputs (of sounds)."""
    tokenizer.save_pretrained(folder)
    for name in family_of(model.config).beside:
        source = Path(tokenizer.name_or_path) / name
        if source.is_file():
            shutil.copyfile(source, folder / name)


def _save_weights(model: PreTrainedModel, folder: Path) -> None:
    try:
        model.save_pretrained(folder)
    except SafetensorError as error:  # how safetensors reports a full disk; it is no OSError
        raise OSError(f"{folder}: the weights cannot be written: {error}") from error


def _reload(folder: Path, dtype: torch.dtype | Literal["auto"] = "auto") -> Any:
    try:
        return Checkpoint(folder).load(dtype)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ExportError(f"{folder} does not load with transformers: {error}") from error


@torch.no_grad()
def _verify(model: PreTrainedModel, folder: Path, probe: Batch, finite: bool) -> None:
    dtype = next(model.parameters()).dtype
    loaded = _reload(folder, dtype)
    written = loaded.state_dict()
    compare = torch.equal if finite else _same_bits
    changed = [name for name, tensor in model.state_dict().items() if not compare(tensor.cpu(), written[name])]
    if changed:  # one changed weight need not show in the logits of one probe
        raise ExportError(f"{folder}: tensors differ (or hold NaN) after reloading: {', '.join(changed[:5])}.")
    worst = _logit_difference(model, loaded, probe)
    allowed = 1e-4 if dtype == torch.float32 else 2e-2
    if worst is not None and not worst <= allowed and (finite or worst == worst):
        raise ExportError(f"{folder}: reloaded logits differ from the live model's by {worst:.3g} (relative).")


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and torch.allclose(one, other, 0.0, 0.0, True)


def not_finite(model: PreTrainedModel) -> list[str]:
    """Names of the weights that hold NaN or inf."""
    return [name for name, weight in model.named_parameters() if not bool(torch.isfinite(weight).all())]


def _logit_difference(model: PreTrainedModel, loaded: Any, probe: Batch) -> float | None:
    """Largest difference of the two models' logits, relative; None where the device has no room for a second model
    in the middle of training (every tensor has been compared by then)."""
    was_training = model.training
    model.eval()
    try:
        probe = probe.to(model.device)
        expected = _logits(model, probe)
        actual = _logits(loaded.to(model.device).eval(), probe)
    except torch.OutOfMemoryError:
        return None
    finally:
        model.train(was_training)
    return float((expected - actual).abs().max() / expected.abs().max().clamp(min=1.0))


def _logits(model: PreTrainedModel, probe: Batch) -> torch.Tensor:
    dtype = next(model.parameters()).dtype  # of sounds; ids stay whole numbers
    given = {
        key: value.to(dtype) if value.is_floating_point() else value for key, value in probe.inputs.keywords.items()
    }
    output = model(**given, decoder_input_ids=probe.decoder_input_ids, use_cache=False)
    return output.logits.float()


@torch.no_grad()
def verify_folder(folder: Path) -> None:
    """Load a copied folder as a user would and run it once. Raises ExportError if that does not work."""
    model = _reload(folder)
    if not torch.isfinite(_logits(model.eval(), probe_of(model))).all():
        raise ExportError(f"{folder}: the model's logits are not finite.")


def probe_of(model: PreTrainedModel) -> Batch:
    """A small batch of ordinary token ids (or sounds) for a model, the same every time."""
    shape = shape_of(model.config)
    ids = (torch.arange(14).view(2, 7) * 37 + 11) % shape.vocab
    inputs: Tokens | Audio = Tokens(ids, torch.ones_like(ids))
    if shape.window is not None:
        waves = torch.arange(2 * shape.window.channels * shape.window.frames, dtype=torch.float32).mul(0.1).sin()
        heard = torch.ones(2, shape.window.positions, dtype=torch.long)
        inputs = Audio(waves.view(2, shape.window.channels, shape.window.frames), heard)
    return Batch.of(inputs, ids.flip(1), ids)


def publish(link: Path, name: str, write: Callable[[Path], None]) -> Path:
    """Write a new version into `exports/<name>` and make `link` point at it, atomically; older versions go.

    A reader sees the old complete folder or the new complete folder, never a mixture, also if the writer is killed or
    the power fails: `write` forces its files to the disk, each step here is forced there before the next.
    Returns the new version's folder.
    """
    versions = link.parent / "exports"
    versions.mkdir(parents=True, exist_ok=True)
    target = _unused(versions / name)
    unfinished = versions / f".tmp-{name}"
    write(unfinished)
    rename_synced(unfinished, target)
    fresh_link = link.parent / f".{link.name}.new"
    fresh_link.unlink(missing_ok=True)
    fresh_link.symlink_to(Path("exports") / target.name, target_is_directory=True)
    fresh_link.replace(link)
    sync_folder(link.parent)  # before what it pointed at is deleted
    for old in versions.iterdir():
        if old != target:
            shutil.rmtree(old, ignore_errors=True)
    return target


def _unused(folder: Path) -> Path:
    """The folder, or a numbered sibling if a run that was killed had already published this step."""
    candidate, number = folder, 1
    while candidate.exists():
        number += 1
        candidate = folder.with_name(f"{folder.name}.{number}")
    return candidate

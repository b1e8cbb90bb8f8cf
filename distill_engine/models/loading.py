"""Every model comes from its folder through here: teacher and student, whole, in shards or tensor by tensor.

transformers replaces what a file lacks by random numbers, leaves out what the model has no place for, and ties
embeddings that differ or not depending on how it loads them; its warnings are easily overlooked. So a folder is first
compared with the model that its config.json describes, and only one that holds exactly that model is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import list_repo_files, snapshot_download
from huggingface_hub.errors import RepositoryNotFoundError
from torch import Tensor
from transformers import PreTrainedModel

from distill_engine.families.lookup import family_of, shape_of
from distill_engine.models.classes import auto_class, config_of, model_class
from distill_engine.models.weight_files import WeightFiles, WeightsError
from distill_engine.values import Stack

_OTHER_FRAMEWORKS = ("*.h5", "*.msgpack", "*.ot", "tf_model*", "flax_model*", "rust_model*", "onnx/*")
_ZERO_IF_ABSENT = "final_logits_bias"  # a buffer that transformers makes of zeros; older checkpoints leave it out
_NAMED = 5  # tensors of one kind that a message names


def problem_of_teacher(folder: Path, error: Exception, may_pass: bool = False) -> str:
    """What is wrong with the weights that a recipe names, in one line that begins with its key; and what to do, unless
    it `may_pass`."""
    reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    if isinstance(error, WeightsError):
        return f"teacher.path {reason}."
    advice = "" if may_pass else " Copy or download the model again, complete."
    return f"teacher.path {folder}: its weights cannot be read: {reason}.{advice}"


class Checkpoint:
    """A folder's weights, known to be those of the model that its config.json describes.

    config    the model's configuration
    own_head  the output has a table of its own, although config.json ties it: the tensors say so
    computes_parameters  the model computes some of its parameters, which cannot be made in shards (position codes)
    """

    def __init__(self, folder: Path) -> None:
        """Reads names and shapes, and the values of tied tensors that are stored more than once.

        Raises WeightsError, with every reason, for a folder that does not hold exactly one model; ValueError or OSError
        for a config.json that is not there or of no family we know.
        """
        self.folder = folder
        self.config = config_of(folder)
        self._files = WeightFiles(folder, getattr(self.config, "transformers_weights", None))
        with torch.device("meta"):
            model: Any = model_class(self.config)(self.config)
        family = family_of(self.config)
        self._separable = family.separable
        shape = shape_of(self.config)
        self._computed = {table for stack in Stack if shape.computes(stack) and (table := family.position_table(stack))}
        self.computes_parameters = any(map(shape.computes, Stack))
        self._shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        self._ties = _ties(model)
        self._stored: dict[str, list[str]] = {}
        for stored in self._files.shapes:
            self._stored.setdefault(parameter_name(stored, model.base_model_prefix, self._shapes), []).append(stored)
        ignored = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_unexpected or ()]
        problems = [*self._absent(), *self._unknown(ignored), *self._misshapen(), *self._ambiguous()]
        self.own_head = not problems and any(self._apart(name) for name in self._separable)
        if problems := problems or list(self._untied()):
            raise WeightsError(
                f"{folder}: the weights are not those of the model that config.json describes: {'; '.join(problems)}. "
                "Correct its config.json, or save or download the model again, complete."
            )

    def holds(self, name: str) -> bool:
        """Whether `read` has a value for a parameter; of computed ones files often have none."""
        return self._found(name) is not None or name not in self._computed

    def read(self, name: str) -> Tensor:
        """The value of a parameter or buffer, in the dtype it is stored in; of tied ones that which is stored."""
        found = self._found(name)
        if found is not None:
            return self._files.read(found)
        if name != _ZERO_IF_ABSENT:
            raise WeightsError(f"{self.folder}: no tensor named {name!r} among its {len(self._stored)} tensors.")
        return torch.zeros(self._shapes[name])

    def load(self, dtype: torch.dtype | Literal["auto"] = "auto") -> PreTrainedModel:
        """The model; "auto": in the dtype that config.json says. While a DeepSpeed configuration of ZeRO-3 is active,
        in shards (collective). Raises WeightsError if transformers reads it otherwise than was checked."""
        model, info = auto_class(self.config).from_pretrained(
            self.folder, dtype=dtype, output_loading_info=True, trust_remote_code=False, local_files_only=True
        )
        reported = {kind: set(info.get(kind) or ()) - self._computed for kind in _REPORTED}
        problems = [f"{kind} {', '.join(_names(found))}" for kind, found in reported.items() if found]
        if problems:
            raise WeightsError(f"{self.folder}: transformers {'; '.join(problems)}, against what its files hold.")
        if self.own_head and all(name in model.all_tied_weights_keys for name in self._separable):
            raise WeightsError(f"{self.folder}: transformers ties {', '.join(self._separable)}, which is stored apart.")
        for name in self._computed:  # loading may have made them trainable
            model.get_parameter(name).requires_grad_(False)
        return model

    def _found(self, name: str) -> str | None:
        """The stored name of a parameter, or of one that it is tied to."""
        for one in (name, *self._ties.get(name, ())):
            if one in self._stored:
                return self._stored[one][0]
        return None

    def _absent(self) -> Iterator[str]:
        needed = [name for name in self._shapes if name != _ZERO_IF_ABSENT and name not in self._computed]
        missing = [name for name in needed if self._found(name) is None]
        if missing:
            yield f"{_tensors(missing)} missing and would be random numbers ({', '.join(_names(missing))})"

    def _unknown(self, ignored: Sequence[re.Pattern[str]]) -> Iterator[str]:
        """Names of no weight; `ignored`: what transformers declares to be no weight, such as version numbers."""
        others = [name for name in self._stored if name not in self._shapes]
        unknown = [name for name in others if not any(pattern.search(name) for pattern in ignored)]
        if unknown:
            yield f"{_tensors(unknown)} no part of it and would be left out ({', '.join(_names(unknown))})"

    def _misshapen(self) -> Iterator[str]:
        for name, stored in self._stored.items():
            found, wanted = self._files.shapes[stored[0]], self._shapes.get(name)
            if wanted is not None and found != wanted:
                yield f"{name} has shape {list(found)}, not {list(wanted)}"

    def _ambiguous(self) -> Iterator[str]:
        for name, stored in self._stored.items():
            if len(stored) > 1:
                yield f"{name} is stored twice, as {' and '.join(stored)}"

    def _apart(self, name: str) -> bool:
        """Whether a tied tensor that may be another one is stored with values of its own."""
        twins = [one for one in self._ties.get(name, ()) if one in self._stored]
        return name in self._stored and bool(twins) and not _equal(self.read(name), self.read(twins[0]))

    def _untied(self) -> Iterator[str]:
        """Tensors that the configuration ties and that have values of their own. Loaders of transformers differ in what
        they make of such a file, and which value the model was trained with cannot be told."""
        seen: set[str] = set()
        for name, twins in self._ties.items():
            apart = self._separable if self.own_head else ()
            there = [one for one in (name, *twins) if one in self._stored and one not in (*seen, *apart)]
            seen |= {name, *twins}
            for other in there[1:]:
                if not _equal(self.read(there[0]), self.read(other)):
                    yield (
                        f"{there[0]} and {other} are tied (tie_word_embeddings is true in config.json, or left out) "
                        "but differ or hold NaN (tie_word_embeddings: false keeps them apart, and needs "
                        f"{', '.join(sorted((name, *twins)))} in the file; or store only the one that counts)"
                    )


# What transformers may report after loading, and must not: all of it has been looked for.
_REPORTED = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")


def local_copy(name: str, revision: str | None = None) -> Path:
    """A model's folder: as given, or downloaded from Hugging Face (its cache makes that idempotent).

    Raises RepositoryNotFoundError for a name that the Hub does not know; without a network what the Hub's client
    raises, unless the model was downloaded before.
    """
    if Path(name).is_dir():
        return Path(name)
    try:
        files = list_repo_files(name, revision=revision)
        pickled = ["*.bin"] if {"model.safetensors", "model.safetensors.index.json"} & set(files) else []
        return Path(snapshot_download(name, revision=revision, ignore_patterns=[*_OTHER_FRAMEWORKS, *pickled]))
    except RepositoryNotFoundError:
        raise
    except Exception as error:  # without a network the Hub's client raises what its HTTP library raises
        try:
            return Path(snapshot_download(name, revision=revision, local_files_only=True))
        except (OSError, ValueError):
            raise error from None


def _ties(model: PreTrainedModel) -> dict[str, tuple[str, ...]]:
    """Each tied parameter -> the others that are the same one, in transformers' words and by the configuration."""
    groups: dict[str, list[str]] = {}
    for target, source in model.all_tied_weights_keys.items():
        groups.setdefault(source, [source]).append(target)
    return {one: tuple(other for other in group if other != one) for group in groups.values() for one in group}


def parameter_name(stored: str, prefix: str, parameters: Mapping[str, Any]) -> str:
    """The parameter that transformers takes a stored tensor for: with or without the base model's prefix."""
    bare = stored.removeprefix(f"{prefix}.")
    if bare != stored and bare in parameters:
        return bare
    return f"{prefix}.{stored}" if f"{prefix}.{stored}" in parameters else stored


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() or (one.dtype == other.dtype and torch.equal(one, other))


def _tensors(names: Sequence[str]) -> str:
    return "1 tensor is" if len(names) == 1 else f"{len(names)} tensors are"


def _names(names: Any) -> list[str]:
    """The first of these names, sorted."""
    return sorted(map(str, names))[:_NAMED]

"""The sections of a recipe that take some thought: student, batch, optimizer and schedule, validation and stop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from distill_engine.interop.parlai.options.command_line import Options

Say = Callable[[str, str], None]

_VARIANTS = {"blenderbot": "prelayernorm", "bart": "bart"}
_OPTIMIZERS = {
    "adam": "adam",
    "mem_eff_adam": "adam",
    "fused_adam": "adam",
    "adamw": "adamw",
    "sgd": "sgd",
}
_SCHEDULES = {
    "reduceonplateau": "reduce_on_plateau",
    "none": "constant",
    "cosine": "cosine",
    "linear": "linear",
}
_METRICS = {"ppl": "ppl", "loss": "loss", "token_acc": "token_accuracy", "token_em": "token_exact_match"}
_SMALL_IS_GOOD = ("ppl", "loss")
_ADAMW_DECAY = 0.01  # torch's default, which ParlAI leaves in place


@dataclass(frozen=True)
class TrainingKind:
    """What a command trains.

    source   the ParlAI model that is imitated or started from
    copied   whether the student starts from its layers
    distils  whether it is imitated
    narrow   ParlAI's agents with projections and attention terms
    """

    family: str
    source: str | None
    copied: bool
    distils: bool
    narrow: bool


class StudentOf:
    """The student, with the sizes ParlAI would build."""

    def __init__(self, options: Options, kind: TrainingKind, say: Say) -> None:
        self._options, self._kind, self._say = options, kind, say

    @property
    def positions(self) -> int:
        """n_positions, else the longest truncation, else 1024."""
        options = self._options
        truncations = (options[name] or 0 for name in ("truncate", "text_truncate", "label_truncate"))
        return int(options["n_positions"] or max(*truncations, 0) or 1024)

    def section(self) -> dict[str, Any]:
        """The recipe's `student`."""
        options, kind = self._options, self._kind
        self._check_network()
        section: dict[str, Any] = {
            "family": kind.family,
            "init": "teacher_layers" if kind.copied else "random",
            "encoder_layers": self._layers("n_encoder_layers"),
            "decoder_layers": self._layers("n_decoder_layers"),
            "width": options["embedding_size"],
            "ffn_width": options["ffn_size"],
            "heads": options["n_heads"],
            "positions": self.positions,
            "dropout": options["dropout"],
            "attention_dropout": options["attention_dropout"],
            "projections": "always" if kind.narrow else "auto",
            "train_position_tables": options["learn_positional_embeddings"],
        }
        if kind.copied and kind.distils:  # ParlAI's distillation copies layers and embeddings, no norms around them
            section["copy_final_norms"] = False
        if options["checkpoint_activations"]:
            section["activation_checkpointing"] = True
        return section

    def _layers(self, name: str) -> int:
        own: int = self._options[name]
        return own if own > 0 else int(self._options["n_layers"])

    def _check_network(self) -> None:
        variant, wanted = self._options["variant"], _VARIANTS[self._kind.family]
        if variant != wanted:
            self._say(f"--variant {variant}", f"a {self._kind.family} student has the norms of variant {wanted}")
        if self._kind.family == "blenderbot" and self._options["activation"] != "gelu":
            self._say(f"--activation {self._options['activation']}", "a student has its teacher's activation")


class BatchOf:
    """The batch, with ParlAI's dynamic batching as a budget of tokens."""

    def __init__(self, options: Options, say: Say) -> None:
        self._options, self._say = options, say

    def section(self) -> dict[str, Any]:
        """The recipe's `batch`."""
        options = self._options
        section = {
            "per_rank": options["batchsize"],
            "accumulation_steps": options["update_freq"],
            "pad_to_multiple_of": 8 if options["fp16"] else 1,
        }
        dynamic = options["dynamic_batching"]
        tokens = sum(options[name] or options["truncate"] for name in ("text_truncate", "label_truncate"))
        if dynamic == "full" and tokens > 0:
            section["max_tokens"] = tokens * options["batchsize"]
            section["pad_to_multiple_of"] = 8
        if dynamic == "batchsort":
            self._say("--dynamic-batching batchsort", "batches of a fixed number of examples are not sorted by length")
        return section


class ScheduleOf:
    """How weights and learning rate move."""

    def __init__(self, options: Options, say: Say) -> None:
        self._options, self._say = options, say

    def optimizer(self) -> dict[str, Any]:
        """The recipe's `optimizer`."""
        options, asked = self._options, str(self._options["optimizer"])
        name = _OPTIMIZERS.get(asked, "adam")
        if asked not in _OPTIMIZERS:
            self._say(f"--optimizer {asked}", "there are adam, adamw and sgd; adam stands in its place")
        section: dict[str, Any] = {"name": name, "learning_rate": options["learningrate"]}
        if name == "sgd":
            section["momentum"] = options["momentum"]
            if options["momentum"] > 0 and options["nesterov"]:
                self._say("--nesterov True", "sgd has plain momentum")
        else:
            betas = options["betas"]
            section |= {"betas": list(betas), "eps": options["adam_eps"], "amsgrad": self._amsgrad(asked)}
        decay = options["weight_decay"]
        section["weight_decay"] = decay if decay is not None else _ADAMW_DECAY if name == "adamw" else 0.0
        section["clip_norm"] = options["gradient_clip"] if options["gradient_clip"] > 0 else None
        return section

    def _amsgrad(self, asked: str) -> bool:
        """ParlAI's `adam` is AMSGrad, unless it is replaced by the memory-efficient one, which is not."""
        options = self._options
        replaced = options["fp16"] and options["fp16_impl"] == "mem_efficient"
        return asked == "adam" and not replaced

    def section(self) -> dict[str, Any]:
        """The recipe's `schedule`."""
        options, asked = self._options, str(self._options["lr_scheduler"])
        if asked not in _SCHEDULES:
            self._say(f"--lr-scheduler {asked}", "there is no such schedule; the learning rate stays constant")
        name = _SCHEDULES.get(asked, "constant")
        section: dict[str, Any] = {"name": name}
        if name == "reduce_on_plateau":
            section |= {"decay": options["lr_scheduler_decay"], "patience": options["lr_scheduler_patience"]}
            section["threshold"] = 1e-4
        if options["warmup_updates"] > 0:
            section |= {"warmup_steps": options["warmup_updates"], "warmup_start": options["warmup_rate"]}
        return section


class ValidationOf:
    """When the student is measured, and when the run ends. What ParlAI writes as -1 is left out: never."""

    def __init__(self, options: Options, say: Say) -> None:
        self._options, self._say = options, say

    def section(self) -> dict[str, Any]:
        """The recipe's `validation`."""
        options = self._options
        triggers = {"every_seconds": "n_secs", "every_steps": "n_steps", "every_epochs": "n_epochs"}
        section = {ours: self._positive(f"validation_every_{theirs}") for ours, theirs in triggers.items()}
        section = {key: value for key, value in section.items() if value is not None}
        metric, direction = self._metric()
        section |= {"metric": metric, "direction": direction, "patience": self._positive("validation_patience")}
        section |= {"save_after_validation": options["save_after_valid"]}
        if section.keys() & triggers.keys():
            section["stop_at"] = options["validation_cutoff"]
        else:
            section["patience"] = None  # without validations there is nothing to be patient about
        if options["aggregate_micro"]:
            section["average"] = "micro"
        if options["eval_batchsize"]:
            section["per_rank_batch"] = options["eval_batchsize"]
        return section

    def _metric(self) -> tuple[str, str]:
        asked = str(self._options["validation_metric"])
        task, slash, name = asked.rpartition("/")
        ours = _METRICS.get(name)
        if ours is None:
            self._say(f"--validation-metric {asked}", "is not measured, since nothing is generated; ppl is used")
            return "ppl", "min"
        right = "min" if name in _SMALL_IS_GOOD else "max"
        return f"{task}{slash}{ours}", right

    def stop(self) -> dict[str, Any]:
        """The recipe's `stop`."""
        limits = {"max_steps": "max_train_steps", "max_epochs": "num_epochs", "max_seconds": "max_train_time"}
        section = {ours: self._positive(theirs) for ours, theirs in limits.items()}
        return {key: value for key, value in section.items() if value is not None}

    def _positive(self, option: str) -> Any:
        value = self._options[option]
        return value if value is not None and value > 0 else None

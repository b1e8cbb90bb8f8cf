"""Whisper and Distil-Whisper: sound in, text out.

The encoder reads a window of log-mel features, silence too, without a mask. The decoder reads START LANGUAGE TASK
NOTIMESTAMPS before a label (models for English alone START NOTIMESTAMPS): transformers' `generate` puts these there
by settings of its own, and none of them is learnt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from distill_engine.data.tokens.layout import SequenceLayout, SpecialTokens, Window
from distill_engine.families.base import BartLike, around, is_size, published, started
from distill_engine.families.protocol import Parts
from distill_engine.families.shape import Form, Shape, Sizes

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

_TRANSCRIBE = "transcribe"  # what `generate` takes where a language is named and no task


def _published(vocab: int, width: int, heads: int, layers: tuple[int, int], bins: int) -> dict[str, Any]:
    sizes = published(vocab, width, 4 * width, heads, layers[0], 448)
    del sizes["max_position_embeddings"]
    return sizes | {
        "decoder_layers": layers[1], "num_mel_bins": bins, "max_source_positions": 1500, "max_target_positions": 448,
    }  # fmt: skip


class Whisper(BartLike):
    """See `protocol.Family`."""

    name = "whisper"
    meaning = "Whisper, Distil-Whisper: speech; language and task stand before texts"
    auto_class = "AutoModelForSpeechSeq2Seq"
    inputs = "audio"
    decoder_skips = 3
    prompts = True
    beside = ("preprocessor_config.json", "processor_config.json")
    known: Mapping[str, Mapping[str, Any]] = {
        "openai/whisper-large-v3": _published(51866, 1280, 20, (32, 32), 128),
        "openai/whisper-large-v3-turbo": _published(51866, 1280, 20, (32, 4), 128),
        "openai/whisper-large-v2": _published(51865, 1280, 20, (32, 32), 80),
        "openai/whisper-medium": _published(51865, 1024, 16, (24, 24), 80),
        "openai/whisper-small": _published(51865, 768, 12, (12, 12), 80),
        "openai/whisper-tiny": _published(51865, 384, 6, (4, 4), 80),
    }
    form = Form(key_biases=False)

    def missing(self, config: Mapping[str, Any]) -> list[str]:
        own = ("max_target_positions", "max_source_positions", "num_mel_bins")
        usual = [key for key in super().missing(config) if key != "max_position_embeddings"]
        return [*usual, *(key for key in own if not is_size(config.get(key)))]

    def shape(self, config: Mapping[str, Any]) -> Shape:
        positions = int(config["max_source_positions"])
        window = Window(int(config["num_mel_bins"]), 2 * positions, positions)
        usual = super().shape({**config, "max_position_embeddings": config["max_target_positions"]})
        tables = (usual.vocab,) * (2 if config.get("tie_word_embeddings") is False else 1)
        return replace(usual, token_tables=tables, window=window)

    def config_values(self, sizes: Sizes) -> dict[str, Any]:
        values = super().config_values(sizes)
        positions = values.pop("max_position_embeddings", None)
        return values if positions is None else {**values, "max_target_positions": positions}

    def fresh(self, sizes: Sizes, vocabulary: int, special: SpecialTokens) -> dict[str, Any]:
        window = {"num_mel_bins": 80, "max_source_positions": 1500}
        return {**super().fresh(sizes, vocabulary, special), **window, "forced_eos_token_id": None}

    def prompt(self, settings: Mapping[str, Any]) -> tuple[int | None, ...]:
        """As `generate` does it: the language (None where it would listen for it) and the task, of models for several
        languages; the token that says that no times are written."""
        languages, tasks = settings.get("lang_to_id"), settings.get("task_to_id") or {}
        language, task = settings.get("language"), settings.get("task")
        begun: list[int | None] = []
        forced = settings.get("forced_decoder_ids") if language is None and task is None else None
        if forced:  # the old way, which the published files have
            begun = [token for _, token in sorted(forced)]
        elif languages:
            begun = [None if language is None else _language(str(language), languages)]
            begun += [tasks[task or _TRANSCRIBE]] if (task or _TRANSCRIBE) in tasks else []
        times = settings.get("no_timestamps_token_id")
        if times is not None and not settings.get("return_timestamps") and begun[-1:] != [times]:
            begun.append(times)
        return tuple(begun)

    def unsettled(self, special: SpecialTokens) -> str:
        if None not in special.prompt:
            return ""
        if len(special.prompt) == 1:
            return "which knows English alone: no language can be asked of it"
        return "whose generation settings have no `language`: the one that it is to write is not said"

    def towards(self, special: SpecialTokens, language: int) -> SpecialTokens:
        if len(special.prompt) < 2:  # no place for a language: English alone
            return replace(special, prompt=(None,))
        return replace(special, prompt=(language, *special.prompt[1:]))

    def begins(self, special: SpecialTokens, settings: Mapping[str, Any]) -> dict[str, Any]:
        languages, tasks = ({number: name for name, number in (settings.get(key) or {}).items()}
                            for key in ("lang_to_id", "task_to_id"))  # fmt: skip
        if not special.prompt:
            return {}
        # the task beside it: where a language is named and no task, `generate` transcribes
        task = next((tasks[token] for token in special.prompt[1:2] if token in tasks), None)
        return {"language": languages.get(special.prompt[0]), "task": task}

    def begins_rows(self, prompts: Sequence[Sequence[int] | None], settings: Mapping[str, Any]) -> dict[str, Any]:
        usual = SpecialTokens(0, 0, prompt=self.prompt(settings))
        asked = [self.begins(usual if prompt is None else replace(usual, prompt=tuple(prompt)), settings)
                 for prompt in prompts]  # fmt: skip
        languages = [one.get("language") for one in asked]
        if None in languages:
            raise ValueError(
                f"row {languages.index(None) + 1} begins with {prompts[languages.index(None)]}, a language that the "
                "model's generation settings do not name (lang_to_id), or have not said"
            )
        return {"language": languages, "task": settings.get("task") or asked[0]["task"]}

    def fitted(self, settings: Mapping[str, Any], copied: Sequence[int]) -> dict[str, Any]:
        """`alignment_heads`, (layer, head) pairs that follow the sound, go where their layers went."""
        heads = settings.get("alignment_heads")
        if not heads:
            return {}
        return {"alignment_heads": [[n, head] for n, origin in enumerate(copied) for layer, head in heads
                                    if layer == origin] or None}  # fmt: skip

    def layout(self, special: SpecialTokens, history_end_token: bool = False) -> SequenceLayout:
        """Decoder input START LANGUAGE TASK NOTIMESTAMPS label; there are no contexts."""
        del history_end_token
        prompt = tuple(token for token in special.prompt if token is not None)
        return around(special, decoder_prefix=(*started(special), *prompt))

    def generate(self, model: PreTrainedModel, inputs: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Tensor:
        from distill_engine.families import whisper_modules  # imports torch

        return whisper_modules.generate(model, inputs, settings)

    def parts(self, model: PreTrainedModel) -> Parts:
        from distill_engine.families import whisper_modules  # imports torch

        return whisper_modules.parts(model)


def _language(name: str, known: Mapping[str, int]) -> int | None:
    """`fr`, `french` or `<|fr|>`."""
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    code = TO_LANGUAGE_CODE.get(name.lower(), name.lower())
    return known.get(code, known.get(f"<|{code}|>"))


FAMILY = Whisper()

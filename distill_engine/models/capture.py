"""Records what happens inside a Hugging Face model during one forward pass.

Attention: transformers calls a *registered attention function* with the projected query and key of every
attention. Ours writes them down and hands over to SDPA, so models keep their own code and their fast attention.
Layers and embeddings: plain forward hooks.

Three rules make it safe:
- a site is written by the module it belongs to (stack, layer, kind), never by the order of calls;
- first write wins and only while a recording is open, so the second run of a checkpointed layer in the backward
  pass changes nothing;
- a requested site that stays empty is an error, not a missing loss term.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from distill_engine.values import AttentionKind, QueryKey, Stack

ATTENTION_NAME = "distill_capture"
_RECORDER_ATTRIBUTE = "_distill_recorder"
_SITE_ATTRIBUTE = "_distill_site"
_BIASED_ATTRIBUTE = "_distill_biased"

Site = tuple[str, Hashable, int]  # ("attention", kind, layer) | ("hidden", stack, layer) | ("embedding", stack, 0)


class CaptureError(RuntimeError):
    """A requested feature was not produced, or cannot carry gradients."""


class Recorder:
    """Holds the features of one forward pass of one model."""

    def __init__(self) -> None:
        self._wanted: frozenset[Site] = frozenset()
        self._values: dict[Site, Any] = {}
        self._open = False

    @contextmanager
    def recording(self, wanted: frozenset[Site]) -> Iterator[dict[Site, Any]]:
        """Record the wanted sites of the forward pass inside the block.

        Yields the dictionary that fills. Raises CaptureError at the end if a wanted site stayed empty.
        """
        self._wanted, self._values, self._open = wanted, {}, True
        try:
            yield self._values
            missing = sorted(map(str, wanted - self._values.keys()))
            if missing:
                raise CaptureError(
                    f"forward pass: {len(missing)} of {len(wanted)} requested features were not produced: "
                    f"{', '.join(missing)}. The model skipped these layers (layer drop?) or does not call the "
                    "registered attention function; set layer drop to 0."
                )
        finally:
            self._wanted, self._values, self._open = frozenset(), {}, False

    def wants(self, site: Site) -> bool:
        """Whether a value for this site would be kept now."""
        return self._open and site in self._wanted and site not in self._values

    def write(self, site: Site, value: object) -> None:
        """Keep a value if it is wanted and the first one for its site."""
        if self.wants(site):
            self._values[site] = value


def _capturing_attention(
    module: nn.Module,
    query: Tensor,  # [B, H, Q, E]
    key: Tensor,  # [B, H, K, E]
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    recorder: Recorder | None = getattr(module, _RECORDER_ATTRIBUTE, None)
    if recorder is not None:
        site = getattr(module, _SITE_ATTRIBUTE)
        if recorder.wants(site):
            scale = query.shape[-1] ** -0.5 if scaling is None else scaling
            bias = kwargs["position_bias"][0] if getattr(module, _BIASED_ATTRIBUTE) else None  # [1, H, Q, K] there
            recorder.write(site, QueryKey(query, key, scale, bias))
    kwargs |= {"attention_mask": attention_mask, "dropout": dropout, "scaling": scaling}
    if query.requires_grad and query.device.type == "cpu" and query.dtype in (torch.bfloat16, torch.float16):
        return _in_float32(module, query, key, value, kwargs)
    return sdpa_attention_forward(module, query, key, value, **kwargs)


def _in_float32(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, kwargs: dict[str, Any]
) -> tuple[Tensor, None]:
    """On CPUs SDPA's backward pass in half precision takes two to six times as long as in 32 bits."""
    for name in ("attention_mask", "position_bias"):  # a bool mask stays one
        given = kwargs.get(name)
        kwargs[name] = given.float() if isinstance(given, Tensor) and given.is_floating_point() else given
    attended, _ = sdpa_attention_forward(module, query.float(), key.float(), value.float(), **kwargs)
    return attended.to(query.dtype), None


def _mask_unseen(*, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """transformers' mask for SDPA, [B, 1, Q, K], without asking the device whether nothing is masked.

    Leaving such a mask out would save little, and each question waits until the device has caught up. Without padding
    to respect there is nothing to ask, and no mask where none is needed.
    """
    if attention_mask is not None:
        kwargs |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    return sdpa_mask(attention_mask=attention_mask, **kwargs)


AttentionInterface.register(ATTENTION_NAME, _capturing_attention)
AttentionMaskInterface.register(ATTENTION_NAME, _mask_unseen)


def attach_attention(
    module: nn.Module, recorder: Recorder, kind: AttentionKind, layer: int, *, biased: bool = False
) -> None:
    """Let one attention module report its query and key as (kind, layer), and its position bias where it is `biased`.

    Attentions without a bias of their own may be given zeros of its form, which are not worth keeping.
    """
    setattr(module, _RECORDER_ATTRIBUTE, recorder)
    setattr(module, _BIASED_ATTRIBUTE, biased)
    setattr(module, _SITE_ATTRIBUTE, ("attention", kind, layer))


def attach_hidden(module: nn.Module, recorder: Recorder, stack: Stack, layer: int) -> RemovableHandle:
    """Let one transformer layer report its output [B, L, D]."""

    def hook(_module: nn.Module, _args: object, output: Any) -> None:
        recorder.write(("hidden", stack, layer), output[0] if isinstance(output, tuple) else output)

    return module.register_forward_hook(hook)


def attach_embedding(
    module: nn.Module, recorder: Recorder, stack: Stack, unscale: Callable[[Tensor], Tensor]
) -> RemovableHandle:
    """Let a token embedding report its output [B, L, D], mapped by `unscale` to the bare table lookup."""
    site = ("embedding", stack, 0)

    def hook(_module: nn.Module, _args: object, output: Tensor) -> None:
        if recorder.wants(site):
            recorder.write(site, unscale(output))

    return module.register_forward_hook(hook)


def use_capturing_attention(model: PreTrainedModel) -> None:
    """Make every attention of the model call the capturing function (SDPA underneath)."""
    model.set_attn_implementation(ATTENTION_NAME)

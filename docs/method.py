"""The whole method on one page: plain PyTorch and transformers, no DeepSpeed, one process, float32.

    python docs/method.py [STEPS]

It distils recipes/demo.yaml. The engine does the same over many GPUs, with kernels that never build the big matrices,
and can be stopped at any moment; its losses are these ones (tests/end_to_end/test_method.py compares the first 20).

Axes: B examples, S context positions, T label positions, L either, D width, H heads, E head size, V vocabulary.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from distill_engine.data.order.split import BatchSplit  # noqa: E402 - works from a checkout that is not installed
from distill_engine.recipe.rules import read_recipe  # noqa: E402
from distill_engine.setup.prepare import prepare  # noqa: E402
from distill_engine.setup.training_data import train_loader  # noqa: E402
from distill_engine.values import Batch  # noqa: E402

RECIPE = ROOT / "recipes" / "demo.yaml"  # from which the numbers below are
START = {"encoder": [0], "decoder": [0, 5]}  # student layer i begins as this teacher layer
LAYERS = {"encoder": [1], "decoder": [2, 5]}  # and is supervised by this one
WEIGHTS = {"task": 1, "prediction": 4, "encoder": 0.1, "embedding": 0.1, "hidden": 0.1, "self_attention": 0.01,
           "cross_attention": 0.01}  # fmt: skip
PEAK, WARMUP, STEPS, FINAL, CLAMP = 0.005, 20, 400, 0.02, 65504.0  # CLAMP: largest squared error of one element
ATTENTIONS = (("encoder_self_attention", "encoder", "encoder"),  # name, who asks, who answers
              ("decoder_self_attention", "decoder", "decoder"),
              ("cross_attention", "decoder", "encoder"))  # fmt: skip


def student_of(teacher: PreTrainedModel) -> PreTrainedModel:
    """The teacher with fewer layers: each a copy of the teacher layer it begins as, all the rest copied too."""
    config = copy.deepcopy(teacher.config)
    config.encoder_layers, config.decoder_layers = len(START["encoder"]), len(START["decoder"])
    config.dropout = config.attention_dropout = 0.0
    student = type(teacher)(config)
    weights = {name: w for name, w in teacher.state_dict().items() if ".layers." not in name}
    for stack, taken in START.items():
        for layer, source in enumerate(getattr(teacher.model, stack).layers[number] for number in taken):
            weights |= {f"model.{stack}.layers.{layer}.{name}": w for name, w in source.state_dict().items()}
    student.load_state_dict(weights)
    return student


class Watched:
    """A model that also gives what its mapped layers compute: `features(batch)` is a dictionary of tensors."""

    def __init__(self, model: PreTrainedModel, layers: dict[str, list[int]]) -> None:
        self.model, self.captured = model, {}
        for stack, numbers in layers.items():
            half = getattr(model.model, stack)
            for index, layer in enumerate(half.layers[number] for number in numbers):
                self._keep(layer, f"{stack}_hidden", index)  # [B, L, D]
                attentions = {f"{stack}_self_attention": layer.self_attn}
                if stack == "decoder":
                    attentions["cross_attention"] = layer.encoder_attn
                for kind, attention in attentions.items():
                    self._keep(attention.q_proj, f"{kind}_query", index)
                    self._keep(attention.k_proj, f"{kind}_key", index)

    def _keep(self, module: nn.Module, name: str, index: int) -> None:
        module.register_forward_hook(lambda _module, _inputs, output: self.captured.update({(name, index): output}))

    def features(self, batch: Batch) -> dict[object, Tensor]:
        """One forward pass."""
        self.captured = {}
        out = self.model(**batch.inputs.keywords, decoder_input_ids=batch.decoder_input_ids, use_cache=False)
        table_VD = self.model.get_input_embeddings().weight
        logits_BTV = out.logits.clone()
        logits_BTV[..., self.model.config.bos_token_id] = torch.finfo(logits_BTV.dtype).min  # never predicted
        return self.captured | {"logits": logits_BTV, "encoder": out.encoder_last_hidden_state,
                             "encoder_embedding": F.embedding(batch.inputs.input_ids, table_VD),
                             "decoder_embedding": F.embedding(batch.decoder_input_ids, table_VD)}  # fmt: skip

    def scores(self, features: dict[object, Tensor], kind: str, index: int) -> Tensor:
        """[B, H, L, L]: attention scores before the softmax."""
        heads = self.model.config.decoder_attention_heads
        query, key = (features[f"{kind}_{side}", index].unflatten(-1, (heads, -1)) for side in ("query", "key"))
        return torch.einsum("bqhe,bkhe->bhqk", query, key) * query.shape[-1] ** -0.5


def loss_of(student: Watched, teacher: Watched, batch: Batch) -> Tensor:
    """The weighted sum of all terms, each a mean over what is not padding (docs/metrics.md)."""
    squared = lambda ours, theirs: (ours - theirs).square().clamp(max=CLAMP)  # noqa: E731
    s = student.features(batch)
    with torch.no_grad():
        t = teacher.features(batch)
    mask = {"encoder": batch.context_mask, "decoder": batch.label_mask}  # [B, S], [B, T]
    log_p = F.log_softmax(s["logits"], -1)[mask["decoder"]]  # [labels, V]
    log_q = F.log_softmax(t["logits"], -1)[mask["decoder"]]
    loss = WEIGHTS["task"] * F.nll_loss(log_p, batch.labels[mask["decoder"]])
    loss = loss + WEIGHTS["prediction"] * F.kl_div(log_p, log_q, log_target=True, reduction="sum") / len(log_p)
    loss = loss + WEIGHTS["encoder"] * (s["encoder"] - t["encoder"]).square()[mask["encoder"]].mean()
    for stack, layers in LAYERS.items():
        of_embedding = squared(s[f"{stack}_embedding"], t[f"{stack}_embedding"])[mask[stack]].mean()
        of_layers = [squared(s[f"{stack}_hidden", i], t[f"{stack}_hidden", i])[mask[stack]].mean()
                     for i in range(len(layers))]  # fmt: skip
        loss = loss + WEIGHTS["embedding"] * of_embedding + WEIGHTS["hidden"] * torch.stack(of_layers).mean()
    for kind, queries, keys in ATTENTIONS:
        pairs_BLL = mask[queries][:, :, None] & mask[keys][:, None, :]
        if kind == "decoder_self_attention":  # no later tokens
            pairs_BLL = pairs_BLL.tril()
        of_layers = [squared(student.scores(s, kind, i), teacher.scores(t, kind, i)).mean(dim=1)[pairs_BLL].mean()
                     for i in range(len(LAYERS[queries]))]  # fmt: skip
        weight = WEIGHTS["cross_attention" if kind == "cross_attention" else "self_attention"]
        loss = loss + weight * torch.stack(of_layers).mean()
    return loss


def learning_rate(step: int) -> float:
    """Linearly up to the peak and down from it; `step` counts from 0."""
    done = (step - WARMUP) / (STEPS - WARMUP)
    return PEAK * (1e-4 + (1 - 1e-4) * step / WARMUP if step < WARMUP else 1 - (1 - FINAL) * done)


def distil(steps: int = STEPS) -> Iterator[float]:
    """The loss of each step of one rank."""
    ready = prepare(read_recipe(RECIPE, ()), RECIPE)
    rank = SimpleNamespace(rank=0, world_size=1, device=torch.device("cpu"))
    batches = train_loader(ready, rank, print, BatchSplit(per_rank=32, accumulation_steps=1, world_size=1))
    model = AutoModelForSeq2SeqLM.from_pretrained(ready.teacher_folder).eval()
    own_layers = {stack: list(range(len(taken))) for stack, taken in LAYERS.items()}
    teacher, student = Watched(model, LAYERS), Watched(student_of(model).train(), own_layers)
    optimizer = torch.optim.AdamW(student.model.parameters(), weight_decay=0.0)
    for step in range(steps):
        loss = loss_of(student, teacher, batches.next_group()[0])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(student.model.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = learning_rate(step)
        optimizer.step()
        yield loss.item()


if __name__ == "__main__":
    for number, value in enumerate(distil(int(sys.argv[1]) if sys.argv[1:] else STEPS), start=1):
        print(f"step {number}: loss {value:.4f}", flush=True)

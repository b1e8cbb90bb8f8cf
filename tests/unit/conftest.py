"""Tiny real models, batches and features for the unit tests: seeded, made in milliseconds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import teacher_folders
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from distill_engine.families.lookup import family_named
from distill_engine.families.shape import Sizes
from distill_engine.models.loading import Checkpoint
from distill_engine.student.build import TeacherLayers, build_student, student_config
from distill_engine.values import IGNORED_LABEL, AttentionKind, Batch, Features, QueryKey, Stack, Tokens

PAD, START, END = 0, 1, 2
VOCABULARY = 29


def tiny_config(family: str, *, width=16, heads=2, encoder_layers=2, decoder_layers=3, **more):
    """A configuration small enough that a forward pass takes a millisecond."""
    values = {
        "vocab_size": VOCABULARY, "d_model": width, "encoder_layers": encoder_layers,
        "decoder_layers": decoder_layers, "num_hidden_layers": encoder_layers,
        "encoder_attention_heads": heads, "decoder_attention_heads": heads,
        "encoder_ffn_dim": 2 * width, "decoder_ffn_dim": 2 * width, "max_position_embeddings": 24,
        "dropout": 0.0, "pad_token_id": PAD, "bos_token_id": START, "eos_token_id": END,
        "decoder_start_token_id": START if family == "blenderbot" else END, "forced_eos_token_id": END,
        "scale_embedding": family == "blenderbot", "activation_function": "gelu", "init_std": 0.3,
    }  # fmt: skip
    return AutoConfig.for_model(family, **(values | more))


def tiny_model(family: str, seed: int = 0, **config):
    """A model whose every tensor is random, norms and biases too, so that a forgotten one shows."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForSeq2SeqLM.from_config(tiny_config(family, **config))
        for parameter in model.parameters():
            if parameter.ndim == 1:
                torch.nn.init.normal_(parameter, mean=1.0, std=0.3)
    return model.eval()


def tiny_batch(
    family: str = "blenderbot", contexts=(5, 3), labels=(4, 6), *, seed: int = 0, pad_to: tuple[int, int] = (0, 0)
) -> Batch:
    """Right-padded examples of these lengths in one family's layout; `pad_to` is the least (context, label) length."""
    draw = torch.Generator().manual_seed(seed)
    front = 1 if family == "bart" else 0  # BART's decoder reads END before START and predicts nothing there
    width = max(*contexts, pad_to[0])
    length = max(*labels, pad_to[1]) + front
    input_ids = torch.full((len(contexts), width), PAD)
    decoder_input_ids = torch.full((len(labels), length), PAD)
    targets = torch.full((len(labels), length), IGNORED_LABEL)
    for row, (context, label) in enumerate(zip(contexts, labels, strict=True)):
        input_ids[row, :context] = torch.randint(3, VOCABULARY, (context,), generator=draw)
        words = torch.randint(3, VOCABULARY, (label,), generator=draw)
        words[label - 1 :] = END
        read = torch.cat([torch.tensor([END] * front + [START]), words[:-1]]) if label else torch.tensor([], dtype=int)
        decoder_input_ids[row, : len(read)] = read
        targets[row, front : front + label] = words
    mask = (input_ids != PAD).long()
    return Batch.of(Tokens(input_ids, mask), decoder_input_ids, targets)


def rows_of(batch: Batch, rows) -> Batch:
    """Some examples of a batch, in that order, padding kept."""
    return batch.each(lambda tensor: tensor[rows])


def tiny_features(batch: Batch, layers: dict[Stack, int], *, width=6, heads=2, head_size=3, vocabulary=11, seed=0):
    """Random features of every kind for a batch: leaves that gather gradients."""
    draw = torch.Generator().manual_seed(seed)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw).requires_grad_()

    examples = len(batch)
    lengths = {Stack.ENCODER: batch.inputs.length, Stack.DECODER: batch.labels.shape[1]}

    def query_key(kind: AttentionKind) -> QueryKey:
        keys = lengths[Stack.DECODER if kind is AttentionKind.DECODER_SELF else Stack.ENCODER]
        shape = (examples, heads)
        query, key = leaf(*shape, lengths[kind.query_stack], head_size), leaf(*shape, keys, head_size)
        return QueryKey(query, key, head_size**-0.5)

    return Features(
        logits=leaf(examples, lengths[Stack.DECODER], vocabulary),
        encoder_output=leaf(examples, lengths[Stack.ENCODER], width),
        embeddings={stack: leaf(examples, lengths[stack], width) for stack in Stack},
        hidden={(stack, n): leaf(examples, lengths[stack], width) for stack in Stack for n in range(layers[stack])},
        attention={(kind, n): query_key(kind) for kind in AttentionKind for n in range(layers[kind.query_stack])},
    )


def map_features(features: Features, change) -> Features:
    """The same features with `change(stack, tensor)` applied to each tensor [B, ..., positions of that stack, x]."""

    def of_pair(kind: AttentionKind, pair: QueryKey) -> QueryKey:
        keys = Stack.DECODER if kind is AttentionKind.DECODER_SELF else Stack.ENCODER
        return replace(pair, query=change(kind.query_stack, pair.query), key=change(keys, pair.key))

    return Features(
        logits=change(Stack.DECODER, features.logits),
        encoder_output=change(Stack.ENCODER, features.encoder_output),
        embeddings={stack: change(stack, x) for stack, x in features.embeddings.items()},
        hidden={(stack, n): change(stack, x) for (stack, n), x in features.hidden.items()},
        attention={(kind, n): of_pair(kind, pair) for (kind, n), pair in features.attention.items()},
    )


@pytest.fixture(scope="session")
def tiny() -> SimpleNamespace:
    """The helpers of this file."""
    return SimpleNamespace(
        config=tiny_config, model=tiny_model, batch=tiny_batch, rows=rows_of, features=tiny_features,
        map_features=map_features, PAD=PAD, START=START, END=END, VOCABULARY=VOCABULARY,
    )  # fmt: skip


@pytest.fixture(params=["blenderbot", "bart"])
def family(request) -> str:
    """Both families."""
    return request.param


@pytest.fixture
def folders(tmp_path, tiny):
    """Makes teacher folders and students from them: teacher 2 + 4 layers, student 1 + 2."""

    def teacher(family: str, **config) -> Path:
        folder = tmp_path / f"teacher-{len(list(tmp_path.iterdir()))}"
        tiny.model(family, **({"decoder_layers": 4} | config)).save_pretrained(folder)
        return folder

    def student(family: str, folder: Path | Checkpoint, maps=((1,), (0, 2)), norms=True, seed=0, **sizes):
        files = folder if isinstance(folder, Checkpoint) else Checkpoint(folder)
        own = Sizes(**({"encoder_layers": len(maps[0]), "decoder_layers": len(maps[1])} | sizes))
        config = student_config(type(tiny.config(family)).from_pretrained(files.folder), own)
        by_stack = dict(zip((Stack.ENCODER, Stack.DECODER), maps, strict=True))
        return build_student(family_named(family), config, TeacherLayers(files, by_stack, norms), seed)

    return SimpleNamespace(
        teacher=teacher,
        student=student,
        tensors=teacher_folders.tensors_of,
        shards=teacher_folders.as_shards,
        pickle=teacher_folders.as_pickle,
        TIED=teacher_folders.TIED,
    )

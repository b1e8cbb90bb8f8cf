"""ParlAI's model options as an architecture that Hugging Face has, or the reason why it has none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from transformers import BartConfig, BlenderbotConfig, GenerationConfig, PretrainedConfig

from distill_engine.interop.parlai.options.errors import ParlaiError, shown

Agent = Literal["generator", "bart"]

# --model names whose networks are these two; the distillation agents' students are plain ones once projections go.
AGENTS: dict[str, Agent] = {
    "transformer/generator": "generator",
    "parlai.agents.transformer.transformer:TransformerGeneratorAgent": "generator",
    "projects.anti_scaling.distillation:DistillTransformerAgent": "generator",
    "projects.anti_scaling.distillation:DistillNarrowTransformerAgent": "generator",
    "bart": "bart",
    "parlai.agents.bart.bart:BartAgent": "bart",
    "projects.anti_scaling.distillation:DistillBartAgent": "bart",
    "projects.anti_scaling.distillation:DistillNarrowBartAgent": "bart",
}
VARIANTS: dict[Agent, str] = {"generator": "prelayernorm", "bart": "bart"}
FAMILIES: dict[Agent, str] = {"generator": "blenderbot", "bart": "bart"}
PARLAI_MODELS: dict[Agent, str] = {"generator": "transformer/generator", "bart": "bart"}

PAD, START, END, UNKNOWN = range(4)  # ParlAI's dictionaries begin with these


@dataclass(frozen=True)
class Architecture:
    """What both sides need to know about a network; names are ParlAI's."""

    agent: Agent
    embedding_size: int
    ffn_size: int
    n_heads: int
    n_encoder_layers: int
    n_decoder_layers: int
    n_positions: int
    activation: str
    embeddings_scale: bool
    dropout: float
    attention_dropout: float
    relu_dropout: float

    @property
    def family(self) -> str:
        """Hugging Face's model_type."""
        return FAMILIES[self.agent]

    def config(self, vocabulary: int) -> PretrainedConfig:
        """The same network for transformers, with ParlAI's ids."""
        kind = BlenderbotConfig if self.agent == "generator" else BartConfig
        return kind(
            vocab_size=vocabulary,
            d_model=self.embedding_size,
            encoder_layers=self.n_encoder_layers,
            decoder_layers=self.n_decoder_layers,
            encoder_ffn_dim=self.ffn_size,
            decoder_ffn_dim=self.ffn_size,
            encoder_attention_heads=self.n_heads,
            decoder_attention_heads=self.n_heads,
            max_position_embeddings=self.n_positions,
            activation_function=self.activation,
            scale_embedding=self.embeddings_scale,
            dropout=self.dropout,
            attention_dropout=self.attention_dropout,
            activation_dropout=self.relu_dropout,
            pad_token_id=PAD,
            bos_token_id=START,
            eos_token_id=END,
            decoder_start_token_id=START if self.agent == "generator" else END,
            forced_eos_token_id=END,
        )


def architecture_of(options: Mapping[str, Any], source: str) -> Architecture:
    """The architecture that the options of a model describe; `source` names their file in messages.

    Raises ParlaiError with every option that Blenderbot and BART in transformers cannot represent exactly.
    """
    name = options.get("model")
    if not isinstance(name, str) or name not in AGENTS:
        raise ParlaiError(
            f"{source}: model is {shown(name)}. These can be converted exactly: {', '.join(AGENTS)}. "
            "If the network is one of these, write its name there."
        )
    agent = AGENTS[name]
    problems = [text for rule in _RULES for text in rule(options, agent)]
    if problems:
        raise ParlaiError("\n  ".join([f"{source}: this model has no exact counterpart in transformers:", *problems]))
    return Architecture(
        agent=agent,
        embedding_size=options["embedding_size"],
        ffn_size=options["ffn_size"],
        n_heads=options["n_heads"],
        n_encoder_layers=_layers(options, "n_encoder_layers"),
        n_decoder_layers=_layers(options, "n_decoder_layers"),
        n_positions=positions_of(options),
        activation=options["activation"],
        embeddings_scale=options["embeddings_scale"],
        dropout=float(options.get("dropout") or 0.0),
        attention_dropout=float(options.get("attention_dropout") or 0.0),
        relu_dropout=float(options.get("relu_dropout") or 0.0),
    )


def positions_of(options: Mapping[str, Any]) -> int:
    """Rows of the position tables: n_positions, else the longest truncation, else 1024 (ParlAI's rule)."""
    truncations = (options.get(name) or 0 for name in ("truncate", "text_truncate", "label_truncate"))
    return int(options.get("n_positions") or max(*truncations, 0) or 1024)


def _layers(options: Mapping[str, Any], name: str) -> int:
    own = options.get(name)
    return own if isinstance(own, int) and own > 0 else int(options["n_layers"])


Rule = Callable[[Mapping[str, Any], Agent], Iterator[str]]


def _variant(options: Mapping[str, Any], agent: Agent) -> Iterator[str]:
    """Where the layer norms are."""
    variant, needed = options.get("variant", "aiayn"), VARIANTS[agent]
    if variant == needed:
        return
    reasons = {
        "xlm": "xlm normalises decoder embeddings before positions are added, which neither Blenderbot nor BART does",
        "aiayn": "aiayn has no norm around its stacks; Blenderbot and BART always have one",
        "bart": "this norm order with a decoder that starts with START alone is not how BART reads",
        "prelayernorm": "this norm order with a decoder that starts with END, START is not how Blenderbot reads",
    }
    why = reasons.get(str(variant), "this norm order is not known")
    yield f"variant is {shown(variant)}; a {PARLAI_MODELS[agent]} model can be converted with {needed}: {why}."


def _fixed_values(options: Mapping[str, Any], _: Agent) -> Iterator[str]:
    """Options with one value that Blenderbot and BART have."""
    fixed: dict[str, tuple[Any, Any, str]] = {
        "n_segments": (0, 0, "they have no segment embeddings"),
        "output_scaling": (1.0, 1.0, "they do not scale the encoder's output"),
        "dict_class": (
            "parlai.core.dict:DictionaryAgent",
            "parlai.core.dict:DictionaryAgent",
            "other dictionaries number their tokens otherwise",
        ),
    }
    for name, (default, needed, why) in fixed.items():
        value = options.get(name, default)
        if value is not None and value != needed:
            yield f"{name} is {shown(value)}; only {shown(needed)} can be converted: {why}."


def _activation(options: Mapping[str, Any], _: Agent) -> Iterator[str]:
    if options.get("activation") not in ("gelu", "relu"):
        yield f"activation is {shown(options.get('activation'))}; gelu (the exact one) and relu can be converted."


def _scale(options: Mapping[str, Any], _: Agent) -> Iterator[str]:
    if not isinstance(options.get("embeddings_scale"), bool):
        yield (
            f"embeddings_scale is {shown(options.get('embeddings_scale'))}; it has to be true or false, since without "
            "it ParlAI's decoder scales and its encoder does not."
        )


def _sizes(options: Mapping[str, Any], _: Agent) -> Iterator[str]:
    needed = ["embedding_size", "ffn_size", "n_heads"]
    own = [options.get(name) for name in ("n_encoder_layers", "n_decoder_layers")]
    if not all(isinstance(value, int) and value > 0 for value in own):
        needed.append("n_layers")
    wrong = [name for name in needed if not isinstance(options.get(name), int) or options[name] <= 0]
    for name in wrong:
        yield f"{name} is {shown(options.get(name))}; it has to be a positive whole number."
    if not wrong and options["embedding_size"] % options["n_heads"]:
        yield f"embedding_size is {options['embedding_size']}, which n_heads {options['n_heads']} does not divide."


_RULES: tuple[Rule, ...] = (_variant, _fixed_values, _activation, _scale, _sizes)


def generation_of(options: Mapping[str, Any], agent: Agent) -> GenerationConfig:
    """How ParlAI would generate with these options, as far as transformers has the same method.

    ParlAI never predicts START in generators, so it is suppressed; a bart decoder is made to begin with it.
    Length penalties: ParlAI divides by ((1 + n) / 6) ** a, transformers by n ** a.
    """
    method = options.get("inference", "greedy")
    chosen: dict[str, Any] = {"do_sample": method in ("topk", "nucleus"), "num_beams": 1}
    if method == "beam":
        chosen |= {"num_beams": options.get("beam_size") or 1}
        chosen |= {"length_penalty": options.get("beam_length_penalty", 0.65)} if chosen["num_beams"] > 1 else {}
    if method in ("topk", "nucleus"):
        chosen |= {"temperature": options.get("temperature", 1.0)}
        chosen |= {"top_k": options.get("topk", 10)} if method == "topk" else {"top_p": options.get("topp", 0.9)}
        chosen |= {"top_k": 0} if method == "nucleus" else {}
    blocks = {"no_repeat_ngram_size": "beam_block_ngram", "encoder_no_repeat_ngram_size": "beam_context_block_ngram"}
    chosen |= {ours: options[theirs] for ours, theirs in blocks.items() if (options.get(theirs) or 0) > 0}
    if (options.get("beam_min_length") or 0) > 1:
        chosen["min_new_tokens"] = options["beam_min_length"]
    length = options.get("label_truncate") or options.get("truncate") or 0
    return GenerationConfig(
        **chosen,
        max_new_tokens=length if length > 0 else 256,
        pad_token_id=PAD,
        bos_token_id=START,
        eos_token_id=END,
        decoder_start_token_id=START if agent == "generator" else END,
        forced_bos_token_id=START if agent == "bart" else None,
        suppress_tokens=[START] if agent == "generator" else None,
    )


def generation_options(config: GenerationConfig) -> dict[str, Any]:
    """The inverse of `generation_of`: ParlAI options for a model's generation config."""
    beams, sampled = config.num_beams or 1, bool(config.do_sample)
    nucleus = sampled and config.top_p is not None and config.top_p < 1.0
    method = "nucleus" if nucleus else "topk" if sampled else "beam" if beams > 1 else "greedy"
    shortest = config.min_new_tokens or config.min_length or 1
    found = {
        "inference": method,
        "beam_size": beams,
        "beam_min_length": max(1, shortest),
        "beam_block_ngram": config.no_repeat_ngram_size or -1,
        "beam_context_block_ngram": config.encoder_no_repeat_ngram_size or -1,
    }
    if method == "beam" and config.length_penalty is not None:
        found["beam_length_penalty"] = config.length_penalty
    if sampled:
        found |= {"temperature": config.temperature if config.temperature is not None else 1.0}
        found |= {"topp": config.top_p} if nucleus else {"topk": config.top_k or 50}
    return found

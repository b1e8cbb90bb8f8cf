"""The recipe's section on losses. No torch: recipes and the launcher read it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field, RootModel, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from distill_engine.losses.divergences.protocol import Divergence
from distill_engine.losses.terms.protocol import Term
from distill_engine.recipe.section import Fraction, NonNegative, Positive, PositiveInt, Section, name_of
from distill_engine.registry import load, names
from distill_engine.values import AttentionKind, FeatureRequest, Stack

LayerMapName = Literal["parlai", "uniform", "first_last", "first"]
LayerMap = LayerMapName | list[int]


def all_terms() -> list[Term]:
    """Every registered term, in the registry's order."""
    return [load("terms", name) for name in names("terms")]


def _weight_name(name: str) -> str:
    if name not in LossWeights.fields():
        raise PydanticCustomError("extra_forbidden", "there is no term with this weight")
    return name


class LossWeights(RootModel[dict[str, float]]):
    """Coefficient of every loss term, by the names that registered terms read. At 0 a term is neither captured nor
    computed. Some names weigh two terms, one of the encoder and one of the decoder, as ParlAI's do."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    root: dict[Annotated[str, AfterValidator(_weight_name)], NonNegative] = Field(
        default_factory=dict, validate_default=True
    )

    @field_validator("root", mode="after")
    @classmethod
    def _complete(cls, given: dict[str, float]) -> dict[str, float]:
        return {name: given.get(name, field.default) for name, field in cls.fields().items()}

    @classmethod
    def fields(cls) -> dict[str, FieldInfo]:
        """The names, what is their default and what they weigh."""
        found: dict[str, FieldInfo] = {}
        for term in all_terms():
            held = found.get(term.weight)
            meaning = term.meaning if held is None else f"{held.description}; {term.meaning}"
            found[term.weight] = FieldInfo(annotation=float, default=term.default, description=meaning)
        return found

    def __getitem__(self, name: str) -> float:
        """The weight of this name."""
        return self.root[name]

    @property
    def terms(self) -> list[Term]:
        """Those with a weight, in the registry's order."""
        return [term for term in all_terms() if self.root[term.weight] != 0]

    @property
    def per_term(self) -> dict[str, float]:
        """Weight of every single term, in the registry's order, zeros left out."""
        return {term.name: self.root[term.weight] for term in self.terms}

    @property
    def needs_teacher(self) -> bool:
        """Whether any term compares with a teacher."""
        return any(term.distils for term in self.terms)

    def request(
        self, layers: Mapping[Stack, Sequence[int]], *, of_teacher: bool = False, idle: Collection[str] = ()
    ) -> FeatureRequest:
        """All that these terms look at in a model in which these layers are compared; logits where one insists.

        `of_teacher`: only what is compared with a teacher; `idle`: names of terms that look at nothing.
        """
        compared = {stack: tuple(numbers) for stack, numbers in layers.items()}
        asking = (term for term in self.terms if (term.distils or not of_teacher) and term.name not in idle)
        return _together(term.needs(compared) for term in asking)


def _together(requests: Iterable[FeatureRequest]) -> FeatureRequest:
    """All that any of them asks for; logits only where one does."""
    hidden: dict[Stack, tuple[int, ...]] = {}
    attention: dict[AttentionKind, tuple[int, ...]] = {}
    logits = head = encoder_output = False
    embeddings: frozenset[Stack] = frozenset()
    for one in requests:
        logits, head = logits or one.logits, head or one.head
        encoder_output, embeddings = encoder_output or one.encoder_output, embeddings | one.embeddings
        for stack, layers in one.hidden.items():
            hidden[stack] = tuple(sorted({*hidden.get(stack, ()), *layers}))
        for kind, layers in one.attention.items():
            attention[kind] = tuple(sorted({*attention.get(kind, ()), *layers}))
    return FeatureRequest(logits, head, encoder_output, embeddings, hidden, attention)


class DecoderWeights(LossWeights):
    """Those of a student whose encoder is frozen: what looks at the encoder alone is no term."""

    @property
    def terms(self) -> list[Term]:
        """Those with a weight, in the registry's order."""
        return [term for term in super().terms if not of_encoder(term)]

    @property
    def idle(self) -> list[str]:
        """Names whose weight is of no term."""
        used = {term.weight for term in self.terms}
        return [name for name, weight in self.root.items() if weight != 0 and name not in used]


def of_encoder(term: Term) -> bool:
    """Whether a term looks at the encoder and at nothing else."""
    asked = term.needs(dict.fromkeys(Stack, (0,)))
    stacks = {*asked.embeddings, *asked.hidden, *(kind.query_stack for kind in asked.attention)}
    seen = stacks | ({Stack.ENCODER} if asked.encoder_output else set())
    return term.operand != "logits" and seen == {Stack.ENCODER}


KernelChoice = Literal["auto", "fused", "reference"]


class KernelsSection(Section):
    """Which implementation computes the losses; all give the same numbers.

    fused: never builds the big matrices (Triton on GPUs, blocks in PyTorch on CPUs); reference: whole matrices;
    auto: fused wherever it pays.
    """

    attention: KernelChoice = Field("auto", description="Self- and cross-attention terms.")
    hidden: KernelChoice = Field("auto", description="Encoder, embedding and hidden terms with their projections.")
    prediction: KernelChoice = Field("auto", description="Task and prediction terms with the output embeddings.")


BALANCED_BY_GRADIENT = ("gradient_alignment", "gradient_norm")  # values of losses.balance that measure gradients


class LossesSection(Section):
    """What is minimised."""

    definition: Literal["parlai", "invariant"] = Field(
        "invariant",
        description="invariant: sums over valid elements / global counts, independent of padding, split and ranks; "
        "parlai: ParlAI's numbers (means per micro-batch and rank, padded keys counted).",
    )
    weights: LossWeights = Field(default_factory=lambda: LossWeights())
    balance: Literal["none", "initial_scale", "gradient_norm", "gradient_alignment"] = Field(
        "none",
        description="Others than none: weights are importances; each is multiplied by a factor that makes its term "
        "begin as large as the task term, pull as hard, or as far as it agrees with prediction (docs/balancing.md).",
    )
    balance_start_steps: PositiveInt = Field(20, description="initial_scale: factors come from the first N steps.")
    balance_every_steps: PositiveInt = Field(200, description="By gradient: factors are updated every N steps.")
    balance_smoothing: Fraction = Field(0.7, description="By gradient: share of the old in each new average.")
    balance_limit: Annotated[float, Field(ge=1)] = Field(100.0, description="Largest factor; the smallest is 1e-6.")
    feature_steps: PositiveInt | None = Field(
        None,
        description="Terms that compare features (all but those of logits) fade: their weights fall linearly to 0 over "
        "the first N steps; null: they stay (docs/losses.md).",
    )
    divergence: Annotated[str, name_of("divergences")] = Field(
        "forward_kl", description="From the teacher's next-token distribution; `distill list divergences` has them."
    )
    divergence_options: dict[str, float] = Field(
        default_factory=dict, description="Of that divergence, such as jensen_shannon's beta (docs/losses.md)."
    )
    temperature: Positive = Field(1.0, description="Softmax temperature of the prediction term (times T squared).")
    clamp: Positive | None = Field(
        65504.0, description="Largest squared error of one element (embedding, hidden, attention); null: no clamp."
    )
    encoder_layer_map: LayerMap = Field("parlai", description="Teacher layer that supervises each encoder layer.")
    decoder_layer_map: LayerMap = Field("parlai", description="Teacher layer that supervises each decoder layer.")
    kernels: KernelsSection = Field(default_factory=lambda: KernelsSection(), description="Who computes the losses.")

    @field_validator("divergence_options", mode="after")
    @classmethod
    def _known_options(cls, given: dict[str, float], info: ValidationInfo) -> dict[str, float]:
        name = info.data.get("divergence")
        if not given or name is None:  # a wrong name is a problem of its own
            return given
        options = load("divergences", name).Options
        try:
            options.model_validate(given)
        except ValidationError as error:
            found = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
            known = ", ".join(options.model_fields) or "none"
            said = f"it should fit {name}, whose options are: {known}. {found}"
            raise PydanticCustomError("divergence_options", "{said}", {"said": said}) from error
        return given

    @property
    def measure(self) -> Divergence:
        """The divergence with its options. It may bring torch where it is not one of ours."""
        found: Divergence = load("divergences", self.divergence).configured(self.divergence_options)
        return found

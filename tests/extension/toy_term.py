"""A loss term that the package does not know: one minus the cosine of the encoder's output."""

from distill_engine.losses.terms.protocol import Term
from distill_engine.registry import register
from distill_engine.values import FeatureRequest, Projected


class Cosine(Term):
    """Direction alone, whatever the length."""

    name, weight, meaning, operand = "encoder_cosine", "cosine", "1 - cosine of the encoder's output", "vectors"

    def needs(self, layers):
        return FeatureRequest(logits=False, encoder_output=True)

    def sum(self, student, teacher, batch, kernels):
        from torch.nn.functional import cosine_similarity

        own = student.encoder_output
        own = own.tensor() if isinstance(own, Projected) else own
        return (1 - cosine_similarity(own.float(), teacher.encoder_output.float(), dim=-1))[batch.context_mask].sum()

    def count(self, counts):
        return counts.contexts


COSINE = Cosine()
register("terms", "encoder_cosine", "toy_term:COSINE")

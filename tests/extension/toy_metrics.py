"""Two metrics that the package does not know: how sure the student is of labels, and how many vowels it says."""

from distill_engine.metrics.protocol import TextMetric, TokenMetric
from distill_engine.registry import register


class Sureness(TokenMetric):
    """The mean probability of a label."""

    name, unit, better, meaning = "sureness", "share", "max", "mean probability of a label token"

    def sums(self, scores):
        probabilities = (-scores.student.loss.double()).exp() * scores.batch.label_mask
        return probabilities.sum(dim=1), scores.tokens

    def value(self, sums):
        return sums[0] / sums[1]


class Vowels(TextMetric):
    """The share of vowels; the fewer the better."""

    name, unit, better, meaning = "vowels", "share", "min", "vowels among a reply's letters"

    def value(self, hypotheses, references):
        assert len(hypotheses) == len(references)
        text = "".join(hypotheses)
        return sum(letter in "aeiou" for letter in text) / max(len(text), 1)


SURENESS, VOWELS = Sureness(), Vowels()
register("metrics", "sureness", "toy_metrics:SURENESS")
register("metrics", "vowels", "toy_metrics:VOWELS")

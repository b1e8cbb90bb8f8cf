"""A teacher that the package does not know: a table of which token follows which. No model is in memory."""

import torch

from distill_engine.registry import register
from distill_engine.teachers.protocol import Teacher
from distill_engine.values import Features


class Bigrams(Teacher):
    """Next-token logits by the token before; counts how often it was asked."""

    provides = frozenset({"logits"})

    def __init__(self, vocabulary, device):
        draws = torch.Generator().manual_seed(7)
        self.table = torch.randn(vocabulary, vocabulary, generator=draws).to(device)
        self.identity = {"bigrams": 7}
        self.asked = 0

    def features(self, group, request):
        for batch in group:
            self.asked += 1
            yield Features(logits=self.table[batch.decoder_input_ids])

    def state_dict(self):
        return {"asked": self.asked}

    def load_state_dict(self, state):
        self.asked = state["asked"]


class Source:
    meaning = "a table of which token follows which"

    def open(self, parts):
        return Bigrams(parts.vocabulary, parts.device)


BIGRAMS = Source()
register("teachers", "bigrams", "toy_teacher:BIGRAMS")

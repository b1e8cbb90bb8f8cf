"""The latency protocol: equal work for all models, interleaved, warm-up thrown away, honest summaries."""

import pytest
import torch

from distill_engine import latency
from distill_engine.latency import measure_latency
from distill_engine.models.adapter import adapt


class Clock:
    """Time that passes only when a model works."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def perf_counter(self) -> float:
        return self.seconds


class Talker:
    """Takes the seconds it is told to, one reply after the other."""

    def __init__(self, name: str, clock: Clock, log: list, seconds: list[float]) -> None:
        self.name, self.clock, self.log, self.seconds = name, clock, log, list(seconds)

    def generate(self, *, input_ids, attention_mask, **options):
        self.log.append((self.name, int(input_ids[0, 0]), options))
        assert torch.is_inference_mode_enabled() and (attention_mask == 1).all()
        self.clock.seconds += self.seconds.pop(0)


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(latency, "time", clock)
    return clock


def contexts(count: int) -> list[torch.Tensor]:
    return [torch.full((1, 4), n) for n in range(count)]


def test_warm_up_is_left_out_and_models_take_turns(clock):
    log: list = []
    warm, slow = [9.0, 9.0], [0.03, 0.01, 0.02, 0.05, 0.04, 0.06]
    plan = {"teacher": warm + slow, "student": [1.0] * 8}
    models = {name: Talker(name, clock, log, seconds) for name, seconds in plan.items()}
    result = measure_latency(models, contexts(8), new_tokens=4, warm_up=2)
    assert [(name, context) for name, context, _ in log] == [(m, c) for c in range(8) for m in models]
    teacher = result["teacher"]
    assert teacher.median_ms == pytest.approx(35.0)
    assert (teacher.p20_ms, teacher.p80_ms) == pytest.approx((20.0, 50.0))
    assert teacher.tokens_per_second == pytest.approx(4 / 0.035)
    assert result["student"].median_ms == pytest.approx(1000.0)


def test_every_reply_has_the_same_length_and_is_greedy(clock):
    log: list = []
    measure_latency({"m": Talker("m", clock, log, [1.0] * 2)}, contexts(2), new_tokens=7, warm_up=1)
    for _, _, options in log:
        assert options["min_new_tokens"] == options["max_new_tokens"] == 7
        assert options["num_beams"] == 1 and options["do_sample"] is False


def test_too_few_contexts_are_refused(clock):
    with pytest.raises(ValueError, match="3 contexts for 3 warm-up replies: give more contexts"):
        measure_latency({}, contexts(3), warm_up=3)


def test_real_models_say_exactly_that_many_tokens(family, tiny, monkeypatch):
    """Whatever the generation config wants: beams, short replies, a forced end."""
    model = tiny.model(family)
    adapt(model)
    model.generation_config.update(num_beams=3, max_length=4, forced_eos_token_id=2, no_repeat_ngram_size=1)
    replies = []
    generate = model.generate

    def keep(**options):
        replies.append(generate(**options))
        return replies[-1]

    monkeypatch.setattr(model, "generate", keep)
    given = [torch.randint(3, tiny.VOCABULARY, (1, length)) for length in (3, 5)]
    result = measure_latency({"student": model}, given, new_tokens=9, warm_up=1)
    assert [reply.shape for reply in replies] == [(1, 10), (1, 10)]  # and the start token
    assert 0 < result["student"].p20_ms <= result["student"].median_ms <= result["student"].p80_ms

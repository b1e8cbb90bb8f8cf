"""The latency protocol: equal work for all models, interleaved, warm-up thrown away, honest summaries."""

import shutil

import pytest
import torch
from transformers import BartConfig

from distill_engine.evaluate import latency
from distill_engine.evaluate.latency import CompileError, measure, measure_latency, unsupported
from distill_engine.evaluate.latency_rows import Case, Timing, rows
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
        self.config = BartConfig(max_position_embeddings=64)

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
    turns = [("teacher", "student"), ("student", "teacher")]  # each round begins with the next one
    assert [(name, context) for name, context, _ in log] == [(m, c) for c in range(8) for m in turns[c % 2]]
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


# ---- many cases --------------------------------------------------------------------------------------------------


def test_every_round_times_every_case_on_every_model(clock):
    log: list = []
    models = {name: Talker(name, clock, log, [1.0] * 20) for name in ("teacher", "student")}
    cases = [Case("fixed", 1), Case("fixed", 4, kv_cache=False)]
    timings = measure(models, cases, contexts(5), rounds=2, warm_up=1, new_tokens=6)
    order = [(name, options["num_beams"], options["use_cache"], context) for name, context, options in log]
    turns = [("teacher", "student"), ("student", "teacher"), ("teacher", "student")]
    assert order == [(m, c.beams, c.kv_cache, r) for r in range(3) for c in cases for m in turns[r]]
    assert {key: len(values) for key, values in timings.items()} == {(m, c): 2 for c in cases for m in models}
    assert all(one.seconds == 1.0 and one.tokens == 6 for values in timings.values() for one in values)


def test_contexts_are_padded_into_batches_and_come_round_again(family, tiny, monkeypatch):
    model = tiny.model(family)
    seen = []
    generate = model.generate

    def keep(**options):
        seen.append((options["input_ids"].clone(), options["attention_mask"].clone()))
        return generate(**options)

    monkeypatch.setattr(model, "generate", keep)
    given = [torch.full((1, length), length) for length in (2, 4, 3)]
    measure({"m": model}, [Case("fixed", 2, batch=2)], given, rounds=2, warm_up=0, new_tokens=3)
    first, second = seen
    assert first[0].tolist() == [[2, 2, tiny.PAD, tiny.PAD], [4, 4, 4, 4]]
    assert first[1].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert second[0].tolist() == [[3, 3, 3], [2, 2, tiny.PAD]]


def test_free_replies_are_counted_to_their_end(family, tiny, monkeypatch):
    """Two rows of known ids behind the start token: 3 and 5 tokens, end token included."""
    model, end, pad = tiny.model(family), tiny.END, tiny.PAD
    said = torch.tensor([[9, 7, 8, end, pad, pad], [9, 7, 7, 7, 7, end]])
    asked = []
    monkeypatch.setattr(model, "generate", lambda **options: asked.append(options) or said)
    model.generation_config.update(no_repeat_ngram_size=3)
    found = measure({"m": model}, [Case("free", 4, 2)], contexts(2), rounds=1, warm_up=0, new_tokens=5)
    assert found["m", Case("free", 4, 2)][0].tokens == 8
    assert asked[0]["num_beams"] == 4 and asked[0]["max_new_tokens"] == 5
    assert "no_repeat_ngram_size" not in asked[0]  # the model's own stays


def test_rows_say_how_and_how_fast(tiny):
    model = tiny.model("bart")
    case = Case("free", 1, batch=2)
    timings = {("m", case): [Timing(seconds / 100, 10, extra_mib=seconds) for seconds in range(1, 102)]}
    (row,) = rows({"m": model}, timings)
    assert (row.wait_ms_p20, row.wait_ms_p80) == pytest.approx((210.0, 810.0))
    assert (row.wait_ms_p50, row.wait_ms_p90, row.wait_ms_p99) == pytest.approx((510.0, 910.0, 1000.0))
    assert row.ms_per_reply == pytest.approx(255.0) and row.new_tokens == 5.0
    assert row.tokens_per_second == pytest.approx(1010 / 51.51)
    assert row.parameters == sum(p.numel() for p in model.parameters())
    assert row.weights_mib == pytest.approx(row.parameters * 4 / 2**20)
    assert row.peak_mib == pytest.approx(row.weights_mib + 101)
    assert (row.dtype, row.attention, row.device, row.rounds) == ("float32", "sdpa", "cpu", 101)


def test_a_compiled_twin_shares_weights_and_leaves_the_model_alone(tiny, monkeypatch):
    model = tiny.model("bart")
    compiled = []
    settings = torch._dynamo.config
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, **how: compiled.append((self, how, settings.recompile_limit))
    )
    measure({"m": model}, [Case("fixed"), Case("fixed", compiled=True)], contexts(1), 1, 0, 2)
    ((twin, how, limit),) = compiled
    assert limit > 100 > settings.recompile_limit, "a shape too many would run uncompiled, and nobody would know"
    assert twin is not model and twin.model.shared.weight is model.model.shared.weight
    assert how == {"dynamic": True}


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_a_compiled_case_really_compiles_and_says_the_same(tiny, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    model = tiny.model("bart", encoder_layers=1, decoder_layers=1)
    said: list[list[int]] = []
    generate = type(model).generate
    monkeypatch.setattr(
        type(model), "generate", lambda self, **how: said.append(generate(self, **how).tolist()[0]) or said[-1]
    )
    compiled = Case("fixed", compiled=True)
    found = measure({"m": model}, [Case("fixed"), compiled], contexts(1), rounds=1, warm_up=1, new_tokens=3)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert said[0] == said[1] == said[2] == said[3]
    (row,) = rows({"m": model}, {("m", compiled): found["m", compiled]})
    assert row.compiled and row.new_tokens == 3
    torch.compiler.reset()


def test_a_model_that_cannot_be_compiled_here_is_refused_with_the_reason(tiny, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("No working C++ compiler found\nmore")

    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: setattr(self, "_compiled_call_impl", broken))
    model = tiny.model("bart")
    with pytest.raises(CompileError, match=r"--compile\) here: No working C\+\+ compiler found\. On a CPU it needs"):
        measure({"m": model}, [Case("fixed"), Case("fixed", compiled=True)], contexts(1), 1, 0, 2)
    monkeypatch.setattr(type(model), "generate", broken)
    with pytest.raises(RuntimeError, match="No working"):  # no fault of a compiler's: a defect keeps its traceback
        measure({"m": model}, [Case("fixed")], contexts(1), 1, 0, 2)


def test_what_a_device_cannot_do_is_said(monkeypatch):
    assert unsupported(torch.device("cpu"), torch.float32) is None

    def refuse(*_, **__):
        raise RuntimeError("\"layer_norm\" not implemented for 'Half'\nmore")

    monkeypatch.setattr(torch.nn.functional, "layer_norm", refuse)
    assert unsupported(torch.device("cpu"), torch.float16) == "\"layer_norm\" not implemented for 'Half'"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_memory_on_an_accelerator_is_weights_and_more(tiny):
    model = tiny.model("blenderbot").cuda()
    given = [context.cuda() for context in contexts(2)]
    timings = measure({"m": model}, [Case("fixed", 2)], given, rounds=1, warm_up=1, new_tokens=4)
    (row,) = rows({"m": model}, timings)
    assert row.peak_mib > row.weights_mib

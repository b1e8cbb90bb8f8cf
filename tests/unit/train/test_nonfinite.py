"""Numbers that are not finite are named by term, layer and rank, and do not spoil the averages of an interval."""

import math

import pytest
import torch

from distill_engine.losses.config import LossWeights
from distill_engine.losses.objective import Hits, Objective, TermValue
from distill_engine.telemetry.averages import Averages
from distill_engine.telemetry.metrics import describe
from distill_engine.train.decisions import TrainingError
from distill_engine.train.meter import Meter
from distill_engine.train.nonfinite import Found, LayerSearch, NonFinite, NonFiniteReport, Pace
from distill_engine.train.policies import Every
from distill_engine.values import Stack

NAN, INF = math.nan, math.inf


def value(total: float, *layers: float, count: float = 2.0) -> TermValue:
    return TermValue(torch.tensor(total, requires_grad=True), torch.tensor(count), torch.tensor(layers))


def one_rank(tensor):
    return tensor.clone()


class Gathered:
    """The process group seen from a rank whose fellows found something too."""

    def __init__(self, *others):
        self.others = others

    def gather(self, mine):
        return [mine, *self.others]


def test_what_is_not_finite_is_counted_and_taken_out():
    counted = NonFinite()
    sifted = counted.sift({"task": value(3.0), "decoder_hidden": value(NAN, 1.0, NAN, 5.0)})
    assert sifted.sums.tolist() == [3.0, 0.0, 1.0, 0.0, 5.0] and not sifted.sums.requires_grad
    assert sifted.finite.tolist() == [True, False, True, False, True]
    counted.sift({"task": value(-INF), "decoder_hidden": value(INF, INF, 1.0, 2.0)})
    counted.sift({"task": value(1.0), "decoder_hidden": value(2.0, 1.0, 1.0, 2.0)})
    expected = {"task": Found(0, 1), "decoder_hidden": Found(1, 1, (0, 1), 3)}
    assert counted.found() == expected
    assert counted.read(one_rank) == ({"task": 1, "decoder_hidden": 2}, 2)
    assert counted.found() == expected, "until the next interval begins"
    counted.sift({"task": value(1.0), "decoder_hidden": value(2.0, 1.0, 1.0, 2.0)})
    assert counted.found() == {} and counted.read(one_rank) == ({}, 0)


def test_nothing_counted_is_nothing_found():
    assert NonFinite().found() == {} and NonFinite().read(one_rank) == ({}, 0)


def metered(definition: str, tiny, totals: list[float], ranks=one_rank) -> dict[str, float]:
    objective = Objective(LossWeights(task=1, hidden=3), {Stack.ENCODER: (), Stack.DECODER: (0,)}, definition)
    meter = Meter(objective, Averages(), 1)
    batch = tiny.batch()
    hits = Hits(torch.tensor(4), torch.tensor(1), None)
    for total in totals:
        terms = {"task": value(4.0), "encoder_hidden": value(1.0), "decoder_hidden": value(total, total)}
        meter.add_micro_batch(batch, terms, hits, len(totals))
    meter.count_step()
    return meter.read(ranks, 1.0)


@pytest.mark.parametrize("definition", ["parlai", "invariant"])
def test_averages_are_those_of_the_micro_batches_that_were_finite(tiny, definition):
    values = metered(definition, tiny, [2.0, NAN, 6.0, INF])
    assert values["train/term/decoder_hidden/raw"] == values["train/term/decoder_hidden/layer/0"] == 2.0
    assert values["train/term/task/raw"] == 2.0
    assert values["train/total"] == pytest.approx(2.0 + 3 * 0.5 + 3 * 2.0)
    assert (values["train/nonfinite"], values["train/nonfinite/decoder_hidden"]) == (2.0, 2.0)
    assert "train/nonfinite/task" not in values
    assert all(describe(name) for name in values)
    healthy = metered(definition, tiny, [2.0, 6.0])
    assert healthy["train/nonfinite"] == 0.0 and "train/nonfinite/decoder_hidden" not in healthy


def test_a_term_that_was_never_finite_is_nan_and_so_is_the_total(tiny):
    values = metered("invariant", tiny, [NAN, INF])
    assert math.isnan(values["train/term/decoder_hidden/raw"]) and math.isnan(values["train/total"])
    assert math.isnan(values["train/term/decoder_hidden/weighted"])
    assert values["train/term/task/raw"] == 2.0 and values["train/nonfinite"] == 2.0


def test_counts_are_of_all_ranks(tiny):
    values = metered("invariant", tiny, [2.0, NAN], ranks=lambda tensor: tensor + tensor)
    assert values["train/nonfinite"] == values["train/nonfinite/decoder_hidden"] == 2.0
    assert values["train/term/decoder_hidden/raw"] == 1.0


# ---- what is said ----------------------------------------------------------------------------------------------------


def report(*others, said: list[str]) -> tuple[NonFinite, NonFiniteReport]:
    counted = NonFinite()
    return counted, NonFiniteReport(counted, Gathered(*others), said.append)


def test_a_skipped_step_names_terms_layers_and_ranks():
    said: list[str] = []
    other = {"decoder_hidden": Found(2, 1, (0, 1), 2), "prediction": Found(0, 1)}
    counted, told = report({}, other, said=said)
    counted.sift({"task": value(1.0), "decoder_hidden": value(NAN, 1.0, NAN)})
    told.after_step(7, False, None, 1.0, [])
    assert said == [
        "optimizer step 7 was skipped: not finite were decoder_hidden (layers 0, 1; NaN in 3 and inf in 1 micro-"
        "batches of ranks 0, 2); prediction (inf in 1 micro-batches of rank 2) (loss scale 1)"
    ]


def test_long_lists_are_cut():
    everything = {"decoder_hidden": Found(1, 0, tuple(range(12)), 24), "task": Found(1, 0)}
    whole = {"decoder_hidden": Found(1, 0, tuple(range(24)), 24)}
    text = report(*[everything] * 9, said=[])[1].named()
    assert "decoder_hidden (layers 0, 1, 2, 3 and 8 more; NaN in 9 micro-batches of ranks 1, 2, 3, 4 and 5 more" in text
    assert "(all 24 layers; NaN" in report(whole, said=[])[1].named()


def test_an_overflow_of_the_gradient_alone_is_said_as_such():
    said: list[str] = []
    told = report(said=said)[1]
    told.after_step(1, False, None, 65536.0, [])
    told.after_step(1000, True, INF, 1.0, [])
    told.after_step(1001, True, 3.0, 1.0, [])
    told.after_step(1002, True, None, 1.0, [])
    assert said == [
        "optimizer step 1 was skipped: all loss terms were finite, the gradient was not (loss scale 65536)",
        "optimizer step 1000 had a gradient norm of inf: all loss terms were finite, the gradient was not "
        "(loss scale 1)",
    ]


def test_alike_events_are_told_ever_more_seldom():
    pace = Pace()
    assert [n for n in range(1, 3000) if pace.due(n)] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 1536, 2048, 2560]
    assert pace.due(9000) and pace.due(9001) and not pace.due(9002)


class Layers:
    """A model with an overflow in some micro-batches, that counts its passes."""

    def __init__(self, *where: str):
        self.where, self.passes = where, 0

    def overflow(self, batch):
        self.passes += 1
        return self.where[batch]


def test_the_layer_where_it_began_is_looked_for_once_there_is_something_to_tell():
    said: list[str] = []
    counted, other = NonFinite(), {"teacher": ["", "decoder layer 4 of 6 is the first"], "student": ["", ""]}
    models = {"teacher": Layers("", ""), "student": Layers("", "encoder layer 1 of 2 is the first")}
    ranks = Gathered({"task": Found(1, 0)})
    of_search = Gathered(other)
    told = NonFiniteReport(counted, ranks, said.append, LayerSearch(models, of_search))
    told.after_step(1, True, 3.0, 1.0, [0, 1])
    assert models["teacher"].passes == models["student"].passes == 0, "nothing to tell"
    told.after_step(2, False, None, 8.0, [0, 1])
    assert models["teacher"].passes == models["student"].passes == 2, "all micro-batches, on every rank"
    assert said == [
        "optimizer step 2 was skipped: not finite were task (NaN in 1 micro-batches of rank 1). In the teacher decoder "
        "layer 4 of 6 is the first (rank 1); in the student encoder layer 1 of 2 is the first (rank 0) (loss scale 8)"
    ]
    told.after_step(3, False, None, 8.0, [0, 1])
    told.after_step(4, False, None, 8.0, [0, 1])
    assert models["student"].passes == 4, "as seldom as it is told"
    quiet = NonFiniteReport(counted, Gathered({}), said.append, LayerSearch(models, of_search))
    quiet.after_step(1, False, None, 8.0, [0, 1])
    assert models["student"].passes == 4 and "the gradient was not" in said[-1], "the usual loss-scale skip"


# ---- in the loop -----------------------------------------------------------------------------------------------------


class Spoilt:
    """A student that gives NaN from an attempt on, and whose engine skips the step then, as DeepSpeed does."""

    def __init__(self, run, since: int, until: int):
        self.run, self.attempts = run, range(since, until)
        self.show, run.student.features = run.student.features, self.features
        run.student.skipped_attempts = set(self.attempts)

    def features(self, batch, request):
        features = self.show(batch, request)
        if self.run.student.attempts + 1 in self.attempts:
            features.logits.data[:] = NAN
        return features


def test_the_error_after_too_many_skipped_steps_names_the_terms(toy):
    run = toy(max_steps=9, max_skipped_steps=3, log=Every(steps=1))
    Spoilt(run, 3, 99)
    with pytest.raises(TrainingError, match=r"not finite were task \(NaN in 6 micro-batches of rank 0\); prediction"):
        run.trainer.run()
    assert [text.split(":")[0] for text in run.sinks.messages] == [
        "optimizer step 3 was skipped", "optimizer step 4 was skipped"
    ]  # fmt: skip


def test_a_run_that_recovers_records_how_much_was_left_out(toy):
    run = toy(max_steps=4, log=Every(steps=2))
    Spoilt(run, 2, 3)
    run.trainer.run()
    values = [values for _, _, values in run.records("train")]
    assert [v["train/nonfinite"] for v in values] == [2, 0]
    assert all(math.isfinite(number) for v in values for number in v.values())
    told = [text for text in run.sinks.messages if "left out of the averages" in text]
    assert told == [
        "2 micro-batches up to step 3 are left out of the averages of their loss terms: not finite were task (NaN in 2 "
        "micro-batches of rank 0); prediction (NaN in 2 micro-batches of rank 0)"
    ]

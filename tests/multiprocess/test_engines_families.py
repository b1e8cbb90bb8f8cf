"""Every family on two ranks, copied and narrow, on tiny models with the published configurations' oddities."""

import math

import pytest
import tiny_families
import torch
from transformers import AutoModelForSeq2SeqLM, AutoModelForSpeechSeq2Seq

WAYS = ("copied", "narrow")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", tiny_families.PUBLISHED)
def test_a_student_is_trained_resumed_and_exported(on_2_families, name, way):
    first, second = (rank[name, way] for rank in on_2_families("families.matrix"))
    assert max(first["teacher"], second["teacher"]) < 1e-5  # under ZeRO-3 as plain
    assert first["losses"] == second["losses"] and all(map(math.isfinite, first["losses"]))
    assert len(set(first["losses"])) == 3
    for one in (first, second):
        assert one["resumed"] and one["again"] == one["losses"][2]
    assert first["twin"]
    speaks = tiny_families.PUBLISHED[name][0] != "whisper"
    auto = AutoModelForSeq2SeqLM if speaks else AutoModelForSpeechSeq2Seq
    plain = auto.from_pretrained(first["export"]).eval()  # no code of this engine
    inputs = tiny_families.batch(name, seed=5).inputs
    with torch.no_grad():
        ids = plain.generate(**inputs.keywords)
    begun = int(speaks)  # the start token; Whisper's way leaves out all that stands before texts
    assert torch.equal(ids[:, begun:], first["ids"]), "plain transformers says something else on the export"
    assert ids.shape[1] > 2


@pytest.mark.parametrize("placement", ["zero3", "replica"])
def test_an_encoder_is_run_once_for_student_and_teacher(on_2_families, placement):
    """Losses are those of two models with an encoder each, and nothing of it is trained."""
    first, second = (rank[placement] for rank in on_2_families("families.shared"))
    assert first["losses"] == second["losses"] and len(set(first["losses"])) == 3
    assert first["losses"][0] == pytest.approx(first["apart"], rel=1e-5)
    for one in (first, second):
        assert one["runs"] == 4 * 2  # steps and micro-batches: of the student's encoder, none of the teacher's
        assert one["kept"] and one["resumed"] and one["again"] == one["losses"][2]
        assert one["trained"] == one["decoder"]
        assert one["one_copy"] == (placement == "replica")

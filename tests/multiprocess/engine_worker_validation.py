"""Validation over ranks."""

import tiny_models as tiny
from engine_worker_bench import Bench

from distill_engine.data.order.loader import ValidationLoader
from distill_engine.evaluate.validation import Validator
from distill_engine.families.shape import Sizes
from distill_engine.losses.kernels import prediction_blocks
from distill_engine.teachers.live import LiveTeacher

# With batches of 2 per rank: the last batch is short on one rank, and missing on one of two and two of three.
EXAMPLES = (9, 4)
SIZES = Sizes(encoder_layers=1, decoder_layers=2, width=16, ffn_width=32, dropout=0.5)


def loader(bench: Bench, family: str = "blenderbot") -> ValidationLoader:
    """This rank's part of two datasets."""
    sources = [tiny.Source(tiny.examples(count, family, seed)) for seed, count in enumerate(EXAMPLES)]
    ranks = bench.ranks
    return ValidationLoader(
        sources, tiny.layout(family), per_rank=2, rank=ranks.rank, world_size=ranks.world_size, pad_to_multiple_of=1
    )


def numbers(bench: Bench) -> dict:
    """Every number of a validation, twice, and which examples this rank saw; dropout must be off."""
    goal = tiny.objective(SIZES)
    batches = loader(bench)
    student = bench.student(tiny.student(bench.teachers / "blenderbot", goal, SIZES))
    validator = Validator(batches, goal, ["first", "second"], bench.ranks)
    student.eval()
    teacher = LiveTeacher(bench.teacher())
    runs = [validator.run(student, teacher) for _ in range(2)]
    prediction_blocks.BLOCK_BYTES = 1  # two blocks of the vocabulary, and no whole logits
    in_blocks = Validator(batches, goal.with_prediction("chunked"), ["first", "second"], bench.ranks)
    runs.append(in_blocks.run(student, teacher))
    for run in runs:
        run.pop("seconds")
    seen = [
        (int(dataset), tuple(row[mask.bool()].tolist()))
        for batch in batches
        for dataset, row, mask, labels in zip(
            batch.dataset_ids, batch.inputs.input_ids, batch.inputs.attention_mask, batch.label_mask, strict=True
        )
        if labels.any()
    ]
    return {"values": runs[0], "again": runs[1], "blocks": runs[2], "seen": seen, "batches": len(batches)}

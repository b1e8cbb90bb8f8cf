"""Downloads and tokenising take as long as they take; collectives do not."""

from pathlib import Path

WORKER = Path(__file__).with_name("patient_worker.py")


def test_a_rank_may_work_for_longer_than_collectives_wait(run_ranks, root, tmp_path):
    assert run_ranks([str(WORKER)], tmp_path, 2, root) == [0, 0]
    assert [(tmp_path / f"rank_{rank}.log").read_text().splitlines()[-1] for rank in (0, 1)] == ["sum 2"] * 2

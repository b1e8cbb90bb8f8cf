"""Which exit code of a job step counts: the ranks' own word, the launcher's, or neither."""

import pytest

from distill_engine.cluster.exit_codes import NOT_BEGUN
from launcher.job_commands import _verdict
from launcher.requeue import NO_VERDICT


@pytest.mark.parametrize(
    "srun, counts",
    [
        (75, (75, NOT_BEGUN)),
        (143, (75, NOT_BEGUN)),  # Slurm's own signal, which srun passes on and ends with
        (137, (137, NO_VERDICT)),  # killed while it loaded; srun then ended the others
        (1, (1, NO_VERDICT)),
    ],
)
def test_a_rank_that_dies_before_training_is_no_stop_although_rank_0_was_told_to(tmp_path, srun, counts):
    verdict = tmp_path / "verdict"
    verdict.write_text(f"75 {NOT_BEGUN}\n")
    assert _verdict(srun, verdict, None) == counts


def test_the_ranks_word_counts_more_than_the_launchers(tmp_path):
    verdict = tmp_path / "verdict"
    verdict.write_text("78\n")
    assert _verdict(143, verdict, None) == (78, "")

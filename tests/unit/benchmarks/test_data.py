"""The data benchmark measures what it says, on little data."""

from __future__ import annotations

import data as bench
import pytest


def test_tokenising_counts_what_it_made():
    measured = bench.tokenising(1000)
    assert 800 < measured["examples"] < 1200 and measured["tokens"] > 20 * measured["examples"]
    rate = measured["tokenising_seconds"] / measured["examples"]
    assert measured["seconds_per_300k_examples"] == pytest.approx(300_000 * rate)
    assert 0 < measured["opening_seconds"] < measured["tokenising_seconds"]


def test_a_token_budget_pads_less_than_plain_batches():
    plain, budget = (bench.batches(tokens, step_ms=1.0, seconds=0.05) for tokens in (None, 4096))
    assert plain["examples_per_batch"] == bench.PER_RANK < budget["examples_per_batch"]
    assert budget["padding_share"] < 0.1 < plain["padding_share"]
    assert all(0 < measured["waiting_share"] < 1 for measured in (plain, budget))

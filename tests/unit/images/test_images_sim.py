"""The simulator, small: what every scenario must hold, and that a seed gives the same numbers."""

from __future__ import annotations

import math

import pytest
from sim.images.fleet import SCENARIOS, simulate

from leasehold.core.clock import VirtualClock
from leasehold.images.ports import FailureClass

PULLS = {
    "herd": 1, "skew": 5, "partition": 2, "puller_death": 3, "puller_stall": 3, "liars": 1,
    "dead_dht": 1, "empty_dht": 1, "refusing": 2, "origin_401": 1, "origin_404": 1,
    "origin_429": 1, "origin_5xx": 6,
}  # fmt: skip
"""The most a digest may leave its origin."""

SLOWEST = {"puller_stall": 25.0, "origin_5xx": 90.0}
"""Seconds until 95 % have it; 10 where nothing is said (a pull alone takes 2)."""


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_each_scenario(scenario: str, virtual: VirtualClock) -> None:
    report = simulate(scenario, nodes=60, digests=2)
    assert max(report.origin_pulls) <= PULLS[scenario]
    assert report.intents_max <= 60 * 6
    refused = SCENARIOS[scenario].get("origin")
    if refused is not None and refused is not FailureClass.TRANSIENT:
        assert report.times == []
        return
    assert report.failed == 0
    p95 = report.times[math.floor(0.95 * len(report.times))]
    assert p95 <= SLOWEST.get(scenario, 10.0)
    if scenario != "skew":
        assert report.mismatches == 0


def test_diverging_views_are_counted() -> None:
    assert sum(simulate("skew", nodes=60, seed=seed).mismatches for seed in range(4)) > 0


def test_the_same_seed_gives_the_same_numbers() -> None:
    first, second = (simulate("liars", nodes=40, seed=3, codec=True) for _ in range(2))
    assert first.times == second.times
    assert first.origin_pulls == second.origin_pulls

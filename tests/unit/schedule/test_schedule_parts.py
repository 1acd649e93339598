"""Targets, intervals, backoff: the parts of the scheduler that need no database."""

from __future__ import annotations

import random
from typing import Any

import httpx
import pytest

from leasehold.core.clock import SystemClock
from leasehold.core.errors import LeaseholdError
from leasehold.schedule.rpc import RpcClient
from leasehold.schedule.scheduler import pause
from leasehold.schedule.store import heights_of, seconds_of
from leasehold.schedule.targets import SILENT, Destination, Targets, load

N, M = ("n", "c", "0.0.1"), ("m", "c", "0.0.1")


def workers(**states: int) -> dict[str, Any]:
    """``n_1=1``: worker n_1 of network n is in state 1."""
    out: dict[str, Any] = {}
    for name, state in states.items():
        group = out.setdefault(name[0], {"workers": {}})
        group["workers"][name] = {
            "state": state, "chain_id": "c", "connection": [{"version": "0.0.1"}],
        }  # fmt: skip
    return out


async def test_targets_over_http_come_and_go_whole() -> None:
    answers: dict[str, Any] = {
        "one:1": workers(n_1=1, n_2=1, m_1=1),
        "two:1": workers(n_1=1),
    }

    def respond(request: httpx.Request) -> httpx.Response:
        answer = answers[f"{request.url.host}:{request.url.port}"]
        return httpx.Response(200, json=answer) if answer is not None else httpx.Response(500)

    async with httpx.AsyncClient(transport=httpx.MockTransport(respond)) as client:
        clock = SystemClock()
        targets = Targets(
            [Destination(address=a, conn_type="http") for a in ("one:1", "two:1")],
            clock=clock,
            client=client,
            rpc=lambda address: RpcClient(address, clock),
        )
        await targets.discover()
        assert set(targets.known()) == {N, M}
        turns = [targets.next(N) for _ in range(4)]
        assert [t.address for t in turns if t] == ["one:1", "two:1", "one:1", "two:1"]
        answers["one:1"] = workers(n_1=5, n_2=1, m_1=5)
        await targets.discover()
        assert {k: len(v) for k, v in targets.known().items()} == {N: 2}  # n_2 is still there
        answers["one:1"] = None
        for misses in range(1, SILENT + 1):
            await targets.discover()
            assert len(targets.known()[N]) == (2 if misses < SILENT else 1)
        assert targets.next(M) is None


@pytest.mark.parametrize(
    ("text", "seconds"), [("30s", 30.0), ("1m30s", 90.0), ("500ms", 0.5), ("2h", 7200.0), (7, 7.0)]
)
def test_intervals(text: str | float, seconds: float) -> None:
    assert seconds_of(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "10", "1x", "1.s.", "-5s", "0s", 0, "9999h999h"])
def test_bad_intervals(text: str | float) -> None:
    with pytest.raises((LeaseholdError, ValueError)):
        seconds_of(text)


def test_heights_are_numbers_or_digits() -> None:
    assert heights_of({"height_from": "5", "height_to": 9}) == (5, 9)
    for wrong in ({}, {"height_from": 0, "height_to": 1}, {"height_from": 5, "height_to": "4"}):
        with pytest.raises(LeaseholdError):
            heights_of(wrong)  # type: ignore[arg-type]


def test_backoff_follows_the_table_with_jitter() -> None:
    rng = random.Random(1)
    assert pause(10.0, 0, rng) == 10.0
    factors = [1, 1, 1.5, 2, 4, 4, 8, 8, 16, 16, 32, 32]
    for failures, factor in enumerate(factors, start=1):
        assert 10 * factor <= pause(10.0, failures, rng) <= 20 * factor


def test_destinations_from_text() -> None:
    (only,) = load('[{"type": "fixed", "network": "n", "chain_id": "c", "address": "a:1"}]')
    assert only.conn_type == "ws"
    with pytest.raises(LeaseholdError):
        load('[{"address": "a:1", "conn_type": "carrier pigeon"}]')

"""Clock, ids, errors, ports."""

from __future__ import annotations

import asyncio
import os
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leasehold.core import ids
from leasehold.core.clock import VirtualClock
from leasehold.core.errors import Kind, LeaseholdError, Violation
from leasehold.core.retry import Backoff, retrying
from leasehold.core.web import bind
from leasehold.model.market import LeaseId, OrderId


def test_virtual_time_passes_only_when_everybody_waits(virtual: VirtualClock) -> None:
    order: list[str] = []

    async def sleeper(name: str, seconds: float) -> None:
        await virtual.sleep(seconds)
        order.append(f"{name}@{virtual.monotonic():g}")

    async def main() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(sleeper("year", 31_536_000))
            tasks.create_task(sleeper("second", 1))
        with pytest.raises(TimeoutError):
            async with virtual.timeout(60):
                await asyncio.Event().wait()

    virtual.run(main)
    assert order == ["second@1", "year@3.1536e+07"]


@given(st.integers(0, (1 << 128) - 1))
def test_ulids_round_trip_and_sort_like_numbers(value: int) -> None:
    assert ids.decode(ids.encode(value)) == value
    assert (ids.encode(value) < ids.encode((1 << 128) - 1)) == (value < (1 << 128) - 1)


def test_derived_ids_depend_on_the_key_alone() -> None:
    assert ids.derived(5.0, "a", "b") == ids.derived(5.0, "a", "b")
    assert ids.derived(5.0, "a", "b") != ids.derived(5.0, "ab")
    assert ids.time_of(ids.new(1234.5)) == 1234.5
    with pytest.raises(ValueError):
        ids.decode("U" * 26)


def test_one_error_carries_every_violation() -> None:
    found = [Violation("a", "first", path="x"), Violation("b", "second", path="y", expected="1")]
    error = LeaseholdError.of(found, kind=Kind.INVALID)
    out = error.to_dict()
    assert out["code"] == "a"
    assert out["message"] == "first (and 1 more)"
    assert out["violations"][1] == {"code": "b", "message": "second", "path": "y", "expected": "1"}
    assert (error.kind.http, error.kind.grpc, error.kind.exit_code) == (422, "INVALID_ARGUMENT", 1)


def test_retrying_stops_at_success_at_the_bound_and_at_other_errors(virtual: VirtualClock) -> None:
    async def main() -> None:
        tries = 0

        async def flaky() -> str:
            nonlocal tries
            tries += 1
            if tries < 4:
                raise ConnectionError
            return "ok"

        backoff = Backoff(first=1, cap=8, attempts=4, rng=random.Random(1))
        options = {"clock": virtual, "backoff": backoff}
        retry_on = lambda error: isinstance(error, ConnectionError)  # noqa: E731
        assert await retrying(flaky, retry_on=retry_on, **options) == "ok"
        tries = -10
        with pytest.raises(ConnectionError):
            await retrying(flaky, retry_on=retry_on, **options)
        assert tries == -6

    virtual.run(main)


def test_a_port_in_use_names_its_holder_and_the_setting() -> None:
    with bind("127.0.0.1", 0, what="first") as sock:
        port = sock.getsockname()[1]
        with pytest.raises(LeaseholdError) as refused:
            bind("127.0.0.1", port, what="gateway", setting="gateway.port")
    assert refused.value.code == "port_in_use"
    assert f"(pid {os.getpid()})" in refused.value.message
    assert "gateway.port" in refused.value.message


def test_ids_of_the_market_parse_and_refuse() -> None:
    lease = LeaseId("alice", 7, 1, 1, "bob")
    assert LeaseId.parse(str(lease)) == lease
    assert lease.order == OrderId.parse("alice/7/1/1")
    for text in ("alice/7/1", "alice/-1/1/1/bob", "alice/7/1/1/", "/7/1/1/b", "a/²/1/1/b"):
        with pytest.raises(LeaseholdError, match="write it as"):
            LeaseId.parse(text)

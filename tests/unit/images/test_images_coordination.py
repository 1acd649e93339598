"""In-flight map, negative cache, gate and membership, in virtual time."""

from __future__ import annotations

import asyncio
import json
import os
import random
from pathlib import Path

import pytest

from leasehold.core.clock import VirtualClock
from leasehold.core.errors import LeaseholdError
from leasehold.core.service import running
from leasehold.images.gate import DirectGate
from leasehold.images.inflight import InFlight, stall_limit
from leasehold.images.membership import AnnouncedMembers, FileMembers, Member, Members
from leasehold.images.negative import NegativeCache
from leasehold.images.ports import ContentKind, FailureClass
from leasehold.model.digest import Digest

D = Digest.of(b"content")
BLOB, MANIFEST, CONFIG = ContentKind.BLOB, ContentKind.MANIFEST, ContentKind.CONFIG


def test_one_claim_at_a_time_and_losers_cannot_release_it(virtual: VirtualClock) -> None:
    async def main() -> None:
        flights = InFlight(virtual)
        first, second = flights.start(D, BLOB, 7), flights.start(D, MANIFEST)
        assert (first.won, second.won) == (True, False)
        assert second.entry is first.entry
        second.done()
        assert flights.get(D) is first.entry
        first.done()
        first.done()
        third = flights.start(D, BLOB)
        first.done()
        assert third.won
        assert flights.get(D) is third.entry

    virtual.run(main)


def test_only_new_bytes_are_movement(virtual: VirtualClock) -> None:
    async def main() -> None:
        flights = InFlight(virtual)
        entry = flights.start(D, BLOB).entry
        await virtual.sleep(5)
        flights.progress(D, 0)
        assert entry.moved == 0
        flights.progress(D, 10, 100)
        assert (entry.moved, entry.received, entry.size) == (5, 10, 100)

    virtual.run(main)


@pytest.mark.parametrize(
    ("kind", "size", "seconds"),
    [
        (MANIFEST, None, 5), (CONFIG, None, 5), (CONFIG, 10**9, 5), (BLOB, None, 30),
        (BLOB, 1 << 20, 30), (BLOB, 50 * 11 * (1 << 20), 33), (BLOB, 10 << 30, 612),
    ],
)  # fmt: skip
def test_stall_limits(kind: ContentKind, size: int | None, seconds: float) -> None:
    assert stall_limit(kind, size) == seconds


def test_the_ladder_climbs_is_capped_and_is_forgotten_by_success(virtual: VirtualClock) -> None:
    async def main() -> None:
        cache = NegativeCache(virtual)
        steps = []
        for _ in range(6):
            steps.append(round(cache.failed(D, FailureClass.TRANSIENT).remaining, 6))
            await virtual.sleep(steps[-1] + 0.1)
            assert cache.lookup(D) is None, "over"
        assert steps == [10, 30, 90, 270, 600, 600]
        cache.succeeded(D)
        assert cache.failed(D, FailureClass.AUTH).remaining == 10
        found = cache.hit(D)
        assert found is not None
        assert found.failure is FailureClass.AUTH
        await virtual.sleep(10 + 3601)
        assert cache.lookup(D) is None
        assert len(cache) == 0, "after an hour of nothing the count is forgotten as well"

    virtual.run(main)


def gate_of(clock: VirtualClock, **changes: object) -> tuple[DirectGate, InFlight]:
    flights = InFlight(clock)

    async def nobody(_: Digest) -> bool:
        return False

    options: dict[str, object] = {
        "health": lambda: 1.0,
        "members": lambda: 100,
        "held_elsewhere": nobody,
        "bootstrapping": lambda: False,
        "rng": random.Random(1),
    }
    return DirectGate(clock, flights, **{**options, **changes}), flights  # type: ignore[arg-type]


async def declined(gate: DirectGate, digest: Digest = D) -> str:
    with pytest.raises(LeaseholdError) as refusal:
        async with gate.passing(digest, BLOB):
            raise AssertionError("passed")
    assert refusal.value.code == "fallback_declined"
    return refusal.value.got or ""


def test_the_gate_names_each_reason(virtual: VirtualClock) -> None:
    async def held(_: Digest) -> bool:
        return True

    async def hangs(_: Digest) -> bool:
        await asyncio.sleep(3600)
        return True

    async def main() -> None:
        assert await declined(gate_of(virtual, bootstrapping=lambda: True)[0]) == "bootstrap_window"
        assert await declined(gate_of(virtual, health=lambda: 0.29)[0]) == "dht_unhealthy"
        gate, flights = gate_of(virtual)
        flights.start(D, BLOB)
        assert await declined(gate) == "in_flight"
        assert await declined(gate_of(virtual, held_elsewhere=held)[0]) == "recheck_hit"
        gate, flights = gate_of(virtual, held_elsewhere=hangs)
        at = virtual.monotonic()
        async with gate.passing(D, BLOB):
            assert flights.get(D) is not None, "peers see it in flight"
            assert virtual.monotonic() - at <= 3 * 4.61 + 1.0
        assert flights.get(D) is None
        with pytest.raises(ZeroDivisionError):
            async with gate.passing(D, BLOB):
                raise ZeroDivisionError
        assert flights.get(D) is None
        assert await declined(gate) == "rate_limited"
        await virtual.sleep(30)
        async with gate.passing(D, BLOB):
            pass

    virtual.run(main)


def test_leaving_during_the_random_wait_releases_nothing_it_has_not(virtual: VirtualClock) -> None:
    async def main() -> None:
        gate, flights = gate_of(virtual)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001), gate.passing(D, BLOB):
                raise AssertionError("passed")
        assert flights.get(D) is None

    virtual.run(main)


def test_a_members_file_is_followed_and_a_broken_one_changes_nothing(
    virtual: VirtualClock, tmp_path: Path
) -> None:
    path = tmp_path / "members.json"

    def write(text: str, stamp: int) -> None:
        path.write_text(text)
        os.utime(path, (stamp, stamp))

    async def main() -> None:
        write(json.dumps([{"node": "b"}, {"node": "a", "zone": "z"}]), 1)
        members = FileMembers(path, clock=virtual)
        views = []
        members.changed.append(views.append)
        async with running(members):
            assert list(members.view.members) == ["a", "b"]
            write("[{", 2)
            await virtual.sleep(3)
            assert list(members.view.members) == ["a", "b"]
            write(json.dumps([{"node": "c"}]), 3)
            await virtual.sleep(3)
            assert list(members.view.members) == ["c"]
        for bad in ('[{"node":"a"},{"node":"a"}]', '[{"node":"a","peer_id":"x"}]', '[{"name":1}]'):
            write(bad, 9)
            with pytest.raises(LeaseholdError, match=r"members\.json"):
                members.read()

    virtual.run(main)


def test_silent_nodes_leave_but_never_all_at_once(virtual: VirtualClock) -> None:
    async def main() -> None:
        members = AnnouncedMembers(Member(node="me"), ttl=60, clock=virtual)
        async with running(members):
            for name in ("a", "b"):
                members.announce(Member(node=name))
            assert list(members.view.members) == ["a", "b", "me"]
            version = members.view.version
            members.announce(Member(node="a"))
            assert members.view.version == version, "the same news is no news"
            await virtual.sleep(50)
            members.announce(Member(node="a"))
            await virtual.sleep(50)
            assert list(members.view.members) == ["a", "me"]
            await virtual.sleep(500)
            assert list(members.view.members) == ["a", "me"], "we may be the one cut off"
            members.leave("a")
            assert list(members.view.members) == ["me"]

    virtual.run(main)


def test_zones_fall_back_to_the_cluster() -> None:
    view = Members([Member(node="a", zone="x"), Member(node="b", zone="x"), Member(node="c")]).view
    assert set(view.zone("x").nodes) == {"a", "b"}
    assert set(view.zone("nowhere").nodes) == {"a", "b", "c"}

"""Host names: who has one, who may take it, and that no restart forgets."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

import pytest

from leasehold.core.clock import VirtualClock
from leasehold.core.errors import Kind, LeaseholdError, unavailable
from leasehold.events.memory import MemoryLog
from leasehold.manifest.hostnames import Hostnames
from leasehold.model.hostname import blocked_by, is_subdomain, static_host
from leasehold.model.market import GroupId

A1, A2, B1 = GroupId("a", 1, 1), GroupId("a", 2, 1), GroupId("b", 1, 1)


async def code(call: Awaitable[Any]) -> tuple[str, Kind]:
    with pytest.raises(LeaseholdError) as caught:
        await call
    return caught.value.code, caught.value.kind


def test_the_whole_life_of_a_name(virtual: VirtualClock) -> None:
    async def main() -> None:
        log = MemoryLog(virtual)
        names = Hostnames(log, virtual, blocklist=["bad.com", ".evil.com"])
        assert await names.reserve(["X.com", "y.com"], A1) == []
        assert await names.held_by(A1) == ["x.com", "y.com"]
        # Another owner: refused, and nothing of the request is taken.
        assert await code(names.reserve(["z.com", "x.com"], B1)) == (
            "hostname_taken",
            Kind.CONFLICT,
        )
        assert await names.holder("z.com") is None
        # The same owner: withheld, not moved.
        assert await names.reserve(["x.com", "w.com"], A2) == ["x.com"]
        assert await names.holder("x.com") == A1 and await names.holder("w.com") == A2
        # What is not asked for any more is given up.
        assert await names.reserve(["y.com"], A1) == []
        assert await names.held_by(A1) == ["y.com"]
        assert await names.reserve(["x.com"], B1) == []
        # Blocked names.
        for host in ("bad.com", "BAD.com", "evil.com", "a.evil.com"):
            assert await code(names.reserve([host], A1)) == ("hostname_blocked", Kind.INVALID)
        assert await names.reserve(["y.com", "sub.bad.com"], A1) == []
        # Transfers: all or nothing, unheld ones are ignored.
        assert (await code(names.transfer(["w.com", "x.com"], A1)))[1] is Kind.CONFLICT
        assert await names.holder("w.com") == A2
        assert await names.transfer(["W.com", "nobody.com"], A1) == ["w.com"]
        assert await names.held_by(A2) == []
        # A new process reads the same from the log.
        again = Hostnames(log, virtual)
        assert await again.held_by(A1) == ["sub.bad.com", "w.com", "y.com"]
        assert await again.release(A1) == ["sub.bad.com", "w.com", "y.com"]
        assert await names.held_by(A1) == [] and await names.release(A1) == []
        assert await again.conflicts(["x.com", "free.com"], "a") != []
        assert await again.conflicts(["free.com"], "a") == []

    virtual.run(main)


def test_two_processes_cannot_give_one_name_away_twice(virtual: VirtualClock) -> None:
    async def main() -> None:
        import asyncio

        log = MemoryLog(virtual)
        one, two = Hostnames(log, virtual), Hostnames(log, virtual)
        await one.reserve(["warm.com"], A1)
        await two.holder("warm.com")
        results = await asyncio.gather(
            one.reserve(["x.com"], A2), two.reserve(["x.com"], B1), return_exceptions=True
        )
        assert sum(isinstance(r, LeaseholdError) for r in results) == 1
        assert await one.holder("x.com") == await two.holder("x.com")

    virtual.run(main)


def test_proof_of_ownership(virtual: VirtualClock) -> None:
    class Dns:
        records: dict[str, list[str]] = {}
        down = False

        async def txt(self, name: str) -> list[str]:
            if self.down:
                raise unavailable("dns", "no answer")
            return self.records.get(name, [])

    async def main() -> None:
        dns = Dns()
        names = Hostnames(MemoryLog(virtual), virtual, resolver=dns)
        found = await names.conflicts(["x.com"], "akash1a")
        assert [v.code for v in found] == ["hostname_unproven"]
        assert "TXT record _leasehold.x.com to akash1a" in found[0].message
        dns.records["_leasehold.x.com"] = ["other", " akash1a "]
        assert await names.conflicts(["x.com"], "akash1a") == []
        await names.reserve(["x.com"], GroupId("akash1a", 1, 1))
        dns.down = True
        assert await names.conflicts(["x.com"], "akash1a") == []  # proven before
        assert (await code(names.conflicts(["new.com"], "akash1a")))[1] is Kind.UNAVAILABLE

    virtual.run(main)


def test_forms() -> None:
    assert blocked_by("a.foo.com", [".foo.com"]) and blocked_by("foo.com", [".foo.com"])
    assert not blocked_by("afoo.com", [".foo.com"]) and not blocked_by("a.foo.com", ["foo.com"])
    assert is_subdomain("a-1.b") and not is_subdomain("A.b") and not is_subdomain("*.b")
    assert not is_subdomain("a..b") and not is_subdomain("a" * 64) and not is_subdomain("a\n")
    host = static_host("o/1/1/1/p", "web", "example.com")
    assert host == static_host("o/1/1/1/p", "web", "example.com")
    assert is_subdomain(host) and host.endswith(".example.com") and len(host) == 26 + 12

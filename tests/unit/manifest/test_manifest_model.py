"""Intake against a small model, under everything that goes wrong at once.

Events are lost, doubled, late and in the wrong order; the market is slow or down; callers hang up
at any step; the provider is restarted at any time. The model knows only what the market says and
what tenants were told. Whatever happened, in the end (market up, time passed) every live lease has
the newest accepted manifest of its deployment, and those that never got one are closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from leasehold.core.clock import VirtualClock
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.manifest.testing import OWNER, World, changed, two_groups, world
from leasehold.model import manifest as manifests
from leasehold.model.market import LeaseId

TIMEOUT = 300.0
CACHE = 5.0
SLOW = 3.0
DEPLOYMENTS = st.integers(1, 2)
GROUPS = st.integers(1, 2)
FEED = st.sampled_from(["ok", "ok", "lost", "twice", "late"])


@dataclass
class Deployment:
    """What the market says: bodies by version, and which version since when."""

    bodies: list[bytes]
    since: list[tuple[float, int]]
    accepted: list[str] = field(default_factory=list)
    oseq: int = 0

    def hash(self, version: int) -> str:
        return manifests.version_hash(manifests.decode(self.bodies[version])).hex()

    @property
    def current(self) -> int:
        return self.since[-1][1]

    def were_current(self, start: float) -> set[str]:
        """Hashes that were on the market at some time after ``start``."""
        ends = [at for at, _ in self.since[1:]] + [float("inf")]
        return {self.hash(v) for (_, v), end in zip(self.since, ends, strict=True) if end >= start}


@dataclass
class Model:
    deployments: dict[int, Deployment] = field(default_factory=dict)
    live: dict[LeaseId, float] = field(default_factory=dict)
    """Since when (market's time)."""
    won: dict[LeaseId, float] = field(default_factory=dict)
    """The same, also of leases that are over."""
    told: dict[LeaseId, str] = field(default_factory=dict)
    """The hash a tenant was told was accepted for a lease."""

    def leases(self, dseq: int) -> list[LeaseId]:
        return [lease for lease in self.live if lease.dseq == dseq]


class Intake(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.clock = VirtualClock()
        self.runner = asyncio.Runner(loop_factory=lambda: self.clock._loop)
        self.w: World = world(self.clock, owner_rate=1e6, owner_burst=10**6, submit_budget_s=60.0)
        self.model = Model()
        self.backlog: list[tuple[str, object, msgspec.Struct]] = []
        self.feed = "ok"
        self.w.tell = self.tell  # type: ignore[method-assign]
        self.run(self.begin)

    def run(self, step: Callable[[], Awaitable[Any]]) -> Any:
        async def main() -> Any:
            return await step()

        return self.runner.run(main())

    async def begin(self) -> None:
        self.stop = asyncio.Event()
        self.started = asyncio.Event()
        self.task = asyncio.ensure_future(self.serve())
        await self.started.wait()

    async def serve(self) -> None:
        async with self.w.up():
            self.started.set()
            await self.stop.wait()

    async def end(self) -> None:
        self.stop.set()
        await self.task

    async def tell(self, kind: str, id: object, payload: msgspec.Struct) -> None:
        if self.feed in ("ok", "twice"):
            await self.w.say(kind, id, payload)
        if self.feed == "twice":
            await self.w.say(kind, id, payload)
        if self.feed == "late":
            self.backlog.append((kind, id, payload))

    @rule(feed=FEED)
    def feed_becomes(self, feed: str) -> None:
        self.feed = feed

    @rule()
    def late_events_arrive(self) -> None:
        async def step() -> None:
            while self.backlog:
                await self.w.say(*self.backlog.pop())  # the wrong way round

        self.run(step)

    @initialize(won=st.integers(0, 4))
    def tenants_order(self, won: int) -> None:
        async def step() -> None:
            for dseq in (1, 2):
                body = await self.w.deploy(two_groups(), dseq=dseq)
                self.model.deployments[dseq] = Deployment([body], [(self.clock.now(), 0)])

        self.run(step)
        for n in range(won):
            self.bid_is_accepted(dseq=n % 2 + 1, gseq=n // 2 + 1)

    @rule(dseq=DEPLOYMENTS)
    def tenant_updates(self, dseq: int) -> None:
        async def step() -> None:
            found = self.model.deployments[dseq]
            if len(found.bodies) < 20:
                found.bodies.append(changed(found.bodies[0], image=f"v{len(found.bodies)}"))
                found.since.append((self.clock.now(), len(found.bodies) - 1))
                await self.w.update(found.bodies[-1], dseq=dseq)

        self.run(step)

    @rule(dseq=DEPLOYMENTS, gseq=GROUPS)
    def bid_is_accepted(self, dseq: int, gseq: int) -> None:
        async def step() -> None:
            found = self.model.deployments[dseq]
            if any(x.gseq == gseq for x in self.model.leases(dseq)):
                return
            found.oseq += 1
            lease = await self.w.win(dseq=dseq, gseq=gseq, oseq=found.oseq)
            self.model.live[lease] = self.model.won[lease] = self.clock.now()

        self.run(step)

    @rule(dseq=DEPLOYMENTS)
    def lease_is_closed(self, dseq: int) -> None:
        async def step() -> None:
            for lease in self.model.leases(dseq)[:1]:
                del self.model.live[lease]
                await self.w.close_lease(lease)

        self.run(step)

    @rule(seconds=st.sampled_from([0.5, 4.0, 20.0, 100.0, 290.0]))
    def time_passes(self, seconds: float) -> None:
        self.run(lambda: self.clock.sleep(seconds))

    @rule(how=st.sampled_from(["ok", "slow", "down", "flaky"]))
    def market_becomes(self, how: str) -> None:
        self.w.market.delay = SLOW if how == "slow" else 0.0
        self.w.market.failures = {"down": 10**9, "flaky": 3}.get(how, 0)
        self.w.market.close_failures = [SLOW] * 1000 if how == "slow" else []

    @rule()
    def provider_restarts(self) -> None:
        async def step() -> None:
            await self.end()
            await self.begin()

        self.run(step)

    @rule(dseq=DEPLOYMENTS)
    def tenant_updates_and_sends(self, dseq: int) -> None:
        self.tenant_updates(dseq=dseq)
        self.tenant_sends(dseq=dseq, back=0)

    @rule(dseq=DEPLOYMENTS, back=st.integers(0, 2))
    def tenant_sends(self, dseq: int, back: int) -> None:
        found = self.model.deployments[dseq]
        version = max(0, found.current - back)
        began = self.clock.now()

        async def step() -> Any:
            try:
                return await self.w.service.submit(OWNER, dseq, found.bodies[version])
            except LeaseholdError as error:
                return error

        outcome = self.run(step)
        self.sync()
        if isinstance(outcome, LeaseholdError):
            trouble = outcome.kind is Kind.UNAVAILABLE and self.w.market.failures > 0
            no_lease = outcome.code == "no_lease" and not self.model.leases(dseq)
            old = outcome.code == "manifest_version" and back > 0
            late = outcome.code == "manifest_overdue" and any(
                self.clock.now() >= since + TIMEOUT for since in self.model.won.values()
            )
            assert trouble or no_lease or old or late, outcome
        else:
            assert outcome.hash == found.hash(version)
            fresh = began - CACHE - 2 * SLOW - 0.1
            assert outcome.hash in found.were_current(fresh), "a manifest of the past was accepted"
            found.accepted.append(outcome.hash)
            for lease in outcome.leases:
                self.model.told[lease] = outcome.hash
                assert self.run(lambda id=lease: self.w.received(id))[-1:] == [outcome.hash] or (
                    lease not in self.model.live
                )

    @rule(dseq=DEPLOYMENTS, steps=st.integers(0, 40))
    def tenant_hangs_up(self, dseq: int, steps: int) -> None:
        found = self.model.deployments[dseq]

        async def step() -> None:
            body = found.bodies[found.current]
            sending = asyncio.ensure_future(self.w.service.submit(OWNER, dseq, body))
            for _ in range(steps):
                await asyncio.sleep(0)
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError, LeaseholdError):
                await sending

        self.run(step)
        self.sync()

    def sync(self) -> None:
        """Leases the watchdog closed are not live any more."""
        for lease, reason in self.w.market.closes:
            assert reason == 10003
            self.model.live.pop(lease, None)

    @invariant()
    def nobody_is_closed_early_or_twice_or_after_a_manifest(self) -> None:
        closes = [lease for lease, _ in self.w.market.closes]
        assert len(set(closes)) == len(closes)
        for lease in closes:
            assert lease not in self.model.told, "closed although its manifest was accepted"
            since = self.model.live.get(lease)
            assert since is None or self.clock.now() >= since + TIMEOUT
        self.sync()

    @invariant()
    def no_lease_gets_the_same_manifest_twice_in_a_row(self) -> None:
        for lease in self.model.live:
            hashes = self.run(lambda id=lease: self.w.received(id))
            assert all(a != b for a, b in itertools.pairwise(hashes))

    def teardown(self) -> None:
        async def settle() -> None:
            self.market_becomes(how="ok")
            while self.backlog:
                await self.w.say(*self.backlog.pop())
            await self.clock.sleep(2000)

        try:
            self.run(settle)
            self.sync()
            for lease in self.model.live:
                received = self.run(lambda id=lease: self.w.received(id))
                assert received, f"{lease} is live, has no manifest and was not closed"
                kept = self.run(lambda id=lease: self.w.service.history(OWNER, id.dseq))
                found = self.model.deployments[lease.dseq]
                if kept and kept[0]["hash"] == found.hash(found.current):
                    assert received[-1] == kept[0]["hash"]
            self.run(self.end)
        finally:
            self.runner.close()


Intake.TestCase.settings = settings(
    max_examples=100,
    stateful_step_count=50,
    deadline=None,
    phases=(Phase.reuse, Phase.generate),  # shrinking takes minutes here
    suppress_health_check=list(HealthCheck),
)
TestIntake = Intake.TestCase

"""The fleet, its world and its faults; one run of one scenario."""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

from leasehold.core.clock import VirtualClock
from leasehold.core.errors import LeaseholdError
from leasehold.images.coord.settings import CoordSettings
from leasehold.images.membership import View
from leasehold.images.neighbourhood import MISMATCH
from leasehold.images.ports import FailureClass, Holder, OriginError
from leasehold.model.digest import Digest
from leasehold.p2p.errors import PeerError
from sim.images.node import Node


@dataclass(kw_only=True)
class World:
    """What a scenario sets. Seconds, bytes, bytes a second, shares from 0 to 1."""

    nodes: int = 100
    digests: int = 2
    """Every node wants all of them, at once."""
    size: int = 64 << 20
    origin_rate: float = 32 << 20
    peer_rate: float = 256 << 20
    latency: float = 0.001
    spread: float = 0.5
    """Nodes ask within so many seconds of each other."""
    seed: int = 1
    skew: float = 0.0
    """Share of nodes that do not know another share of nodes yet."""
    skew_until: float = 5.0
    partition: bool = False
    puller: str = "well"
    """What the first puller does half-way: ``well``, ``dies``, ``stalls``."""
    liars: float = 0.0
    dht: str = "well"
    """``well``, ``dead`` (answers nothing and is known to be unwell), ``empty`` (forgets all)."""
    origin: FailureClass | None = None
    origin_heals_at: float = float("inf")
    refusing: float = 0.0
    """Share of nodes nobody can connect to."""
    give_up: float = 600.0
    codec: bool = False
    """Send every message through the wire's bytes as well (slow, for small fleets)."""


@dataclass
class Report:
    """What came out of one run. Times in seconds, from the request that took them."""

    scenario: str
    nodes: int
    times: list[float]
    """Of every digest on every node that got it, sorted."""
    failed: int
    """Requests that ended without content."""
    origin_pulls: list[int]
    """Of each digest; only pulls that were begun."""
    intents_mean: float
    """Questions a node was asked for each digest."""
    intents_max: int
    """The most questions one node was asked about one digest."""
    direct: float
    """One pull of one digest at the origin's rate, with nobody else pulling."""
    mismatches: int
    """Answers whose rank was not what the asker expected: diverging views, counted."""
    wall: float = 0.0


class Origin:
    """The registry: each pull gets its rate; ``failure`` answers everybody."""

    def __init__(self, world: World, clock: VirtualClock) -> None:
        self.world = world
        self.clock = clock
        self.pulls: dict[Digest, int] = {}

    def check(self, digest: Digest) -> None:
        self.pulls[digest] = self.pulls.get(digest, 0) + 1
        if self.world.origin is not None and self.clock.monotonic() < self.world.origin_heals_at:
            raise OriginError(self.world.origin, "the origin answers so")


class Dht:
    """Records that everybody sees a moment later."""

    def __init__(self, world: World, clock: VirtualClock) -> None:
        self.world = world
        self.clock = clock
        self.records: dict[Digest, list[tuple[float, Node]]] = {}
        self.lookups = 0

    def provide(self, digest: Digest, node: Node) -> None:
        if self.world.dht == "well":
            self.records.setdefault(digest, []).append((self.clock.monotonic() + 0.3, node))

    async def find(self, digest: Digest, limit: int, asker: Node) -> list[Holder]:
        self.lookups += 1
        if self.world.dht == "dead":
            await self.clock.sleep(2.0)
            raise PeerError("dht_dead", "nobody answers")
        await self.clock.sleep(self.world.latency * 6)
        now = self.clock.monotonic()
        known = [n for at, n in self.records.get(digest, ()) if at <= now and n.side == asker.side]
        if len(known) > limit:
            known = asker.rng.sample(known, limit)
        return [node.member.holder() for node in known]


@dataclass
class Fleet:
    """All nodes of a run."""

    world: World
    clock: VirtualClock
    tasks: asyncio.TaskGroup
    settings: CoordSettings = field(
        default_factory=lambda: CoordSettings(pulls_per_minute=10**9, max_batch=256)
    )
    asked: Counter[tuple[str, Digest]] = field(default_factory=Counter)
    _first: dict[Digest, Node] = field(default_factory=dict)

    def __post_init__(self) -> None:
        world = self.world
        rng = random.Random(world.seed)
        self.origin = Origin(world, self.clock)
        self.dht = Dht(world, self.clock)
        self.expected = world.size / world.origin_rate
        self.running: set[asyncio.Task[None]] = set()
        self.nodes = [Node(self, i) for i in range(world.nodes)]
        self.by_name = {node.name: node for node in self.nodes}
        members = [node.member for node in self.nodes]
        full = View(members)
        # Nodes that are behind share one of a few older views, as informers of one cluster do.
        behind = [
            View(m for m in members if rng.random() > world.skew) for _ in range(4)
        ] if world.skew else []  # fmt: skip
        for node in self.nodes:
            late = bool(behind) and rng.random() < world.skew
            node.views = [rng.choice(behind), full] if late else [full]
        count = round(world.liars * world.nodes)
        for node in rng.sample(self.nodes, count):
            node.lies = True
        for node in rng.sample(self.nodes, round(world.refusing * world.nodes)):
            node.reachable = False

    def spawn(self, coro: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self.tasks.create_task(coro)
        self.running.add(task)
        task.add_done_callback(self.running.discard)
        return task

    def first_puller(self, node: Node, digest: Digest) -> bool:
        return self._first.setdefault(digest, node) is node


SCENARIOS: dict[str, dict[str, Any]] = {
    "herd": {},
    "skew": {"skew": 0.3},
    "partition": {"partition": True},
    "puller_death": {"puller": "dies"},
    "puller_stall": {"puller": "stalls"},
    "liars": {"liars": 0.1},
    "dead_dht": {"dht": "dead"},
    "empty_dht": {"dht": "empty"},
    "refusing": {"refusing": 0.1},
    "origin_401": {"origin": FailureClass.AUTH},
    "origin_404": {"origin": FailureClass.NOT_FOUND},
    "origin_429": {"origin": FailureClass.RATE_LIMITED},
    "origin_5xx": {"origin": FailureClass.TRANSIENT, "origin_heals_at": 25.0},
}


def simulate(scenario: str, **changes: Any) -> Report:
    """Run one scenario of :data:`SCENARIOS`; ``changes`` override fields of :class:`World`."""
    world = World(**{**SCENARIOS[scenario], **changes})
    clock = VirtualClock()
    started = time.perf_counter()
    report = clock.run(lambda: _run(scenario, world, clock))
    report.wall = time.perf_counter() - started
    return report


async def _run(scenario: str, world: World, clock: VirtualClock) -> Report:
    before = _mismatches()
    digests = [
        Digest.of(hashlib.sha256(f"{world.seed}/{i}".encode()).digest())
        for i in range(world.digests)
    ]
    times: list[float] = []
    failed = 0

    async def ask(node: Node, digest: Digest) -> None:
        nonlocal failed
        await clock.sleep(node.rng.uniform(0.0, world.spread))
        try:
            times.append(await node.fetch(digest))
        except (LeaseholdError, TimeoutError):
            failed += 1

    async with asyncio.TaskGroup() as tasks:
        fleet = Fleet(world, clock, tasks)
        clients = [
            tasks.create_task(ask(node, digest))
            for node in fleet.nodes
            if node.reachable and not node.lies
            for digest in digests
        ]
        await asyncio.wait(clients)
        for task in list(fleet.running):
            task.cancel()
    return Report(
        scenario=scenario,
        nodes=world.nodes,
        times=sorted(times),
        failed=failed,
        origin_pulls=[fleet.origin.pulls.get(digest, 0) for digest in digests],
        intents_mean=fleet.asked.total() / world.nodes / world.digests,
        intents_max=max(fleet.asked.values(), default=0),
        direct=fleet.expected,
        mismatches=round(_mismatches() - before),
    )


def _mismatches() -> float:
    """The counter that alarms about diverging views, as Prometheus would read it."""
    return sum(
        sample.value
        for metric in MISMATCH.collect()
        for sample in metric.samples
        if sample.name.endswith("_total")
    )

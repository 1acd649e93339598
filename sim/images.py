"""A fleet in one process: how often does a digest leave its origin, and how soon has everybody it?

Every node runs the real resolver, coordination server, pump, in-flight map, negative cache and
gate; only time, the wires, the DHT and the bytes are simulated. A node that may not be streamed
from any more (ten at a time) names those it serves, as the real transfer does, so that a fleet
becomes a tree. Time is virtual and every random choice seeded: the same arguments give the same
numbers.

    python -m sim images --nodes 1000 --scenario herd
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import statistics
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from leasehold.core.clock import VirtualClock
from leasehold.core.errors import LeaseholdError
from leasehold.images.coord.messages import (
    Intent,
    PleasePullRequest,
    PleasePullResponse,
    decode,
    encode,
)
from leasehold.images.coord.pump import PullerPump
from leasehold.images.coord.server import Server
from leasehold.images.coord.settings import CoordSettings
from leasehold.images.gate import DirectGate
from leasehold.images.inflight import InFlight
from leasehold.images.membership import Member, View
from leasehold.images.negative import NegativeCache
from leasehold.images.ports import (
    ContentKind,
    Credentials,
    FailureClass,
    Holder,
    OriginError,
    Reader,
    Resolution,
    Writer,
)
from leasehold.images.resolver import Resolver
from leasehold.model.digest import Digest
from leasehold.p2p import varint
from leasehold.p2p.errors import PeerError
from leasehold.p2p.keys import KeyPair

SERVE_CAP = 10
HOP = 0.02
"""Seconds one more node in a chain adds: a piece has to arrive before it can be passed on."""


@dataclass(kw_only=True)
class World:
    """What a scenario sets. Seconds, bytes, bytes a second, shares from 0 to 1."""

    nodes: int = 100
    digests: int = 1
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
    """What came out. Times in seconds, from the first request."""

    scenario: str
    nodes: int
    served: int
    failed: int
    origin_pulls: float
    """For each digest, on average; only pulls that were begun."""
    intents_mean: float
    intents_max: int
    p50: float
    p95: float
    direct: float
    """One pull of one digest at the origin's rate, with nobody else pulling."""
    mismatches: int
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


class Node:
    """One node: real coordination, simulated content."""

    def __init__(self, fleet: Fleet, index: int) -> None:
        world, clock = fleet.world, fleet.clock
        self.fleet = fleet
        self.clock = clock
        self.name = f"node-{index:05d}"
        self.rng = random.Random(world.seed * 1_000_003 + index)
        self.member = Member(node=self.name, transfer=f"{self.name}:1")
        self.side = index % 2 if world.partition else 0
        self.alive = True
        self.reachable = True
        self.lies = False
        self.views: list[View] = []
        self.intents = 0
        self.held: set[Digest] = set()
        self.pulling: dict[Digest, asyncio.Event] = {}
        self.progressed: dict[Digest, tuple[int, int | None]] = {}
        self.serving: dict[Digest, list[Node]] = {}
        self.flights = InFlight(clock)
        self.negative = NegativeCache(clock)
        self.pump = PullerPump(
            self, self, self.flights, self.negative, clock, spawn=fleet.spawn, provide=self.provide,
            settings=fleet.settings,
        )  # fmt: skip
        self.server = Server(
            self.name, self.view, self, self.flights, self.negative, self.pump, clock,
            fleet.settings,
        )  # fmt: skip
        self.gate = DirectGate(
            clock,
            self.flights,
            health=self.health,
            members=lambda: len(self.view()),
            held_elsewhere=self._held_elsewhere,
            bootstrapping=lambda: False,
            rng=self.rng,
        )
        self.resolver = Resolver(
            self.name, self.view, self, self.server, self, self.gate, clock, spawn=fleet.spawn,
            settings=fleet.settings, rng=self.rng,
        )  # fmt: skip

    def view(self) -> View:
        late = self.clock.monotonic() >= self.fleet.world.skew_until
        return self.views[-1 if late else 0]

    # the store

    async def has(self, digest: Digest) -> bool:
        return self.lies or digest in self.held

    async def size(self, digest: Digest) -> int | None:
        return self.fleet.world.size if digest in self.held else None

    async def open(self, digest: Digest) -> Reader | None:
        raise NotImplementedError("the simulator has no bytes")

    async def writer(self, digest: Digest, size: int | None = None) -> Writer:
        raise NotImplementedError("the simulator has no bytes")

    async def delete(self, digest: Digest) -> bool:
        raise NotImplementedError("the simulator evicts nothing")

    def digests(self) -> AsyncIterator[Digest]:
        raise NotImplementedError("the simulator does not restart")

    # the puller

    async def pull(
        self,
        digest: Digest,
        kind: ContentKind,
        registry: str,
        repository: str,
        size: int | None = None,
        credentials: Credentials | None = None,
    ) -> int:
        world = self.fleet.world
        done = self.pulling.setdefault(digest, asyncio.Event())
        try:
            await self.clock.sleep(world.latency * 4)
            self.fleet.origin.check(digest)
            steps = 8
            for step in range(1, steps + 1):
                await self.clock.sleep(world.size / world.origin_rate / steps)
                self.progressed[digest] = (world.size * step // steps, world.size)
                if step == steps // 2 and self.fleet.first_puller(self, digest):
                    if world.puller == "dies":
                        self.alive = False
                        raise OriginError(FailureClass.TRANSIENT, "killed")
                    if world.puller == "stalls":
                        await self.clock.sleep(3600)
            self.held.add(digest)
            return world.size
        finally:
            self.pulling.pop(digest, None)
            self.progressed.pop(digest, None)
            done.set()

    def progress(self, digest: Digest) -> tuple[int, int | None] | None:
        return self.progressed.get(digest)

    async def provide(self, digest: Digest) -> None:
        self.fleet.dht.provide(digest, self)

    # the resolver's lookup

    async def find(self, digest: Digest, limit: int) -> Sequence[Holder]:
        return await self.fleet.dht.find(digest, limit, self)

    def health(self) -> float:
        return 0.1 if self.fleet.world.dht == "dead" else 1.0

    async def _held_elsewhere(self, digest: Digest) -> bool:
        return bool(await self.find(digest, 20))

    # the wire

    async def pull_intent_query(self, node: str, digest: Digest) -> Intent:
        other = await self._reach(node)
        self.intents += 1
        other.fleet.asked[other.name] = other.fleet.asked.get(other.name, 0) + 1
        answer = await other.server.local_pull_intent(digest)
        await self.clock.sleep(self.fleet.world.latency)
        if self.fleet.world.codec:
            read = _through_the_wire(answer)
            assert isinstance(read, Intent)
            return read
        return answer

    async def please_pull(self, node: str, request: PleasePullRequest) -> PleasePullResponse:
        other = await self._reach(node)
        if self.fleet.world.codec:
            read = _through_the_wire(request)
            assert isinstance(read, PleasePullRequest)
            request = read
        answer = await other.server._please_pull(request, PEER)
        await self.clock.sleep(self.fleet.world.latency)
        return answer

    async def _reach(self, name: str) -> Node:
        await self.clock.sleep(self.fleet.world.latency)
        other = self.fleet.by_name[name]
        if not other.alive or not other.reachable or other.side != self.side:
            if other.alive and other.side == self.side:
                raise PeerError("dial_failed", "connection refused")
            await self.clock.sleep(2.0)
            raise PeerError("dial_failed", "no answer")
        return other

    # fetching, as the data plane does it

    async def fetch(self, digest: Digest) -> float:
        """Seconds until the digest is here; raises when it never comes."""
        began = self.clock.monotonic()
        world = self.fleet.world
        while self.clock.monotonic() - began < world.give_up:
            if digest in self.held:
                return self.clock.monotonic() - began
            try:
                found = await self.resolver.resolve(
                    digest, ContentKind.BLOB, "registry.example.com", "team/app", world.size
                )
            except OriginError:
                raise
            except LeaseholdError as error:
                if error.code == "exhausted":
                    await self._directly(digest)
                await self.clock.sleep(self.rng.uniform(0.25, 0.5) + (error.retry_after or 0.0) / 4)
                continue
            if found.local:
                event = self.pulling.get(digest)
                if event is not None:
                    await event.wait()
                else:
                    await self.clock.sleep(0.05)
                continue
            if await self._from(digest, found):
                continue
            await self.clock.sleep(self.rng.uniform(0.1, 0.2))
        raise TimeoutError

    async def _directly(self, digest: Digest) -> None:
        try:
            async with self.resolver.direct(digest, ContentKind.BLOB):
                await self.pull(digest, ContentKind.BLOB, "registry.example.com", "team/app")
                await self.provide(digest)
        except LeaseholdError:
            pass

    async def _from(self, digest: Digest, found: Resolution) -> bool:
        """Stream from one of the holders, or from somebody it serves when it is full."""
        holders = list(found.holders)
        holder = self.rng.choice(holders)
        node = self.fleet.by_name[holder.node]
        await self.clock.sleep(self.fleet.world.latency)
        for _ in range(64):
            served = node.serving.setdefault(digest, [])
            if len(served) < SERVE_CAP or not node.alive:
                break
            node = self.rng.choice(served)
        if not node.alive or not node.reachable or node.side != self.side:
            self.resolver.failed(digest, node.member.holder(), "error")
            return False
        if node.lies and digest not in node.held:
            await self.clock.sleep(self.fleet.world.size / self.fleet.world.peer_rate)
            self.resolver.failed(digest, node.member.holder(), "corrupt")
            return False
        served.append(self)
        done = self.pulling.setdefault(digest, asyncio.Event())
        try:
            least = self.fleet.world.size / self.fleet.world.peer_rate
            began = self.clock.monotonic()
            source = node.pulling.get(digest)
            if digest not in node.held:
                if source is None:
                    self.resolver.failed(digest, node.member.holder(), "notfound")
                    return False
                try:
                    async with self.clock.timeout(10.0 + self.fleet.expected):
                        await source.wait()
                except TimeoutError:
                    self.resolver.failed(digest, node.member.holder(), "stall")
                    return False
                if digest not in node.held:
                    self.resolver.failed(digest, node.member.holder(), "error")
                    return False
                await self.clock.sleep(HOP)
            await self.clock.sleep(max(0.0, least - (self.clock.monotonic() - began)))
            self.held.add(digest)
        finally:
            served.remove(self)
            if self.pulling.get(digest) is done:
                del self.pulling[digest]
            done.set()
        self.negative.succeeded(digest)
        await self.provide(digest)
        return True


PEER = KeyPair.from_seed(bytes(32)).peer_id


def _through_the_wire(message: Any) -> Any:
    frame = encode(message, durations=True)
    size, start = varint.decode(frame) or (0, 0)
    assert len(frame) == start + size
    return decode(frame[start:])


@dataclass
class Fleet:
    """All nodes of a run."""

    world: World
    clock: VirtualClock
    tasks: asyncio.TaskGroup
    settings: CoordSettings = field(
        default_factory=lambda: CoordSettings(pulls_per_minute=10**9, max_batch=256)
    )
    asked: dict[str, int] = field(default_factory=dict)
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
    "skew": {"skew": 0.1},
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
    from leasehold.images.resolver import MISMATCH

    def mismatches() -> float:
        return sum(s.value for m in MISMATCH.collect() for s in m.samples if "total" in s.name)

    before = mismatches()
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
    times.sort()
    counts = list(fleet.asked.values()) or [0]
    return Report(
        scenario=scenario,
        nodes=world.nodes,
        served=len(times),
        failed=failed,
        origin_pulls=sum(fleet.origin.pulls.values()) / world.digests,
        intents_mean=sum(counts) / world.nodes,
        intents_max=max(counts),
        p50=statistics.median(times) if times else float("nan"),
        p95=times[int(len(times) * 0.95)] if times else float("nan"),
        direct=fleet.expected,
        mismatches=round(mismatches() - before),
    )

"""One node of the simulated fleet: real coordination, simulated content.

A node that may not be streamed from any more (ten at a time) names those it serves, as the real
transfer does, so that a fleet becomes a tree.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from sim.images.fleet import Fleet

SERVE_CAP = 10
"""Peers one node streams to at a time (the transfer's default)."""

HOP = 0.02
"""Seconds one more node in a chain adds: a piece has to arrive before it can be passed on."""


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

    def connected(self, node: str) -> bool:
        other = self.fleet.by_name[node]
        return other.alive and other.reachable and other.side == self.side

    async def pull_intent_query(
        self, node: str, digest: Digest, seconds: float | None = None
    ) -> Intent:
        other = await self._reach(node)
        self.intents += 1
        other.fleet.asked[other.name, digest] += 1
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

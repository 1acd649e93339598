"""Lookups that walk towards a key, and the serving side of the same four messages.

A lookup keeps the nearest peers it has heard of, asks the nearest ones it has not asked yet, a few
at a time, and ends when the three nearest have answered (or, looking for holders, when enough were
named). A thorough one, which fills the table, asks the twenty nearest. Peers that do not answer are
dropped from the walk and soon from the table. Records of several keys for one peer share a stream.
"""

from __future__ import annotations

import asyncio
import heapq
import random
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from leasehold.core import metrics
from leasehold.core.clock import Clock
from leasehold.core.errors import LeaseholdError
from leasehold.core.service import Service
from leasehold.p2p import identify, varint
from leasehold.p2p.connection import Connection
from leasehold.p2p.errors import PeerError, ProtocolViolation
from leasehold.p2p.host import Host
from leasehold.p2p.kad import ALPHA, COPIES, PROTOCOL, SURE, WITHDRAW, K
from leasehold.p2p.kad.messages import (
    ADD_PROVIDER,
    FIND_NODE,
    GET_PROVIDERS,
    MAX_ADDRESSES,
    MAX_KEY,
    MAX_MESSAGE,
    PING,
    Contact,
    Message,
    decode,
    encode,
)
from leasehold.p2p.kad.records import VALIDITY, ProviderRecords
from leasehold.p2p.kad.table import RoutingTable, position
from leasehold.p2p.keys import PeerId
from leasehold.p2p.multiaddr import Multiaddr
from leasehold.p2p.yamux import Stream

REQUEST_TIMEOUT = 3.0
STREAM_DEADLINE = 60.0
"""Seconds a peer may keep one stream of requests open."""

REFRESH_SECONDS = 600.0
"""Between two walks to a random place and to ourselves, which keep the table full."""

BATCH, BATCH_SECONDS, ENOUGH, MAX_DIALS = 8, 5.0, 4, 32
"""Bootstrap: addresses dialled at a time, for how long, until so many answered, at most."""

LOOKUPS = metrics.counter("p2p_dht_lookup_total", "Lookups of holders.", ("outcome",))
LOOKUP_SECONDS = metrics.histogram(
    "p2p_dht_lookup_duration_seconds",
    "Lookups of holders.",
    ("outcome",),
    buckets=[0.01 * 2**i for i in range(10)],
)
PROVIDES = metrics.counter("p2p_dht_provide_total", "Records sent out.")
PROVIDE_ERRORS = metrics.counter("p2p_dht_provide_error_total", "Records not sent.", ("op",))


@dataclass(slots=True)
class _Walk:
    """The state of one lookup."""

    target: int
    exclude: PeerId
    heard: dict[PeerId, int] = field(default_factory=dict)
    asked: set[PeerId] = field(default_factory=set)
    answered: set[PeerId] = field(default_factory=set)
    failed: set[PeerId] = field(default_factory=set)

    def hear(self, peers: Iterable[PeerId]) -> None:
        for peer in peers:
            if peer not in self.heard and peer != self.exclude:
                self.heard[peer] = position(peer) ^ self.target

    def nearest(self) -> list[PeerId]:
        alive = (p for p in self.heard if p not in self.failed)
        return heapq.nsmallest(K, alive, key=self.heard.__getitem__)


class Kademlia(Service):
    """The DHT on ``host``. ``validity`` is how long records of others are kept, in seconds."""

    def __init__(
        self,
        host: Host,
        *,
        clock: Clock | None = None,
        validity: float = VALIDITY,
        rng: random.Random | None = None,
    ) -> None:
        super().__init__("kademlia", clock=clock)
        self.host = host
        self.table = RoutingTable(host.peer_id)
        self.records = ProviderRecords(self.clock, validity)
        self._rng = rng or random.Random()

    async def start(self) -> None:
        self.host.handle(PROTOCOL, self._serve, deadline=STREAM_DEADLINE)
        self.host.handle(WITHDRAW, self._serve_withdraw, deadline=REQUEST_TIMEOUT)
        self.host.on_identified.append(self._identified)
        self.resources.callback(self.host.on_identified.remove, self._identified)
        self.resources.callback(self.host.unhandle, PROTOCOL)
        self.resources.callback(self.host.unhandle, WITHDRAW)
        self.spawn(self._refresh(), name="refresh")

    async def bootstrap(self, addresses: Iterable[Multiaddr]) -> int:
        """Dial some of ``addresses`` (each naming its peer) and look around; how many answered."""
        left = [a for a in addresses if a.peer_id not in (None, self.host.peer_id)]
        self._rng.shuffle(left)
        left = left[:MAX_DIALS]
        answered = 0
        while left and answered < ENOUGH:
            batch, left = left[:BATCH], left[BATCH:]
            results = await asyncio.gather(*(self._dial(a) for a in batch))
            answered += sum(results)
        if answered:
            await self._lookup(self.host.peer_id, FIND_NODE, thorough=True)
        return answered

    async def _dial(self, address: Multiaddr) -> bool:
        peer = address.peer_id
        assert peer is not None
        try:
            async with self.clock.timeout(BATCH_SECONDS):
                await self.host.connect(peer, [address])
                await self._request(peer, Message(FIND_NODE, self.host.peer_id))
        except (LeaseholdError, TimeoutError):
            return False
        return True

    async def walk(self, key: bytes) -> list[PeerId]:
        """The twenty peers nearest to ``key``, nearest first (without us and the dead)."""
        return (await self._lookup(key, FIND_NODE))[0]

    async def find(self, key: bytes, limit: int = K) -> list[Contact]:
        """Peers that said they hold ``key``: up to about ``limit``, possibly none."""
        began = self.clock.monotonic()
        outcome = "error"
        try:
            found = {c.peer: c for c in self.records.get(key)}
            if len(found) < limit:
                for contact in (await self._lookup(key, GET_PROVIDERS, enough=limit))[1]:
                    found.setdefault(contact.peer, contact)
            outcome = "hit" if found else "miss"
            return list(found.values())
        except (TimeoutError, asyncio.CancelledError):
            outcome = "timeout"
            raise
        finally:
            LOOKUPS.labels(outcome).inc()
            LOOKUP_SECONDS.labels(outcome).observe(self.clock.monotonic() - began)

    async def provide(self, key: bytes) -> int:
        """Tell the peers nearest to ``key`` that we hold it; how many took it."""
        told = (await self.provide_all([key]))[key]
        if told is None:
            raise PeerError("provide_failed", "no peer took the record")
        return told

    async def provide_all(self, keys: Sequence[bytes]) -> dict[bytes, int | None]:
        """:meth:`provide` of many keys, one stream a peer; None: nobody took that record."""
        us = Contact(self.host.peer_id, tuple(self.host.addresses))
        own = position(self.host.peer_id)
        bodies: dict[PeerId, list[bytes]] = {}
        told: dict[bytes, int | None] = {}
        askers: dict[bytes, list[PeerId]] = {}
        for key in keys:
            nearest = askers[key] = (await self.walk(key))[:COPIES]
            where = position(key)
            if len(nearest) < COPIES or own ^ where < position(nearest[-1]) ^ where:
                self.records.add(key, self.host.peer_id, us.addresses)
            frame = _framed(encode(Message(ADD_PROVIDER, key, providers=(us,))))
            for peer in nearest:
                bodies.setdefault(peer, []).append(frame)
        took = dict(
            zip(
                bodies,
                await asyncio.gather(
                    *(self._tell(p, PROTOCOL, b"".join(b)) for p, b in bodies.items())
                ),
                strict=True,
            )
        )
        for key, nearest in askers.items():
            count = sum(took[peer] for peer in nearest)
            told[key] = count if count or not nearest else None
            if told[key] is None:
                PROVIDE_ERRORS.labels("provide").inc()
            else:
                PROVIDES.inc()
        return told

    async def withdraw(self, key: bytes) -> None:
        """Take our record back, from ourselves and from the peers of ours that may keep it."""
        self.records.remove(key, self.host.peer_id)
        nearest = await self.walk(key)
        await asyncio.gather(*(self._tell(peer, WITHDRAW, _framed(key)) for peer in nearest))

    # asking

    async def _lookup(
        self, key: bytes, kind: int, *, enough: int = 0, thorough: bool = False
    ) -> tuple[list[PeerId], list[Contact]]:
        walk = _Walk(position(key), self.host.peer_id)
        walk.hear(self.table.closest(walk.target))
        providers: dict[PeerId, Contact] = {}
        message = Message(kind, key)
        running: dict[asyncio.Task[Message | None], PeerId] = {}
        async with asyncio.TaskGroup() as tasks:
            try:
                while True:
                    nearest = walk.nearest()
                    first = nearest[:SURE]
                    if not thorough and len(first) == SURE and walk.answered.issuperset(first):
                        break
                    for peer in nearest:
                        if len(running) >= ALPHA:
                            break
                        if peer not in walk.asked:
                            walk.asked.add(peer)
                            running[tasks.create_task(self._try(peer, message))] = peer
                    if not running or (enough and len(providers) >= enough):
                        break
                    done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        peer, answer = running.pop(task), task.result()
                        if answer is None:
                            walk.failed.add(peer)
                            continue
                        walk.answered.add(peer)
                        for contact in answer.closer:
                            self.host.learn(contact.peer, contact.addresses)
                        walk.hear(c.peer for c in answer.closer)
                        for contact in answer.providers:
                            self.host.learn(contact.peer, contact.addresses)
                            providers.setdefault(contact.peer, contact)
            finally:
                for task in running:
                    task.cancel()
        return walk.nearest(), list(providers.values())

    async def _try(self, peer: PeerId, message: Message) -> Message | None:
        try:
            async with self.clock.timeout(REQUEST_TIMEOUT):
                return await self._request(peer, message)
        except (LeaseholdError, TimeoutError):
            self.table.failed(peer)
            return None

    async def _request(self, peer: PeerId, message: Message) -> Message:
        stream = await self.host.open(peer, PROTOCOL)
        try:
            await stream.write(_framed(encode(message)))
            answer = decode(await stream.read_frame(MAX_MESSAGE))
        finally:
            stream.close()
        if answer.type != message.type:
            raise ProtocolViolation("kad_unexpected", "an answer to something else")
        self.table.add(peer)
        return answer

    async def _tell(self, peer: PeerId, protocol: str, body: bytes) -> bool:
        try:
            async with self.clock.timeout(REQUEST_TIMEOUT):
                stream = await self.host.open(peer, protocol)
                try:
                    await stream.write(body, fin=True)
                    # Nobody answers a record; some reset the stream after it, some keep it open.
                    # That the protocol is agreed says that what went with it arrived.
                    await stream.negotiated()
                finally:
                    stream.close()
        except (LeaseholdError, TimeoutError):
            return False
        return True

    async def ping(self, peer: PeerId) -> None:
        """Kademlia's own ping (libp2p's is ``leasehold.p2p.ping``)."""
        async with self.clock.timeout(REQUEST_TIMEOUT):
            await self._request(peer, Message(PING))

    # serving

    async def _serve(self, stream: Stream, connection: Connection) -> None:
        while True:
            try:
                request = decode(await stream.read_frame(MAX_MESSAGE))
            except PeerError as error:
                if error.code == "stream_eof":
                    return
                raise
            answer = self._answer(request, connection)
            if answer is not None:
                await stream.write(_framed(encode(answer)))

    def _answer(self, request: Message, connection: Connection) -> Message | None:
        if request.type == PING:
            return Message(PING)
        if not request.key:
            raise ProtocolViolation("kad_malformed", "a request without a key")
        if request.type == ADD_PROVIDER:
            for contact in request.providers:
                # Only about oneself; whoever says it for others is not believed.
                if contact.peer == connection.peer and contact.addresses:
                    addresses = contact.addresses[:MAX_ADDRESSES]
                    self.records.add(request.key, contact.peer, addresses)
                    self.host.learn(contact.peer, addresses)
            return None
        if request.type == FIND_NODE:
            return Message(FIND_NODE, closer=self._closer(request.key, connection.peer))
        if request.type == GET_PROVIDERS:
            return Message(
                GET_PROVIDERS,
                request.key,
                closer=self._closer(request.key, connection.peer),
                providers=tuple(self._providers(request.key)),
            )
        raise ProtocolViolation("kad_unsupported", f"Kademlia message {request.type}")

    def _closer(self, key: bytes, asker: PeerId) -> tuple[Contact, ...]:
        nearest = self.table.closest(position(key), but=asker.__eq__)
        return tuple(Contact(p, a) for p in nearest if (a := self.host.known_addresses(p)))

    def _providers(self, key: bytes) -> list[Contact]:
        found = self.records.get(key)
        if len(found) > K:
            found = self._rng.sample(found, K)  # spread the load over all who hold it
        return found

    async def _serve_withdraw(self, stream: Stream, connection: Connection) -> None:
        self.records.remove(await stream.read_frame(MAX_KEY), connection.peer)

    def _identified(self, connection: Connection, said: identify.Identity) -> None:
        if PROTOCOL in said.protocols:
            self.table.add(connection.peer)

    async def _refresh(self) -> None:
        while True:
            await self.clock.sleep(self._rng.uniform(0.5, 1.0) * REFRESH_SECONDS)
            if len(self.table):
                await self._lookup(self.host.peer_id, FIND_NODE, thorough=True)
                await self._lookup(secrets.token_bytes(32), FIND_NODE, thorough=True)


def _framed(body: bytes) -> bytes:
    return varint.encode(len(body)) + body

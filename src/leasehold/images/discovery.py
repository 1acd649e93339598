"""Records of holders, kept honest: said when content arrives, said again in time, taken back.

``announce`` queues a digest; a task tells the DHT, many at a time. Everything announced is told
again before half of a record's validity is over (the original told it once and let it lapse), and
withdrawn when it is evicted. A store that cannot be asked changes nothing: *unknown* is no reason
to withdraw.

Health tells how far the DHT is to be believed: the cube root of table coverage, lookup latency and
a self-test (every minute: provide and find a key of our own), each 1.0 while there is no data.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence

from leasehold.core import metrics
from leasehold.core.clock import Clock
from leasehold.core.errors import LeaseholdError, unavailable
from leasehold.core.logs import get_logger
from leasehold.core.service import Service
from leasehold.images.membership import View
from leasehold.images.ports import Holder, Store
from leasehold.model.digest import Digest
from leasehold.p2p import multibase
from leasehold.p2p.kad.dht import Kademlia
from leasehold.p2p.kad.messages import Contact
from leasehold.p2p.kad.records import VALIDITY
from leasehold.p2p.multiaddr import Multiaddr

BATCH = 64
"""Records told at a time; those for one peer share a stream."""

GATHER = 0.25
"""Seconds in which what is announced is gathered into one batch."""

MAX_ANNOUNCED = 100_000
COUNT_MEMO = 60.0
"""Seconds a count of holders is good enough for eviction."""

PROVIDE_SECONDS = 10.0
FRESH = 60.0
"""Seconds after which a record that was told is worth telling again."""

REPROVIDE_CHECK = 60.0
SELF_TEST = 60.0
TESTS = 10
WINDOW = 300.0
"""Seconds of lookups that latency is judged by."""

GOOD_LATENCY, BAD_LATENCY = 0.2, 5.0
TARGET_CAP = 256
UNHEALTHY = 0.3
EAGER_SECONDS, EAGER_FOR, LAZY_SECONDS = 5.0, 60.0, 30.0
"""Bootstrap: how often at first, for how long, and how often after."""

ADVERTISED = metrics.counter("p2p_dht_advertise_total", "Digests queued for the DHT.")
RECONCILED = metrics.counter("p2p_dht_reconcile_total", "Records told again in time.")
HEALTH = metrics.gauge("p2p_dht_health_score", "How far the DHT is to be believed, 0 to 1.")

log = get_logger(__name__)


def key_of(digest: Digest) -> bytes:
    """The DHT's key of a digest: its sha2-256 multihash, 34 bytes."""
    return b"\x12\x20" + bytes.fromhex(digest.hex)


def cid_of(digest: Digest) -> str:
    """The CID (version 1, raw) other tools print for a digest."""
    return "b" + multibase.b32encode(b"\x01\x55" + key_of(digest))


class Health:
    """The score. ``target`` is the table size that would be full coverage."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._latencies: deque[tuple[float, float]] = deque(maxlen=1000)
        self._tests: deque[bool] = deque(maxlen=TESTS)

    def lookup_took(self, seconds: float) -> None:
        self._latencies.append((self._clock.monotonic(), seconds))

    def tested(self, passed: bool) -> None:
        self._tests.append(passed)

    def score(self, size: int, target: int) -> float:
        coverage = min(1.0, size / target) if target > 0 else 1.0
        tests = sum(self._tests) / len(self._tests) if self._tests else 1.0
        value = float((coverage * self._latency() * tests) ** (1 / 3))
        HEALTH.set(value)
        return value

    def _latency(self) -> float:
        oldest = self._clock.monotonic() - WINDOW
        while self._latencies and self._latencies[0][0] < oldest:
            self._latencies.popleft()
        if not self._latencies:
            return 1.0
        ordered = sorted(seconds for _, seconds in self._latencies)
        p95 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))]
        return min(1.0, max(0.0, (BAD_LATENCY - p95) / (BAD_LATENCY - GOOD_LATENCY)))


class Discovery(Service):
    """``ports.Announcer`` and the resolver's ``Lookup``.

    ``transfer_port`` is assumed for holders that no member is known for; ``bootstrap`` are
    addresses to begin with beside those of the members.
    """

    def __init__(
        self,
        node: str,
        kad: Kademlia,
        view: Callable[[], View],
        clock: Clock,
        *,
        transfer_port: int = 29501,
        bootstrap: Sequence[Multiaddr] = (),
        validity: float = VALIDITY,
        rng: random.Random | None = None,
    ) -> None:
        super().__init__("discovery", clock=clock)
        self.node = node
        self.kad = kad
        self.scores = Health(self.clock)
        self._view = view
        self._transfer_port = transfer_port
        self._seeds = tuple(bootstrap)
        self._again = validity / 2
        self._rng = rng or random.Random()
        self._told: OrderedDict[Digest, float] = OrderedDict()
        self._queue: OrderedDict[Digest, bool] = OrderedDict()
        self._wake = asyncio.Event()
        self._counts: OrderedDict[Digest, tuple[float, int]] = OrderedDict()

    async def start(self) -> None:
        self.spawn(self._stay_connected(), name="bootstrap")
        self.spawn(self._tell_again(), name="reprovide")
        self.spawn(self._test_self(), name="self-test")
        self.spawn(self._work(), name="provide")

    # the announcer

    def announce(self, digest: Digest) -> None:
        """In the background: we hold ``digest``."""
        if len(self._told) < MAX_ANNOUNCED:
            self._told.setdefault(digest, float("-inf"))
        self._push(digest, True)
        ADVERTISED.inc()

    def withdraw(self, digest: Digest) -> None:
        """In the background: we do not hold ``digest`` any more."""
        if self._told.pop(digest, None) is not None:
            self._push(digest, False)

    async def announce_all(self, store: Store) -> int:
        """Announce what the store holds, as after a start; how many. Raises what the store does."""
        count = 0
        async for digest in store.digests():
            self.announce(digest)
            count += 1
        return count

    async def provide(self, digest: Digest) -> None:
        """Tell the DHT now; raises when nobody took it."""
        await self.kad.provide(key_of(digest))
        self._told[digest] = self.clock.monotonic()

    async def holder_count(self, digest: Digest) -> int:
        """Nodes holding ``digest``, as of at most a minute ago; raises when the DHT is unwell."""
        now = self.clock.monotonic()
        memo = self._counts.get(digest)
        if memo is not None and now - memo[0] < COUNT_MEMO:
            return memo[1]
        if not self.able:
            raise unavailable("discovery_unhealthy", "the DHT cannot tell how many nodes hold it")
        count = len(await self.kad.find(key_of(digest)))
        self._counts[digest] = (now, count)
        while len(self._counts) > 10_000:
            self._counts.popitem(last=False)
        return count

    # the lookup

    async def find(self, digest: Digest, limit: int = 20) -> list[Holder]:
        """Who says to hold ``digest``; not ourselves, nobody without an address to fetch from."""
        began = self.clock.monotonic()
        try:
            found = await self.kad.find(key_of(digest), limit)
        finally:
            self.scores.lookup_took(self.clock.monotonic() - began)
        holders = (self._holder(contact) for contact in found)
        return [holder for holder in holders if holder is not None][:limit]

    @property
    def able(self) -> bool:
        """Whether the DHT can be asked, and its answer believed."""
        return self.health() >= UNHEALTHY and len(self.kad.table) > 0

    def health(self) -> float:
        return self.scores.score(len(self.kad.table), min(len(self._view()) - 1, TARGET_CAP))

    def _holder(self, contact: Contact) -> Holder | None:
        if contact.peer == self.kad.host.peer_id:
            return None
        member = self._view().by_peer.get(contact.peer)
        if member is not None and member.transfer:
            return member.holder()
        for address in contact.addresses:
            where = address.tcp()
            if where is not None and address.get("ip4", "ip6"):
                host = f"[{where[0]}]" if ":" in where[0] else where[0]
                peer = str(contact.peer)
                return Holder(peer, f"{host}:{self._transfer_port}", peer)
        return None

    # inner workings

    def _push(self, digest: Digest, held: bool) -> None:
        self._queue[digest] = held  # the last word counts; a digest is queued once
        while len(self._queue) > MAX_ANNOUNCED:
            self._queue.popitem(last=False)
        self._wake.set()

    async def _work(self) -> None:
        while True:
            while not self._queue:
                self._wake.clear()
                await self._wake.wait()
            await self.clock.sleep(GATHER)
            held: list[Digest] = []
            gone: list[Digest] = []
            while self._queue and len(held) + len(gone) < BATCH:
                digest, here = self._queue.popitem(last=False)
                if not here:
                    gone.append(digest)
                elif self.clock.monotonic() - self._told.get(digest, float("-inf")) > FRESH:
                    held.append(digest)
            try:
                async with self.clock.timeout(PROVIDE_SECONDS + len(gone)):
                    for digest in gone:
                        await self.kad.withdraw(key_of(digest))
                    told = await self.kad.provide_all([key_of(digest) for digest in held])
            except (LeaseholdError, TimeoutError) as error:
                # They stay among what is to be told again, and are told at the next look.
                log.info("discovery.provide_failed", digests=len(held), error=str(error))
                continue
            now = self.clock.monotonic()
            for digest in held:
                if told[key_of(digest)] is not None and digest in self._told:
                    self._told[digest] = now

    async def _tell_again(self) -> None:
        while True:
            await self.clock.sleep(REPROVIDE_CHECK)
            if not len(self.kad.table):
                continue
            # Spread over the last quarter, so that a fleet started at once does not tell at once.
            due = self.clock.monotonic() - self._again
            for digest, at in list(self._told.items()):
                early = self._rng.uniform(0.0, self._again / 2)
                if at < due + early * (at != float("-inf")) and digest not in self._queue:
                    self._push(digest, True)
                    RECONCILED.inc()

    async def _test_self(self) -> None:
        key = b"\x12\x20" + hashlib.sha256(self.kad.host.peer_id).digest()
        while True:
            await self.clock.sleep(SELF_TEST)
            if len(self._view()) < 2 and not self._seeds:
                continue  # alone on purpose: there is nothing to test
            try:
                async with self.clock.timeout(PROVIDE_SECONDS):
                    await self.kad.provide(key)
                    found = await self.kad.find(key)
                self.scores.tested(any(c.peer == self.kad.host.peer_id for c in found))
            except (LeaseholdError, TimeoutError):
                self.scores.tested(False)

    async def _stay_connected(self) -> None:
        """Dial members until the table holds a few, eagerly at first."""
        began = self.clock.monotonic()
        while True:
            addresses = [*self._seeds, *self._member_addresses()]
            if addresses and len(self.kad.table) < min(5, len(addresses)):
                await self.kad.bootstrap(addresses)
            eager = self.clock.monotonic() - began < EAGER_FOR
            await self.clock.sleep(EAGER_SECONDS if eager else LAZY_SECONDS)

    def _member_addresses(self) -> list[Multiaddr]:
        out = []
        for member in self._view().members.values():
            peer = member.peer
            if member.node == self.node or peer is None:
                continue
            for text in member.addresses[:1]:
                try:
                    out.append(Multiaddr.parse(text).with_peer(peer))
                except ValueError:
                    continue
        return out

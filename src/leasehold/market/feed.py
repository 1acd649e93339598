"""The feed: what a chain's blocks say about the market becomes events on the log, exactly once.

Each fact has an id made of what it is ("order X was created"), not of where it was read, so that
reading a block twice, or hearing of the same fact from a block and from a look at the market's
state, appends it once. A block's position is kept after its events are: a crash between the two
reads the block again and changes nothing.

Events of the block itself count as much as those of transactions: leases that ran out of funds are
closed by no transaction. When a group or deployment ends, its orders end, whether the chain says so
separately or not.

Entities: ``deployment`` (created, updated, closed, group changes), ``order`` (created, closed, bids
and leases on it), ``lease`` (only this provider's: created, reclaiming, closed).
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import datetime
import re
from collections import deque
from collections.abc import Iterable
from typing import Any

import msgspec

from leasehold.core import ids, metrics
from leasehold.core.clock import Clock
from leasehold.core.logs import get_logger
from leasehold.core.retry import Backoff
from leasehold.core.service import Service
from leasehold.events.event import Checkpoint, Entity, NewEvent
from leasehold.events.log import ANY, Log
from leasehold.market.ports import Blocks, MarketReader
from leasehold.model.chain import Event as ChainEvent
from leasehold.model.chain import IndexedBlock
from leasehold.model.events import market as e
from leasehold.model.market import BidId, DeploymentId, GroupId, LeaseId, OrderId

log = get_logger(__name__)

FACTS = metrics.counter("leasehold_market_facts_total", "market events written", ["type"])
POSITION = metrics.gauge("leasehold_market_feed_height", "height up to which blocks were read")
LAG = metrics.gauge("leasehold_market_feed_lag_seconds", "age of the newest block when written")

ACTIVITY = "market-feed"
"""Key of the position's checkpoint."""

WRITERS = 64
"""Entities of one block written at a time."""

RECONCILE_S = 300.0
"""How often the market's own state is compared with what was heard."""

_TYPED = re.compile(r"^akash\.[a-z]+\.v[0-9a-z]+\.Event([A-Za-z]+)$")

Fact = tuple[Entity, msgspec.Struct, str]
"""Where, what, and the key that makes it one fact."""


class Feed(Service):
    """Follows ``blocks`` and writes what concerns the market of ``provider`` (my address).

    ``reader`` is asked at the first start for orders and leases older than the first block read,
    and from time to time for what was missed; None where there is nothing to ask. ``network``
    names the position, so that one log can follow several chains.
    """

    def __init__(
        self,
        log: Log,
        blocks: Blocks,
        provider: str,
        *,
        clock: Clock | None = None,
        reader: MarketReader | None = None,
        network: str = "ledger",
        reconcile_s: float = RECONCILE_S,
    ) -> None:
        super().__init__("market feed", clock=clock)
        self.log = log
        self.blocks = blocks
        self.provider = provider
        self.reader = reader
        self.entity = Entity("feed", network)
        self.height = 0
        self._reconcile_s = reconcile_s
        self._backoff = Backoff(first=0.1, cap=10.0)

    async def start(self) -> None:
        saved = (await self.log.checkpoints(ACTIVITY)).get(self.entity)
        self.height = int(saved.state) if saved and saved.state else 0
        POSITION.set(self.height)
        self.spawn(self._follow(), name="follow")
        if self.reader is not None:
            self.spawn(self._reconcile(), name="reconcile")

    async def _follow(self) -> None:
        failures = 0
        while True:
            try:
                async for block in self.blocks.blocks(self.height):
                    await self.take(block)
                    failures = 0
            except asyncio.CancelledError:
                raise
            except Exception as error:
                failures += 1
                log.warning("feed.interrupted", height=self.height, error=str(error)[:200])
            await self.clock.sleep(self._backoff.delay(max(1, failures)))

    async def take(self, block: IndexedBlock) -> None:
        """Write the facts of one block, then the position."""
        if block.height <= self.height:
            return
        facts: dict[Entity, list[Fact]] = {}
        for event in _events(block):
            for fact in await self._facts(event, block.height, facts):
                facts.setdefault(fact[0], []).append(fact)
        # Entities beside each other, so that the log commits them together; each in its order.
        waiting = deque(facts.values())
        async with asyncio.TaskGroup() as tasks:
            for _ in range(min(WRITERS, len(waiting))):
                tasks.create_task(self._write_all(waiting))
        await self.log.append(
            self.entity,
            ANY,
            [],
            checkpoint=Checkpoint(ACTIVITY, None, str(block.height).encode()),
        )
        self.height = block.height
        POSITION.set(block.height)
        LAG.set(max(0.0, self.clock.now() - seconds(block.time)))

    async def _write_all(self, waiting: deque[list[Fact]]) -> None:
        while waiting:
            for fact in waiting.popleft():
                await self._write(*fact)

    async def _write(self, entity: Entity, payload: msgspec.Struct, key: str) -> None:
        event = NewEvent.of(payload, id=ids.derived(0.0, str(entity), key))
        await self.log.append(entity, ANY, [event])
        FACTS.labels(event.type).inc()

    # -- from chain words to ours --------------------------------------------------------------

    async def _facts(self, event: ChainEvent, height: int, before: Iterable[Entity]) -> list[Fact]:
        """``before`` are the entities the block has said something about so far."""
        match = _TYPED.match(event.type)
        if match is None:
            return []
        try:
            return await self._translate(match[1], _Values(event), height, before)
        except (KeyError, ValueError, TypeError, msgspec.MsgspecError) as error:
            # A chain may say things in a way we do not know; the rest of the block still counts.
            log.error("feed.event_unreadable", type=event.type, height=height, error=repr(error))
            return []

    async def _translate(
        self, what: str, said: _Values, height: int, before: Iterable[Entity]
    ) -> list[Fact]:
        if what == "DeploymentCreated":
            did = said.deployment()
            payload = e.DeploymentCreated(id=did, hash=said.hash(), height=height)
            return [(_deployment(did), payload, "created")]
        if what == "DeploymentUpdated":
            did = said.deployment()
            updated = e.DeploymentUpdated(id=did, hash=said.hash(), height=height)
            return [(_deployment(did), updated, f"updated {height} {said.hash()}")]
        if what == "DeploymentClosed":
            did = said.deployment()
            closed = e.DeploymentClosed(id=did, height=height, reason=said.number("reason", 1))
            orders = await self._orders_end(f"{did}/", height, before)
            return [(_deployment(did), closed, "closed"), *orders]
        if what in ("GroupStarted", "GroupPaused", "GroupClosed"):
            gid = said.group()
            state = {"GroupStarted": "open", "GroupPaused": "paused"}.get(what, "closed")
            changed = e.GroupChanged(id=gid, state=state, height=height)
            facts: list[Fact] = [(_deployment(gid.deployment), changed, f"{gid} {state} {height}")]
            if state != "open":
                facts += await self._orders_end(f"{gid}/", height, before)
            return facts
        if what == "OrderCreated":
            return [order_created(said.order(), height)]
        if what == "OrderClosed":
            return [order_closed(said.order(), height)]
        return self._translate_bid(what, said, height)

    def _translate_bid(self, what: str, said: _Values, height: int) -> list[Fact]:
        if what == "BidCreated":
            return [bid_created(said.lease(), said.price(), height)]
        if what == "BidClosed":
            return [bid_closed(said.lease(), height, said.number("reason", 0))]
        if what == "LeaseCreated":
            return self.lease_created(said.lease(), said.price(), height)
        if what == "LeaseClosed":
            return self.lease_closed(said.lease(), height, said.number("reason", 1))
        if what == "LeaseReclaimStarted":
            lid = said.lease()
            if lid.provider != self.provider:
                return []
            deadline = float(said.values.get("deadline", 0))
            notice = e.LeaseReclaiming(id=lid, deadline=deadline, height=height)
            return [(_lease(lid), notice, "reclaiming")]
        return []

    def lease_created(self, lid: LeaseId, price: e.Price, height: int) -> list[Fact]:
        """On the order for everybody who bid on it, on the lease when it is ours."""
        created = e.LeaseCreated(id=lid, price=price, height=height)
        facts: list[Fact] = []
        if lid.provider == self.provider:
            facts.append((_lease(lid), created, "created"))
        return [*facts, (_order(lid.order), created, f"lease {lid.provider}")]

    def lease_closed(self, lid: LeaseId, height: int, reason: int) -> list[Fact]:
        if lid.provider != self.provider:
            return []
        return [(_lease(lid), e.LeaseClosed(id=lid, height=height, reason=reason), "closed")]

    async def _orders_end(self, prefix: str, height: int, before: Iterable[Entity]) -> list[Fact]:
        """The orders we know of under a deployment or group that ended."""
        known = {entity.id for entity, _ in await self.log.entities("order", prefix)}
        known |= {e.id for e in before if e.kind == "order" and e.id.startswith(prefix)}
        return [order_closed(OrderId.parse(id), height) for id in sorted(known)]

    # -- what blocks did not tell --------------------------------------------------------------

    async def _reconcile(self) -> None:
        failures = 0
        while True:
            try:
                await self.reconcile()
                failures = 0
                await self.clock.sleep(self._reconcile_s)
            except asyncio.CancelledError:
                raise
            except Exception as error:
                failures += 1
                log.warning("feed.reconcile_failed", error=str(error)[:200])
                await self.clock.sleep(self._backoff.delay(failures))

    async def reconcile(self) -> int:
        """Compare with the market's state; writes what was missed and says how many facts.

        Only what exists on the market now is compared: open orders, this provider's open bids and
        live leases, and those leases of the log the market no longer knows as live.
        """
        reader = self.reader
        assert reader is not None
        height = self.height
        facts = [order_created(order, height) async for order in reader.open_orders()]
        live = set()
        async for lease in reader.live_leases(self.provider):
            live.add(lease.id)
            price = e.Price(lease.denom, lease.price)
            facts.append(order_created(lease.id.order, height))
            facts.append(bid_created(lease.id, price, height))
            facts += self.lease_created(lease.id, price, height)
        async for bid in reader.open_bids(self.provider):
            facts.append(order_created(bid.id.order, height))
            facts.append(bid_created(bid.id, e.Price(bid.denom, bid.price), height))
        for entity, _ in await self.log.entities("lease"):
            lid = LeaseId.parse(entity.id)
            if lid.provider == self.provider and lid not in live and self.height == height:
                facts += await self._closed_meanwhile(reader, lid, height)
        written = 0
        for entity, payload, key in facts:
            if await self._missing(entity, key):
                await self._write(entity, payload, key)
                written += 1
        if written:
            log.info("feed.reconciled", facts=written, height=height)
        return written

    async def _closed_meanwhile(
        self, reader: MarketReader, lid: LeaseId, height: int
    ) -> list[Fact]:
        """A lease we believe in, which the market says is over."""
        if not await self._missing(_lease(lid), "closed"):
            return []
        bid = await reader.bid(lid)
        if bid is None or bid.state in ("open", "active"):
            return []
        return self.lease_closed(lid, height, 0)

    async def _missing(self, entity: Entity, key: str) -> bool:
        wanted = ids.derived(0.0, str(entity), key)
        async for event in self.log.read(entity):
            if getattr(event, "id", None) == wanted:
                return False
        return True


class _Values:
    """The attributes of a typed event: JSON values, or plain text where a chain writes that."""

    def __init__(self, event: ChainEvent) -> None:
        self.values: dict[str, Any] = {}
        for key, text in event.as_dict().items():
            try:
                self.values[key] = msgspec.json.decode(text)
            except msgspec.DecodeError:
                self.values[key] = text

    def _id(self) -> dict[str, Any]:
        found = self.values.get("id", self.values.get("bid_id", self.values.get("lease_id")))
        if not isinstance(found, dict):
            raise ValueError("it has no id")
        return found

    def deployment(self) -> DeploymentId:
        found = self._id()
        return DeploymentId(str(found["owner"]), int(found["dseq"]))

    def group(self) -> GroupId:
        found = self._id()
        return GroupId(str(found["owner"]), int(found["dseq"]), int(found["gseq"]))

    def order(self) -> OrderId:
        found, group = self._id(), self.group()
        return OrderId(group.owner, group.dseq, group.gseq, int(found["oseq"]))

    def lease(self) -> LeaseId:
        found, order = self._id(), self.order()
        return LeaseId(order.owner, order.dseq, order.gseq, order.oseq, str(found["provider"]))

    def price(self) -> e.Price:
        found = self.values["price"]
        return e.Price(str(found["denom"]), str(found["amount"]))

    def number(self, name: str, default: int) -> int:
        found = self.values.get(name, default)
        if isinstance(found, str) and not found.isdigit():
            return REASONS.get(found, default)
        return int(found)

    def hash(self) -> str:
        """Hex; public chains write the 32 bytes in base64."""
        text = str(self.values.get("hash", self.values.get("version", "")))
        if re.fullmatch("[0-9a-f]{64}", text):
            return text
        try:
            return base64.b64decode(text, validate=True).hex()
        except binascii.Error:
            return text


REASONS = {
    "lease_closed_owner": 1,
    "lease_closed_reason_unstable": 10000,
    "lease_closed_reason_decommission": 10001,
    "lease_closed_reason_unspecified": 10002,
    "lease_closed_reason_manifest_timeout": 10003,
    "lease_closed_reason_insufficient_funds": 20000,
}
"""Close reasons by the names public chains write."""


def order_created(id: OrderId, height: int) -> Fact:
    return _order(id), e.OrderCreated(id=id, height=height), "created"


def order_closed(id: OrderId, height: int) -> Fact:
    return _order(id), e.OrderClosed(id=id, height=height), "closed"


def bid_created(id: BidId, price: e.Price, height: int) -> Fact:
    return _order(id.order), e.BidCreated(id=id, price=price, height=height), f"bid {id.provider}"


def bid_closed(id: BidId, height: int, reason: int) -> Fact:
    payload = e.BidClosed(id=id, height=height, reason=reason)
    return _order(id.order), payload, f"bid closed {id.provider}"


def _events(block: IndexedBlock) -> Iterable[ChainEvent]:
    for transaction in block.transactions:
        if transaction.code == 0:
            yield from transaction.raw_events
    yield from block.events


def _deployment(id: DeploymentId) -> Entity:
    return Entity("deployment", str(id))


def _order(id: OrderId) -> Entity:
    return Entity("order", str(id))


def _lease(id: LeaseId) -> Entity:
    return Entity("lease", str(id))


def seconds(time: str) -> float:
    """RFC 3339 with any number of decimals to seconds UTC."""
    base, _, fraction = time.rstrip("Z").partition(".")
    whole = datetime.datetime.fromisoformat(base).replace(tzinfo=datetime.UTC).timestamp()
    return whole + float(f"0.{fraction or 0}")

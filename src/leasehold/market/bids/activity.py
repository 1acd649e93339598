"""The life of a bid, from an order's creation to a won lease or to nothing left behind.

::

    order created -> could we serve it? -> reserve room -> price it -> bid
        lease created, ours         -> lease.won on the lease; the reservation goes with it
        lease created, another's    -> release, close the bid if it is still open
        order, group or deployment closed, bid closed elsewhere -> release, close the bid
        nobody accepted it in time  -> close the bid, release

Whatever ends it, the room is given back and no bid stays open: both are done on every way out, and
both look before they act, so that a crash in between only means doing it again. What has happened
is read from the order's events; what is true now is asked of the market before anything is done.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import msgspec

from leasehold.core import metrics
from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.core.logs import get_logger
from leasehold.events.event import Entity, Event
from leasehold.market.bids import pricing
from leasehold.market.bids.rules import Audits, reasons_against
from leasehold.market.ports import BidView, Inventory, MarketReader, MarketWriter, Offer
from leasehold.market.settings import MarketSettings
from leasehold.model.events import market as e
from leasehold.model.market import BidId, LeaseId, OrderId
from leasehold.model.resources import GroupSpec
from leasehold.observe.activity import Context, Outcome, Reconciler

log = get_logger(__name__)

BIDS = metrics.counter("leasehold_market_bids_total", "how orders ended for us", ["outcome"])

UNSPECIFIED = 10002
"""Close reason of a bid nobody wanted; no lease hangs on it."""

RETRYABLE = (Kind.UNAVAILABLE, Kind.TIMEOUT, Kind.RATE_LIMITED, Kind.INTERNAL)


class Bidder:
    """What the bids of one provider share.

    ``attributes`` (the provider's registered ones) and ``reclamation_window`` (seconds of notice it
    gives) are by default those of the settings.

    Register with ``engine.register(bidder.activity, kind=BidActivity)``.
    """

    def __init__(
        self,
        provider: str,
        reader: MarketReader,
        writer: MarketWriter,
        inventory: Inventory,
        *,
        clock: Clock,
        settings: MarketSettings | None = None,
        attributes: Mapping[str, str] | None = None,
        reclamation_window: int | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.provider = provider
        self.reader = reader
        self.writer = writer
        self.inventory = inventory
        self.clock = clock
        self.settings = settings or MarketSettings()
        self.attributes = dict(self.settings.attributes if attributes is None else attributes)
        self.reclamation_window = (
            self.settings.reclamation_window_s if reclamation_window is None else reclamation_window
        )
        self.paused = False
        self.pricing = pricing.make(self.settings, rng)
        self.audits = Audits(reader, provider, clock, self.settings.auditor_cache_s)

    def activity(self, context: Context) -> BidActivity:
        return BidActivity(context, self)


@dataclass(slots=True)
class _Folded:
    """What the order's events say. Prices are texts, heights whole numbers."""

    created: int = 0
    closed: bool = False
    bid: bool = False
    bid_closed: bool = False
    winner: str = ""
    price: str = ""
    denom: str = ""
    height: int = 0


class BidActivity(Reconciler):
    """One order. See the module for its states.

    It saves nothing: after a restart it folds its few events and settles again, because the room an
    open bid needs has to be reserved again with an inventory that forgot it.
    """

    name: ClassVar[str] = "market-bid"
    entity_kind: ClassVar[str] = "order"

    def __init__(self, context: Context, bidder: Bidder) -> None:
        super().__init__(context)
        self.bidder = bidder
        self.order = OrderId.parse(context.entity.id)
        order = self.order
        self.id: BidId = LeaseId(order.owner, order.dseq, order.gseq, order.oseq, bidder.provider)
        self.folded = _Folded()
        self._deadline: float | None = None
        self._group: GroupSpec | None = None

    def fold(self, event: Event) -> None:
        said, now = event.payload, self.folded
        if isinstance(said, e.OrderCreated):
            now.created = now.created or said.height
        elif isinstance(said, e.OrderClosed):
            now.closed = True
        elif isinstance(said, e.BidCreated) and said.id == self.id:
            now.bid = True
        elif isinstance(said, e.BidClosed) and said.id == self.id:
            now.bid_closed = True
        elif isinstance(said, e.LeaseCreated):
            now.winner = said.id.provider
            now.price, now.denom, now.height = said.price.amount, said.price.denom, said.height

    async def settle(self) -> Outcome:
        now = self.folded
        if now.winner == self.id.provider:
            return await self._won()
        if now.winner:
            return await self._give_up("lost")
        if now.closed:
            return await self._give_up("closed")
        if now.bid_closed:
            return await self._give_up("withdrawn")
        try:
            return await self._pursue()
        except LeaseholdError as error:
            if error.kind in RETRYABLE:
                raise
            await self._say(error.code, error.message)
            return await self._give_up("refused")

    async def fired(self, timer: str) -> Outcome:
        """Nobody accepted the bid in time, unless the market says otherwise by now."""
        bid = await self.bidder.reader.bid(self.id)
        if bid is not None and bid.state == "active":
            # The event is on its way; what it leads to is done when it comes.
            return Outcome.SLEEP
        return await self._give_up("timeout")

    # -- the way up ----------------------------------------------------------------------------

    async def _pursue(self) -> Outcome:
        bidder = self.bidder
        if self._deadline is not None and self.folded.bid:
            return Outcome.SLEEP
        offer = await bidder.reader.offer(self.id)
        if offer is None or offer.state == "closed":
            return await self._give_up("gone")
        if offer.bid is not None:
            return await self._stand_by(offer, offer.bid)
        if offer.state != "open":
            return await self._give_up("gone")
        if bidder.paused:
            return await self._give_up("paused")
        against = await reasons_against(
            offer.group, bidder.attributes, bidder.audits, bidder.settings.max_volumes
        )
        if offer.reclamation_window > bidder.reclamation_window:
            return await self._give_up("notice")
        if against:
            await self._say(against[0].code, "; ".join(v.message for v in against))
            return await self._give_up("declined")
        await self._place(offer)
        return await self._expire_later(bidder.clock.now())

    async def _place(self, offer: Offer) -> None:
        bidder = self.bidder
        await self._reserve(offer)
        async with self.context.outside():
            price = await bidder.pricing.price(self.order, offer.group)
        ceiling = pricing.most(offer.group)
        if price > ceiling:
            raise LeaseholdError(
                "too_cheap_for_us",
                "the order pays less than it costs",
                expected=f"≥ {price}",
                got=ceiling,
            )
        async with self.context.outside():
            await bidder.writer.create_bid(
                self.order,
                format(price.normalize(), "f"),
                bidder.settings.bid_deposit,
                reclamation_window=bidder.reclamation_window if offer.reclamation_window else 0,
            )
        log.info("bid.placed", order=str(self.order), price=str(price))
        BIDS.labels("placed").inc()

    async def _reserve(self, offer: Offer) -> None:
        await self.bidder.inventory.reserve(self.order, offer.group)
        self._group = offer.group

    async def _stand_by(self, offer: Offer, bid: BidView) -> Outcome:
        """There is a bid of ours already: from before a restart, or just now."""
        if bid.state == "open" and offer.state == "open":
            await self._reserve(offer)
            return await self._expire_later(bid.made)
        if bid.state == "active":
            # The lease's event is on its way.
            await self._reserve(offer)
            return Outcome.SLEEP
        return await self._give_up(bid.state)

    async def _expire_later(self, made: float) -> Outcome:
        """Close the bid so long after it was made, however often we were restarted meanwhile."""
        due = made + self.bidder.settings.bid_timeout_s
        if due != self._deadline:
            await self.context.arm("timeout", due)
            self._deadline = due
        return Outcome.SLEEP

    # -- the ways out --------------------------------------------------------------------------

    async def _won(self) -> Outcome:
        entity = Entity("lease", str(self.id))
        if self.folded.closed:
            # It is over already. What was handed on is given back by who got it.
            if not await self._handed_on(entity):
                await self.bidder.inventory.release(self.order)
            await self._disarm()
            return Outcome.DONE
        if self._group is None:
            offer = await self.bidder.reader.offer(self.id)
            if offer is None:
                raise LeaseholdError(
                    "order_not_found",
                    f"the market has a lease but no order {self.order}",
                    kind=Kind.INTERNAL,
                )
            await self._reserve(offer)
        await self.context.emit(
            e.LeaseWon(
                id=self.id,
                price=e.Price(self.folded.denom, self.folded.price),
                group=msgspec.to_builtins(self._group),
                height=self.folded.height,
            ),
            key="won",
            entity=entity,
        )
        await self._disarm()
        BIDS.labels("won").inc()
        return Outcome.DONE

    async def _handed_on(self, lease: Entity) -> bool:
        async for event in self.context.log.read(lease):
            if isinstance(event, Event) and event.type == "lease.won":
                return True
        return False

    async def _give_up(self, why: str) -> Outcome:
        """Leave nothing behind: no room kept, no bid open."""
        await self.bidder.inventory.release(self.order)
        bid = await self.bidder.reader.bid(self.id)
        if bid is not None and bid.state == "open":
            async with self.context.outside():
                await self.bidder.writer.close_bid(self.id, UNSPECIFIED)
        await self._disarm()
        BIDS.labels(why).inc()
        return Outcome.DONE

    async def _say(self, code: str, message: str) -> None:
        """Leave the reason where operators look: on the order."""
        log.info("bid.declined", order=str(self.order), code=code, why=message)
        declined = e.BidDeclined(id=self.order, code=code, message=message[:1000])
        await self.context.emit(declined, key=f"declined {code}")

    async def _disarm(self) -> None:
        await self.context.arm("timeout", None)

"""Support report 438: a deployment closed without a lease left the provider's bid open.

Some chains say only that the group or the deployment ended, not that its orders did. Seen to fail:
with ``_orders_end`` of ``market.feed`` returning an empty list the order never ends and the room
stays reserved.
"""

from __future__ import annotations

import pytest

from leasehold.core.clock import VirtualClock
from leasehold.core.service import Group, running
from leasehold.events.event import Entity
from leasehold.events.memory import MemoryLog
from leasehold.market.bids import BidActivity, Bidder
from leasehold.market.feed import Feed
from leasehold.market.ports import BidView, Offer
from leasehold.market.testing import GROUP, MemoryInventory
from leasehold.model import chain
from leasehold.model.market import BidId, LeaseId, OrderId
from leasehold.model.resources import GroupSpec
from leasehold.observe.engine import Engine

ME = "akash1me"
OWNER = "akash1owner"
ORDER = OrderId(OWNER, 7, 1, 1)
BID = LeaseId(OWNER, 7, 1, 1, ME)


class Market:
    """One order on a chain elsewhere; remembers what we did to our bid."""

    def __init__(self) -> None:
        self.order = "open"
        self.state: str | None = None
        self.closed: list[BidId] = []

    async def offer(self, id: BidId) -> Offer:
        import msgspec

        spec = msgspec.convert(GROUP, GroupSpec)
        return Offer(id=id.order, state=self.order, group=spec, bid=await self.bid(id))

    async def bid(self, id: BidId) -> BidView | None:
        if self.state is None:
            return None
        return BidView(id=id, state=self.state, denom="uakt", price="1", made=1e9)

    async def create_bid(self, order: OrderId, price: str, deposit: str, **_: int) -> None:
        self.state = "open"

    async def close_bid(self, id: BidId, reason: int) -> None:
        self.state = "closed"
        self.closed.append(id)


def said(what: str, **id: object) -> chain.Event:
    import json

    text = json.dumps({"owner": OWNER, "dseq": "7", **id})
    return chain.Event(what, (chain.Attribute("id", text),))


class Blocks:
    def __init__(self, *events: chain.Event) -> None:
        self.events = events

    async def blocks(self, after_height: int):  # type: ignore[no-untyped-def]
        import asyncio

        for height, event in enumerate(self.events, 1):
            if height > after_height:
                block = chain.Block(hash="", height=height, time="2026-01-01T00:00:00Z")
                yield chain.IndexedBlock(block=block, events=(event,))
                await asyncio.sleep(30)
        await asyncio.Event().wait()


@pytest.mark.parametrize(
    "end",
    [
        said("akash.deployment.v1beta3.EventDeploymentClosed"),
        said("akash.deployment.v1.EventGroupClosed", gseq=1),
        said("akash.deployment.v1.EventGroupPaused", gseq=1),
    ],
    ids=["deployment closed", "group closed", "group paused"],
)
def test_the_bid_is_closed_and_the_room_given_back(virtual: VirtualClock, end: chain.Event) -> None:
    async def main() -> None:
        log, there, inventory = MemoryLog(virtual), Market(), MemoryInventory()
        bidder = Bidder(ME, there, there, inventory, clock=virtual)  # type: ignore[arg-type]
        engine = Engine(log, virtual)
        engine.register(bidder.activity, kind=BidActivity)
        created = said("akash.market.v1.EventOrderCreated", gseq=1, oseq=1)
        feed = Feed(log, Blocks(created, end), ME, clock=virtual)
        async with running(Group([engine, feed], clock=virtual)):
            await virtual.sleep(15)
            assert inventory.held
            assert there.state == "open"
            await virtual.sleep(30)
            assert not inventory.held
            assert there.closed == [BID]
        assert await log.entities("lease") == []
        assert (await log.head(Entity("order", str(ORDER)))) is not None

    virtual.run(main)

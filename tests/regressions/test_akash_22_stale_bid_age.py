"""Defect 22: the age of a bid found at start was bid height minus start height, so never positive.

A bid made before a restart is closed when *it* is old enough: at once when that is past, otherwise
after the time that remains. Seen to fail: with ``self._expire_later(bid.made)`` replaced by
``self._expire_later(self.bidder.clock.now())`` in ``market.bids.activity`` both tests find the bid
still open.
"""

from __future__ import annotations

import pytest

from leasehold.core.clock import VirtualClock
from leasehold.core.service import Group, running
from leasehold.events.memory import MemoryLog
from leasehold.market.accounts import Key
from leasehold.market.bids import BidActivity, Bidder
from leasehold.market.feed import Feed
from leasehold.market.settings import MarketSettings
from leasehold.market.testing import GROUP, DirectClient, LedgerBlocks, MemoryInventory, market
from leasehold.model.market import LeaseId
from leasehold.observe.engine import Engine


@pytest.mark.parametrize(("age", "open_for"), [(400.0, 0.0), (200.0, 100.0)])
def test_a_bid_from_before_the_start_has_its_true_age(
    virtual: VirtualClock, age: float, open_for: float
) -> None:
    async def main() -> None:
        keys = Key.generate("ed25519"), Key.generate("ed25519")
        log = MemoryLog(virtual)
        settings = MarketSettings(bid_timeout_s=300.0, block_interval_s=0.0)
        async with market(*keys, clock=virtual, settings=settings) as ledger:
            tenant, provider = (DirectClient(ledger, key) for key in keys)
            await provider.set_provider("https://p.example")
            did = await tenant.create_deployment([GROUP], "ab" * 32)
            bid = LeaseId(did.owner, did.dseq, 1, 1, provider.address)
            await provider.create_bid(bid.order, "1")
            await virtual.sleep(age)
            inventory = MemoryInventory()
            bidder = Bidder(
                provider.address, provider, provider, inventory, clock=virtual, settings=settings
            )
            engine = Engine(log, virtual)
            engine.register(bidder.activity, kind=BidActivity)
            feed = Feed(log, LedgerBlocks(ledger), provider.address, clock=virtual)
            async with running(Group([engine, feed], clock=virtual)):
                if open_for:
                    await virtual.sleep(open_for - 5)
                    view = await provider.bid(bid)
                    assert view is not None
                    assert view.state == "open"
                    assert inventory.held
                await virtual.sleep(10)
                view = await provider.bid(bid)
                assert view is not None
                assert view.state == "closed"
                assert not inventory.held

    virtual.run(main)

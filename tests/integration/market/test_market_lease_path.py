"""Order to lease: ledger, feed, engine and bids together, in one process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from leasehold.core.clock import Clock, SystemClock, VirtualClock
from leasehold.core.service import Group, running
from leasehold.events.event import Entity, Event
from leasehold.events.memory import MemoryLog
from leasehold.market.accounts import Key
from leasehold.market.bids import BidActivity, Bidder
from leasehold.market.feed import Feed
from leasehold.market.ledger.service import LedgerService
from leasehold.market.settings import MarketSettings
from leasehold.market.testing import DirectClient, LedgerBlocks, MemoryInventory, market
from leasehold.model.market import DeploymentId, LeaseId, OrderId
from leasehold.observe.engine import Engine

HASH = "ab" * 32


def group(name: str = "web", price: str = "50", **attributes: str) -> dict[str, Any]:
    return {
        "name": name,
        "requirements": {
            "signed_by": {"all_of": None, "any_of": None},
            "attributes": [{"key": k, "value": v} for k, v in attributes.items()],
        },
        "resources": [
            {
                "resource": {
                    "id": 1,
                    "cpu": {"units": {"val": "100"}},
                    "memory": {"size": {"val": str(128 << 20)}},
                    "storage": [{"name": "default", "size": {"val": str(1 << 30)}}],
                    "gpu": {"units": {"val": "0"}},
                    "endpoints": [{"sequence_number": 0}],
                },
                "count": 1,
                "price": {"denom": "uakt", "amount": price},
            }
        ],
    }


@dataclass
class World:
    log: MemoryLog
    ledger: LedgerService
    tenant: DirectClient
    provider: DirectClient
    inventory: MemoryInventory
    bidder: Bidder
    clock: Clock

    def lease(self, deployment: DeploymentId, gseq: int = 1, oseq: int = 1) -> LeaseId:
        me = self.provider.address
        return LeaseId(deployment.owner, deployment.dseq, gseq, oseq, me)

    async def until(self, entity: Entity, type: str) -> Event:
        """The first event of that type on ``entity``, waiting for it."""
        async with asyncio.timeout(3600):
            async for event in self.log.read(entity, watch=True):
                if isinstance(event, Event) and event.type == type:
                    return event
        raise AssertionError("unreachable")

    async def idle(self) -> None:
        """Let everything that is ready happen (virtual time)."""
        await self.clock.sleep(1)


@contextlib.asynccontextmanager
async def world(clock: Clock, **settings: Any) -> AsyncIterator[World]:
    tenant, provider = Key.generate("ed25519"), Key.generate("ed25519")
    log = MemoryLog(clock)
    chosen = MarketSettings(block_interval_s=0.0, **settings)
    async with market(tenant, provider, log=log, clock=clock, settings=chosen) as ledger:
        mine = DirectClient(ledger, provider)
        await mine.set_provider("https://provider.example:8443", {"region": "us-west"})
        inventory = MemoryInventory()
        bidder = Bidder(
            provider.address,
            mine,
            mine,
            inventory,
            clock=clock,
            settings=chosen,
            attributes={"region": "us-west"},
        )
        engine = Engine(log, clock)
        engine.register(bidder.activity, kind=BidActivity)
        feed = Feed(log, LedgerBlocks(ledger), provider.address, clock=clock, reader=mine)
        async with running(Group([engine, feed], clock=clock)):
            yield World(log, ledger, DirectClient(ledger, tenant), mine, inventory, bidder, clock)


def order_entity(deployment: DeploymentId, gseq: int = 1, oseq: int = 1) -> Entity:
    return Entity("order", str(OrderId(deployment.owner, deployment.dseq, gseq, oseq)))


async def test_an_accepted_bid_becomes_a_won_lease() -> None:
    async with world(SystemClock()) as w:
        deployment = await w.tenant.create_deployment([group(region="us-west")], HASH)
        await w.until(order_entity(deployment), "bid.created")
        lease = w.lease(deployment)
        await w.tenant.create_lease(lease)
        entity = Entity("lease", str(lease))
        won = (await w.until(entity, "lease.won")).payload
        assert won.id == lease
        assert won.group["name"] == "web"
        assert won.price.denom == "uakt"
        assert w.inventory.held.keys() == {lease.order}
        await w.tenant.close_deployment(deployment.dseq)
        closed = (await w.until(entity, "lease.closed")).payload
        assert closed.reason == 1


def test_a_bid_nobody_accepts_is_closed_in_time(virtual: VirtualClock) -> None:
    async def main() -> None:
        async with world(virtual, bid_timeout_s=300.0) as w:
            deployment = await w.tenant.create_deployment([group()], HASH)
            await w.until(order_entity(deployment), "bid.created")
            began = virtual.now()
            await w.until(order_entity(deployment), "bid.closed")
            assert virtual.now() - began == pytest.approx(300, abs=1)
            await w.idle()
            assert not w.inventory.held
            bid = await w.provider.bid(w.lease(deployment))
            assert bid is not None
            assert bid.state == "closed"

    virtual.run(main)


@pytest.mark.parametrize("how", ["deployment", "group", "pause"])
def test_whatever_closes_the_order_gives_everything_back(virtual: VirtualClock, how: str) -> None:
    async def main() -> None:
        async with world(virtual) as w:
            deployment = await w.tenant.create_deployment([group()], HASH)
            await w.until(order_entity(deployment), "bid.created")
            before = await w.provider.balance(w.provider.address)
            assert len(w.inventory.held) == 1
            gid = w.lease(deployment).group
            if how == "deployment":
                await w.tenant.close_deployment(deployment.dseq)
            elif how == "group":
                await w.tenant.close_group(gid)
            else:
                await w.tenant.pause_group(gid)
            await w.idle()
            assert not w.inventory.held
            assert [b async for b in w.provider.open_bids(w.provider.address)] == []
            after = await w.provider.balance(w.provider.address)
            assert int(after["uakt"]) - int(before["uakt"]) == 500_000

    virtual.run(main)


def test_a_rival_wins_and_our_room_is_free_again(virtual: VirtualClock) -> None:
    async def main() -> None:
        async with world(virtual) as w:
            rival_key = Key.generate("ed25519")
            await w.tenant.transfer(rival_key.address, "10000000")
            rival = DirectClient(w.ledger, rival_key)
            await rival.set_provider("https://rival.example")
            deployment = await w.tenant.create_deployment([group()], HASH)
            await w.until(order_entity(deployment), "bid.created")
            ours = w.lease(deployment)
            await rival.create_bid(ours.order, "1")
            theirs = LeaseId(ours.owner, ours.dseq, 1, 1, rival.address)
            await w.tenant.create_lease(theirs)
            await w.idle()
            assert not w.inventory.held
            bid = await w.provider.bid(ours)
            assert bid is not None
            assert bid.state == "lost"
            assert await w.log.entities("lease") == []

    virtual.run(main)


def test_orders_we_cannot_serve_get_no_bid(virtual: VirtualClock) -> None:
    async def main() -> None:
        async with world(virtual) as w:
            elsewhere = await w.tenant.create_deployment([group(region="moon")], HASH)
            cheap = await w.tenant.create_deployment([group(price="0.000001")], HASH)
            await w.idle()
            for deployment in (elsewhere, cheap):
                assert await w.provider.bid(w.lease(deployment)) is None
            why = (await w.until(order_entity(elsewhere), "bid.declined")).payload
            assert (why.code, why.message) == (
                "attribute_missing",
                "the order requires region=moon",
            )
            why = (await w.until(order_entity(cheap), "bid.declined")).payload
            assert why.code == "too_cheap_for_us"
            assert not w.inventory.held

    virtual.run(main)

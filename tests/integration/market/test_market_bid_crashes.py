"""A provider that dies at any step of a bid, and what is left after it came back."""

from __future__ import annotations

import pytest

from leasehold.core.clock import VirtualClock
from leasehold.core.errors import unavailable
from leasehold.core.service import Group, running
from leasehold.events.event import Entity, Event
from leasehold.events.memory import MemoryLog
from leasehold.market.accounts import Key
from leasehold.market.bids import BidActivity, Bidder
from leasehold.market.feed import Feed
from leasehold.market.ledger.service import LedgerService
from leasehold.market.settings import MarketSettings
from leasehold.market.testing import GROUP, DirectClient, LedgerBlocks, MemoryInventory, market
from leasehold.model.market import DeploymentId, LeaseId
from leasehold.observe.engine import Engine

SETTINGS = MarketSettings(block_interval_s=0.0, bid_timeout_s=300.0)


class Dying(DirectClient):
    """Stops answering for good with the ``nth`` call, before or after it took effect."""

    def __init__(self, ledger: LedgerService, key: Key, nth: int, *, after: bool) -> None:
        super().__init__(ledger, key)
        self.left = nth
        self.after = after

    async def call(self, method: str, **params: object) -> object:
        self.left -= 1
        if self.left < 0 or (self.left == 0 and not self.after):
            raise unavailable("dead", "this process is gone")
        answer = await super().call(method, **params)
        if self.left == 0:
            raise unavailable("dead", "this process is gone")
        return answer


def provider(
    log: MemoryLog, ledger: LedgerService, client: DirectClient, clock: VirtualClock
) -> tuple[Group, MemoryInventory]:
    """A provider's process: memory of its own, the log of the machine."""
    inventory = MemoryInventory()
    bidder = Bidder(client.address, client, client, inventory, clock=clock, settings=SETTINGS)
    engine = Engine(log, clock)
    engine.register(bidder.activity, kind=BidActivity)
    feed = Feed(log, LedgerBlocks(ledger), client.address, clock=clock)
    return Group([engine, feed], clock=clock), inventory


@pytest.mark.parametrize("end", ["accepted", "closed", "timeout"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("nth", range(1, 9))
def test_nothing_is_left_behind(virtual: VirtualClock, nth: int, after: bool, end: str) -> None:
    async def main() -> None:
        tenant_key, key = Key.generate("ed25519"), Key.generate("ed25519")
        log = MemoryLog(virtual)
        async with market(tenant_key, key, clock=virtual, settings=SETTINGS) as ledger:
            tenant, healthy = DirectClient(ledger, tenant_key), DirectClient(ledger, key)
            await healthy.set_provider("https://p.example")
            first, _ = provider(log, ledger, Dying(ledger, key, nth, after=after), virtual)
            did = await tenant.create_deployment([GROUP], "ab" * 32)
            lease = LeaseId(did.owner, did.dseq, 1, 1, healthy.address)
            async with running(first):
                await virtual.sleep(20)
                accepted = await accept(tenant, lease) if end == "accepted" and nth > 4 else False
                if end == "timeout" and nth > 4:
                    await virtual.sleep(400)
                await virtual.sleep(20)
            second, inventory = provider(log, ledger, healthy, virtual)
            async with running(second):
                await virtual.sleep(20)
                if end == "accepted":
                    accepted = accepted or await accept(tenant, lease)
                elif end == "closed":
                    await tenant.close_deployment(did.dseq)
                await virtual.sleep(400)
            await check(log, healthy, inventory, did, lease, won=accepted)

    virtual.run(main)


async def accept(tenant: DirectClient, lease: LeaseId) -> bool:
    view = await tenant.bid(lease)
    if view is None or view.state != "open":
        return False
    await tenant.create_lease(lease)
    return True


async def check(
    log: MemoryLog,
    client: DirectClient,
    inventory: MemoryInventory,
    did: DeploymentId,
    lease: LeaseId,
    *,
    won: bool,
) -> None:
    events = [e async for e in log.read(Entity("lease", str(lease))) if isinstance(e, Event)]
    assert [e.type for e in events].count("lease.won") == int(won)
    assert [b async for b in client.open_bids(client.address)] == []
    if won:
        assert (await client.get("leases", lease))["state"] == "active"
    else:
        assert not inventory.held
    assert (await client.get("deployments", did))["id"] == str(did)


def test_an_open_bid_keeps_its_room_over_a_restart(virtual: VirtualClock) -> None:
    async def main() -> None:
        tenant_key, key = Key.generate("ed25519"), Key.generate("ed25519")
        log = MemoryLog(virtual)
        async with market(tenant_key, key, clock=virtual, settings=SETTINGS) as ledger:
            tenant, client = DirectClient(ledger, tenant_key), DirectClient(ledger, key)
            await client.set_provider("https://p.example")
            await tenant.create_deployment([GROUP], "ab" * 32)
            for _ in range(3):
                group, inventory = provider(log, ledger, client, virtual)
                async with running(group):
                    await virtual.sleep(20)
                    assert len(inventory.held) == 1

    virtual.run(main)

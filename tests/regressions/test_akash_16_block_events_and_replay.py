"""Defect 16: only transactions' events were read, and what was missed was never replayed.

Seen to fail: with ``yield from block.events`` removed from ``market.feed._events`` the first test
waits for ever; with ``self.blocks.blocks(self.height)`` replaced by the newest height the second
does; with the ``reconcile`` task not spawned the third does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from leasehold.core.clock import VirtualClock
from leasehold.core.service import running
from leasehold.events.event import Entity, Event
from leasehold.events.memory import MemoryLog
from leasehold.market.accounts import Key
from leasehold.market.feed import Feed
from leasehold.market.testing import GROUP, DirectClient, LedgerBlocks, market
from leasehold.model.chain import IndexedBlock
from leasehold.model.market import LeaseId


async def seen(log: MemoryLog, entity: Entity, type: str) -> Event:
    async with asyncio.timeout(10**6):
        async for event in log.read(entity, watch=True):
            if isinstance(event, Event) and event.type == type:
                return event
    raise AssertionError("unreachable")


async def lease(tenant: DirectClient, provider: DirectClient, deposit: str) -> LeaseId:
    await provider.set_provider("https://p.example")
    did = await tenant.create_deployment([GROUP], "ab" * 32, deposit)
    id = LeaseId(did.owner, did.dseq, 1, 1, provider.address)
    await provider.create_bid(id.order, "50")
    await tenant.create_lease(id)
    return id


def test_a_lease_closed_by_the_block_itself_is_heard_of(virtual: VirtualClock) -> None:
    async def main() -> None:
        keys = Key.generate("ed25519"), Key.generate("ed25519")
        log = MemoryLog(virtual)
        async with market(*keys, clock=virtual) as ledger:
            tenant, provider = (DirectClient(ledger, key) for key in keys)
            async with running(Feed(log, LedgerBlocks(ledger), keys[1].address, clock=virtual)):
                id = await lease(tenant, provider, "500000")
                closed = await seen(log, Entity("lease", str(id)), "lease.closed")
        assert closed.payload.reason == 20000

    virtual.run(main)


def test_what_happened_while_nobody_listened_is_replayed(virtual: VirtualClock) -> None:
    async def main() -> None:
        keys = Key.generate("ed25519"), Key.generate("ed25519")
        log = MemoryLog(virtual)
        async with market(*keys, clock=virtual) as ledger:
            tenant, provider = (DirectClient(ledger, key) for key in keys)
            feed = Feed(log, LedgerBlocks(ledger), keys[1].address, clock=virtual)
            async with running(feed):
                id = await lease(tenant, provider, "5000000")
                await seen(log, Entity("lease", str(id)), "lease.created")
            await tenant.close_deployment(id.dseq)
            again = Feed(log, LedgerBlocks(ledger), keys[1].address, clock=virtual)
            async with running(again):
                await seen(log, Entity("lease", str(id)), "lease.closed")
        types = [e.type async for e in log.read(Entity("lease", str(id))) if isinstance(e, Event)]
        assert types == ["lease.created", "lease.closed"]

    virtual.run(main)


class FromNow:
    """An index that begins at the head: older blocks are not to be had."""

    def __init__(self, inner: LedgerBlocks) -> None:
        self.inner = inner
        self.first = inner.ledger.chain.height

    async def blocks(self, after_height: int) -> AsyncIterator[IndexedBlock]:
        async for block in self.inner.blocks(max(after_height, self.first)):
            yield block


def test_what_no_block_told_is_found_by_looking(virtual: VirtualClock) -> None:
    async def main() -> None:
        keys = Key.generate("ed25519"), Key.generate("ed25519")
        log = MemoryLog(virtual)
        async with market(*keys, clock=virtual) as ledger:
            tenant, provider = (DirectClient(ledger, key) for key in keys)
            id = await lease(tenant, provider, "5000000")
            waiting = await tenant.create_deployment([GROUP], "ab" * 32)
            feed = Feed(
                log,
                FromNow(LedgerBlocks(ledger)),
                keys[1].address,
                clock=virtual,
                reader=provider,
            )
            async with running(feed):
                await seen(log, Entity("lease", str(id)), "lease.created")
                await seen(log, Entity("order", f"{waiting}/1/1"), "order.created")
                before = await log.last_seq()
                # Looking again, and hearing the same from blocks, writes nothing twice.
                await virtual.sleep(3600)
                assert await log.last_seq() == before
                feed.blocks = FromNow(LedgerBlocks(ledger))
            await tenant.close_deployment(id.dseq)
            late = Feed(
                log,
                FromNow(LedgerBlocks(ledger)),
                keys[1].address,
                clock=virtual,
                reader=provider,
            )
            async with running(late):
                await seen(log, Entity("lease", str(id)), "lease.closed")

    virtual.run(main)

"""The whole way of a block: ledger, worker over gRPC, index, feed, log."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import msgspec

from leasehold.core.clock import SystemClock
from leasehold.core.service import Group, running
from leasehold.dispatch.manager import Manager
from leasehold.dispatch.settings import DispatchSettings
from leasehold.dispatch.worker import Worker
from leasehold.events.event import Entity, Event
from leasehold.events.sqlite import SqliteLog
from leasehold.index.follower import Follower
from leasehold.index.handlers import worker_handlers
from leasehold.index.settings import IndexSettings
from leasehold.index.store import Store
from leasehold.market.accounts import Key
from leasehold.market.client import LedgerClient
from leasehold.market.feed import Feed
from leasehold.market.settings import MarketSettings
from leasehold.market.testing import GROUP, market
from leasehold.model.market import LeaseId


async def seen(log: SqliteLog, entity: Entity, type: str) -> Event:
    async with asyncio.timeout(30):
        async for event in log.read(entity, watch=True):
            if isinstance(event, Event) and event.type == type:
                return event
    raise AssertionError("unreachable")


async def test_a_block_reaches_the_log_through_worker_and_index(tmp_path: Path) -> None:
    clock = SystemClock()
    tenant_key, provider_key = Key.generate(), Key.generate("ed25519")
    log = SqliteLog(tmp_path / "log.db", clock)
    # One price unit a second and a deposit for two: the ledger closes the lease by itself.
    rules = MarketSettings(port=0, charge_period_s=1.0, min_deposit="100")
    dispatch = msgspec.structs.replace(DispatchSettings(), manager_port=0, worker_port=0)
    async with (
        running(log),
        market(tenant_key, provider_key, settings=rules, log=log, serve=True) as ledger,
        running(Store.at(tmp_path / "index.db", clock)) as store,
        running(Manager(clock, dispatch)) as manager,
    ):
        assert manager.http is not None
        settings = IndexSettings(rpc=ledger.url, chain_id="leasehold-1", network="ledger")
        address = f"127.0.0.1:{manager.http.port}"
        worker = Worker(
            clock,
            msgspec.structs.replace(dispatch, managers=(address,)),
            worker_handlers(settings),
        )
        follower = Follower(manager, store, clock, settings)
        feed = Feed(log, follower, provider_key.address, clock=clock)
        async with (
            running(Group([worker, follower, feed], clock=clock)),
            LedgerClient(ledger.url, tenant_key) as tenant,
            LedgerClient(ledger.url, provider_key) as provider,
        ):
            await provider.set_provider("https://p.example")
            did = await tenant.create_deployment([GROUP], "ab" * 32, "100")
            lease = LeaseId(did.owner, did.dseq, 1, 1, provider.address)
            await seen(log, Entity("order", str(lease.order)), "order.created")
            await provider.create_bid(lease.order, "50")
            await seen(log, Entity("order", str(lease.order)), "bid.created")
            began = time.perf_counter()
            await tenant.create_lease(lease)
            created = await seen(log, Entity("lease", str(lease)), "lease.created")
            assert time.perf_counter() - began < 5
            assert created.payload.price.amount == "50"
            closed = await seen(log, Entity("lease", str(lease)), "lease.closed")
            assert closed.payload.reason == 20000
            await seen(log, Entity("deployment", str(did)), "deployment.closed")

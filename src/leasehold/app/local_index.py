"""An index without anything running: a manager and a worker for the length of one command."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import msgspec

from leasehold.core.errors import LeaseholdError
from leasehold.core.service import running
from leasehold.dispatch.manager import Manager
from leasehold.dispatch.settings import DispatchSettings
from leasehold.dispatch.worker import Worker
from leasehold.index.handlers import CometNetwork, worker_handlers
from leasehold.index.operations import Operations
from leasehold.index.rpc import Rpc
from leasehold.index.settings import IndexSettings
from leasehold.index.store import Store
from leasehold.model.chain import IndexedBlock

START = 10.0
"""Seconds the worker may take to be found."""


async def fetched(settings: IndexSettings, first: int, last: int) -> AsyncIterator[IndexedBlock]:
    """Heights straight from the node; nothing is stored."""
    rpc = Rpc(settings.rpc, timeout=settings.rpc_timeout, max_bytes=settings.rpc_max_bytes)
    async with rpc:
        network = CometNetwork(rpc, settings)
        status = await network.status()
        if last == 0:
            last = status.latest_height
        async for height in network.heights(first or status.latest_height, last):
            yield height


@contextlib.asynccontextmanager
async def local_index(settings: IndexSettings) -> AsyncIterator[Operations]:
    """Operations on the store in ``settings``, fetching through a worker on loopback."""
    async with Rpc(settings.rpc, timeout=settings.rpc_timeout) as rpc:
        status = await CometNetwork(rpc, settings).status()
    if settings.chain_id not in ("", status.chain_id):
        raise LeaseholdError(
            "wrong_chain",
            f"{settings.rpc} is a node of {status.chain_id}, not of {settings.chain_id}",
            expected=settings.chain_id,
            got=status.chain_id,
        )
    settings = msgspec.structs.replace(settings, chain_id=status.chain_id)
    dispatch = DispatchSettings(
        manager_port=0, worker_port=0, network=settings.network, chain_id=settings.chain_id
    )
    manager = Manager(settings=dispatch)
    store = Store(settings.store)
    async with running(store), running(manager):
        assert manager.http is not None
        mine = msgspec.structs.replace(dispatch, managers=(f"127.0.0.1:{manager.http.port}",))
        async with running(Worker(settings=mine, handlers=worker_handlers(settings))):
            async with manager.clock.timeout(START):
                await manager.wait_for_worker(settings.network, settings.chain_id)
            yield Operations(manager, store, settings)

"""The market in one process, for tests: no sockets, and it works in virtual time.

``market()`` gives a running ledger in memory; ``DirectClient`` talks to it as ``LedgerClient``
does over HTTP; ``LedgerBlocks`` is the feed's port without an index; ``MemoryInventory`` has room
for as many groups as it is told.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from leasehold.core.clock import Clock, SystemClock
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.core.service import running
from leasehold.events.log import Log
from leasehold.events.memory import MemoryLog
from leasehold.market.accounts import Key
from leasehold.market.client import LedgerClient, rpc_error
from leasehold.market.ledger import comet
from leasehold.market.ledger.chain import Block, ChainEvent
from leasehold.market.ledger.rpc import Request, Rpc
from leasehold.market.ledger.service import LedgerService
from leasehold.market.settings import MarketSettings
from leasehold.model import chain
from leasehold.model.market import OrderId
from leasehold.model.resources import GroupSpec

RICH = "1000000000"
"""Base units of every account :func:`market` opens."""

GROUP: dict[str, Any] = {
    "name": "web",
    "requirements": {"signed_by": {"all_of": None, "any_of": None}, "attributes": None},
    "resources": [
        {
            "resource": {
                "id": 1,
                "cpu": {"units": {"val": "100"}},
                "memory": {"size": {"val": "134217728"}},
                "storage": [{"name": "default", "size": {"val": "1073741824"}}],
                "gpu": {"units": {"val": "0"}},
                "endpoints": [{"sequence_number": 0}],
            },
            "count": 1,
            "price": {"denom": "uakt", "amount": "50"},
        }
    ],
}
"""A small group that pays 50 uakt a block, as an SDL would make it."""


@contextlib.asynccontextmanager
async def market(
    *keys: Key,
    log: Log | None = None,
    clock: Clock | None = None,
    settings: MarketSettings | None = None,
    serve: bool = False,
) -> AsyncIterator[LedgerService]:
    """A running ledger on which ``keys`` are rich; the first may mint."""
    clock = clock or SystemClock()
    settings = settings or MarketSettings(port=0, block_interval_s=0.0)
    genesis = LedgerService.default_genesis(
        settings,
        clock.now(),
        balances={key.address: RICH for key in keys},
        authority=keys[0].address if keys else "",
    )
    service = LedgerService(log or MemoryLog(clock), clock, settings, genesis=genesis, serve=serve)
    async with running(service):
        yield service


class DirectClient(LedgerClient):
    """A client of a ledger in the same process."""

    def __init__(self, ledger: LedgerService, key: Key | None = None) -> None:
        super().__init__("http://ledger.invalid", key, clock=ledger.clock)
        self._rpc = Rpc(ledger)

    async def call(self, method: str, **params: Any) -> Any:
        answer = await self._rpc.call(Request(method, params, 1))
        if "error" in answer:
            raise rpc_error(answer["error"])
        return msgspec.json.decode(msgspec.json.encode(answer["result"]))


class LedgerBlocks:
    """The blocks of a ledger in the same process, as the index would give them."""

    def __init__(self, ledger: LedgerService) -> None:
        self.ledger = ledger

    async def blocks(self, after_height: int) -> AsyncIterator[chain.IndexedBlock]:
        news = asyncio.Event()
        stop = self.ledger.listen(lambda _: news.set())
        try:
            while True:
                news.clear()
                await self.ledger.settled()
                async for block in self.ledger.history.blocks(after_height):
                    yield indexed(block)
                    after_height = block.height
                await news.wait()
        finally:
            stop()


def indexed(block: Block) -> chain.IndexedBlock:
    """A ledger's block in the common structures."""
    time = comet.rfc3339(block.time)
    hash = comet.upper(block.sealed.hash)
    return chain.IndexedBlock(
        block=chain.Block(hash=hash, height=block.height, time=time, num_txs=len(block.txs)),
        transactions=tuple(
            chain.Transaction(
                hash=comet.tx_hash(raw),
                block_hash=hash,
                height=block.height,
                index=at,
                time=time,
                raw=raw,
                raw_events=tuple(map(_event, result.events)),
            )
            for at, (raw, result) in enumerate(zip(block.txs, block.results, strict=True))
        ),
        events=tuple(map(_event, block.events)),
    )


def _event(event: ChainEvent) -> chain.Event:
    return chain.Event(event.type, tuple(chain.Attribute(k, v) for k, v in event.attributes))


class MemoryInventory:
    """Room for ``slots`` groups, whatever they ask for. ``held`` is what is reserved."""

    def __init__(self, slots: int = 1000) -> None:
        self.slots = slots
        self.held: dict[OrderId, GroupSpec] = {}

    async def reserve(self, order: OrderId, group: GroupSpec) -> None:
        if order not in self.held and len(self.held) >= self.slots:
            raise LeaseholdError("no_room", "nothing is left", kind=Kind.CONFLICT)
        self.held[order] = group

    async def release(self, order: OrderId) -> None:
        self.held.pop(order, None)

"""Searching the history by query: what CometBFT's ``tx_search`` and ``block_search`` find.

There is no index beside the transaction hashes: a search reads the blocks its height conditions
leave, and refuses to read more than :data:`MAX_SCAN`. One search runs at a time and lets others
work in between; it keeps where it found something, not the blocks. The index package is the place
for searches over the whole history.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.market.ledger.chain import Block, ChainEvent
from leasehold.market.ledger.comet import tx_hash
from leasehold.market.ledger.query import Query

if TYPE_CHECKING:
    from leasehold.market.ledger.service import LedgerService

MAX_SCAN = 10_000
"""Blocks one search may read."""

PAUSE = 20
"""Blocks after which a search lets others run: a few milliseconds of work."""

MAX_FOUND = 10_000
"""Transactions or blocks one search may find."""


def flatten(events: Iterable[ChainEvent]) -> dict[str, list[str]]:
    """Events as composite keys ``type.attribute`` with all their values."""
    flat: dict[str, list[str]] = {}
    for event in events:
        for key, value in event.attributes:
            flat.setdefault(f"{event.type}.{key}", []).append(value)
    return flat


def tx_events(block: Block, position: int) -> dict[str, list[str]]:
    """What a query about one transaction can ask."""
    flat = flatten(block.results[position].events)
    flat["tm.event"] = ["Tx"]
    flat["tx.hash"] = [tx_hash(block.txs[position])]
    flat["tx.height"] = [str(block.height)]
    return flat


def block_events(block: Block) -> dict[str, list[str]]:
    """What a query about a block can ask: its own events and its height."""
    flat = flatten(block.events)
    flat["tm.event"] = ["NewBlock"]
    flat["block.height"] = [str(block.height)]
    return flat


async def search_txs(
    ledger: LedgerService, query: Query, *, descending: bool
) -> list[tuple[int, int]]:
    """Height and position of all transactions that match, by height."""
    hash = query.equals("tx.hash")
    if hash is not None:
        try:
            landed = await ledger.find(bytes.fromhex(hash))
        except ValueError:
            landed = None
        if landed is None or not query.matches(tx_events(landed.block, landed.position)):
            return []
        return [(landed.height, landed.position)]
    found: list[tuple[int, int]] = []
    async for block in _scan(ledger, query, "tx.height"):
        found.extend(
            (block.height, position)
            for position in range(len(block.txs))
            if query.matches(tx_events(block, position))
        )
        _bounded(len(found))
    return found[::-1] if descending else found


async def search_blocks(ledger: LedgerService, query: Query, *, descending: bool) -> list[int]:
    """Heights of all blocks that match."""
    found: list[int] = []
    async for block in _scan(ledger, query, "block.height"):
        if query.matches(block_events(block)):
            found.append(block.height)
        _bounded(len(found))
    return found[::-1] if descending else found


async def _scan(ledger: LedgerService, query: Query, key: str) -> AsyncIterator[Block]:
    least, most = query.bounds(key)
    newest = ledger.chain.height
    least = max(least, ledger.history.first)
    most = newest if most is None else min(most, newest)
    if most - least >= MAX_SCAN:
        raise LeaseholdError(
            "search_too_wide",
            f"this search would read {most - least + 1} blocks; narrow it by {key}",
            kind=Kind.INVALID,
            expected=f"≤ {MAX_SCAN} blocks",
            got=most - least + 1,
        )
    if most < least:
        return
    async with ledger.searching:
        async for block in ledger.history.blocks(least - 1):
            if block.height > most:
                return
            yield block
            if block.height % PAUSE == 0:
                await asyncio.sleep(0)


def _bounded(count: int) -> None:
    if count > MAX_FOUND:
        raise LeaseholdError(
            "search_too_wide", f"this search finds more than {MAX_FOUND}", kind=Kind.INVALID
        )

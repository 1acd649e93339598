"""The ledger's history on the log: genesis first, then its blocks, each found by its height."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator

from msgspec.structs import replace

from leasehold.core.errors import Kind, LeaseholdError, not_found
from leasehold.events.event import Entity, NewEvent, WillBlock
from leasehold.events.log import Log
from leasehold.market.ledger.chain import (
    ENTITY_KIND,
    PART_BYTES,
    Block,
    BlockPart,
    Genesis,
    event_id,
    height_of,
    join,
    to_events,
)


class History:
    """Reads and appends blocks of ``chain_id``. The newest ``cached`` blocks stay in memory."""

    def __init__(self, log: Log, chain_id: str, cached: int) -> None:
        self.log = log
        self.entity = Entity(ENTITY_KIND, chain_id)
        self._cached = cached
        self._cache: OrderedDict[int, Block] = OrderedDict()
        self._tail: str | None = None
        self.first = 1

    async def genesis(self) -> Genesis | None:
        """How this ledger began, None when it did not yet."""
        genesis: Genesis | None = None
        pieces: list[bytes] = []
        async for event in self.log.read(self.entity):
            if isinstance(event, WillBlock):
                continue
            payload = event.payload
            if genesis is None:
                assert isinstance(payload, Genesis)
                genesis = payload
                self.first = genesis.initial_height
            elif isinstance(payload, BlockPart) and payload.height < self.first:
                pieces.append(payload.data)
            else:
                break
            self._tail = event.id
        return genesis and replace(genesis, state=b"".join(pieces))

    async def found(self, genesis: Genesis) -> None:
        """Write the first event; a state to begin with follows in parts."""
        height, state = genesis.initial_height - 1, genesis.state
        events = [NewEvent.of(replace(genesis, state=b""), id=event_id(height))]
        for part, at in enumerate(range(0, len(state), PART_BYTES), 1):
            piece = BlockPart(height=height, part=part, data=state[at : at + PART_BYTES])
            events.append(NewEvent.of(piece, id=event_id(height, part)))
        await self.log.append(self.entity, None, events)
        self._tail = events[-1].id
        self.first = genesis.initial_height

    async def blocks(self, after: int) -> AsyncIterator[Block]:
        """All blocks above height ``after``, up to the newest."""
        head: Block | None = None
        pieces: list[BlockPart] = []
        async for event in self.log.read(self.entity, after=event_id(max(after, self.first - 1))):
            if isinstance(event, WillBlock):
                continue
            payload = event.payload
            if isinstance(payload, BlockPart):
                if head is not None:
                    pieces.append(payload)
                    if len(pieces) == head.more:
                        yield join(head, pieces)
                        head, pieces = None, []
            elif payload.more:
                head, pieces = payload, []
            else:
                yield payload

    async def replayed(self) -> None:
        """Tell that all blocks were read: the next append follows the head."""
        head = await self.log.head(self.entity)
        self._tail = head.id if head else None

    async def append(self, block: Block) -> None:
        """Make ``block`` durable. VersionConflict: another process writes this ledger."""
        events = to_events(block)
        await self.log.append(self.entity, self._tail, events)
        self._tail = events[-1].id
        self._keep(block)

    def _keep(self, block: Block) -> None:
        self._cache[block.height] = block
        while len(self._cache) > self._cached:
            self._cache.popitem(last=False)

    def recent(self) -> list[Block]:
        """The blocks in memory, oldest first."""
        return list(self._cache.values())

    async def block(self, height: int) -> Block:
        """One block; LeaseholdError ``block_not_found``."""
        cached = self._cache.get(height)
        if cached is not None:
            return cached
        head = await self.log.head(self.entity)
        if head is None or not self.first <= height <= height_of(head.id):
            raise not_found("block", str(height))
        async for block in self.blocks(height - 1):
            if block.height == height:
                return block
            break
        raise LeaseholdError(
            "block_missing", f"block {height} is missing from the log", kind=Kind.INTERNAL
        )

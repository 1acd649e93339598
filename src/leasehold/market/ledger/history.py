"""The ledger's history on the log: genesis first, then its blocks, each found by its height.

A history that may forget has checkpoints, which are a genesis with a state each (see
``checkpoints``). Once everything before one is trimmed, it is the first event.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator

from msgspec.structs import replace

from leasehold.core.errors import Kind, LeaseholdError, not_found
from leasehold.events.event import Entity, NewEvent, WillBlock
from leasehold.events.log import Log
from leasehold.market.ledger.chain import (
    CHECKPOINT,
    ENTITY_KIND,
    PART_BYTES,
    Block,
    BlockPart,
    Genesis,
    StatePart,
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
        self._base = event_id(0)
        self._turn = asyncio.Lock()
        self._unsure: str | None = None
        self._forgetting = asyncio.Lock()
        self.readers = 0
        """How many read all of it now; what they read is better not trimmed under them."""
        self.first = 1

    async def genesis(self) -> Genesis | None:
        """Begin with how what is kept began, without its state; None when nothing did yet."""
        found = await self._beginning()
        if found is None:
            return None
        self._base, genesis = found
        self.first = genesis.initial_height
        return genesis

    async def _beginning(self) -> tuple[str, Genesis] | None:
        async for event in self.log.read(self.entity):
            if isinstance(event, WillBlock):
                continue
            genesis = event.payload
            assert isinstance(genesis, Genesis)
            return event.id, genesis
        return None

    async def state(self) -> bytes:
        """The state of a genesis that has one."""
        return await self._state(self._base, self.first - 1)

    async def _state(self, after: str, height: int) -> bytes:
        pieces: list[bytes] = []
        async for event in self.log.read(self.entity, after=after):
            if isinstance(event, WillBlock):
                continue
            part = event.payload
            if isinstance(part, StatePart) and part.height == height:
                pieces.append(part.data)
                if part.final:
                    return b"".join(pieces)
        raise LeaseholdError(
            "state_missing", "the ledger's state is missing from the log", kind=Kind.INTERNAL
        )

    async def found(self, genesis: Genesis) -> None:
        """Write the first event; a state to begin with follows in parts."""
        height, state = genesis.initial_height - 1, genesis.state
        bare = replace(genesis, state=b"", continued=bool(state))
        events = [NewEvent.of(bare, id=event_id(height))]
        for part, at in enumerate(range(0, len(state), PART_BYTES), 1):
            events.append(
                _state_part(
                    height, event_id(height, part), part, state[at : at + PART_BYTES],
                    final=at + PART_BYTES >= len(state),
                )
            )  # fmt: skip
        await self._append(events)
        self._base, self.first = events[0].id, genesis.initial_height

    async def mark(self, checkpoint: Genesis) -> None:
        """Write a genesis between blocks. Without its state it means nothing yet."""
        height = checkpoint.initial_height - 1
        await self._append([NewEvent.of(checkpoint, id=event_id(height, CHECKPOINT))])

    async def fill(self, checkpoint: Genesis, pieces: AsyncIterator[bytes]) -> None:
        """Write the state of a checkpoint; blocks may be appended meanwhile."""
        height = checkpoint.initial_height - 1
        part, piece = 0, b""
        async for following in pieces:
            if part:
                await self._append([_part_of_checkpoint(height, part, piece, final=False)])
            part, piece = part + 1, following
        await self._append([_part_of_checkpoint(height, part, piece, final=True)])

    async def forget_before(self, checkpoint: Genesis) -> None:
        """From now on the history begins with a checkpoint that is whole."""
        async with self._forgetting:
            self.first = checkpoint.initial_height
            self._base = event_id(self.first - 1, CHECKPOINT)
            await self.log.trim(self.entity, self._base)

    async def whole(self) -> AsyncGenerator[Genesis | Block, None]:
        """All that is kept: the genesis with its state, then its blocks up to the newest.

        Trimmed when so much was added meanwhile that it had to be forgotten after all.
        """
        async with self._forgetting:
            self.readers += 1
        try:
            found = await self._beginning()
            assert found is not None
            base, genesis = found
            if genesis.continued:
                state = await self._state(base, genesis.initial_height - 1)
                genesis = replace(genesis, state=state)
            yield genesis
            async for block in self._blocks(base):
                yield block
        finally:
            self.readers -= 1

    async def blocks(self, after: int) -> AsyncIterator[Block]:
        """All blocks above height ``after``, up to the newest."""
        async for block in self._blocks(event_id(after) if after >= self.first else self._base):
            yield block

    async def _blocks(self, after: str) -> AsyncIterator[Block]:
        head: Block | None = None
        pieces: list[BlockPart] = []
        async for event in self.log.read(self.entity, after=after):
            if isinstance(event, WillBlock):
                continue
            payload = event.payload
            if isinstance(payload, Genesis | StatePart):
                continue
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
        await self._append(to_events(block))
        self._keep(block)

    async def _append(self, events: list[NewEvent]) -> None:
        async with self._turn:
            if self._unsure is not None:
                await self._look_what_became_of(self._unsure)
            last = events[-1].id
            try:
                await self.log.append(self.entity, self._tail, events)
            except LeaseholdError as error:
                if error.kind is Kind.UNAVAILABLE:
                    self._unsure = last  # it may be committed all the same
                raise
            self._tail = last

    async def _look_what_became_of(self, id: str) -> None:
        head = await self.log.head(self.entity)
        if head is not None and head.id == id:
            self._tail = id
        self._unsure = None

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


def _state_part(height: int, id: str, part: int, data: bytes, *, final: bool) -> NewEvent:
    return NewEvent.of(StatePart(height=height, part=part, data=data, final=final), id=id)


def _part_of_checkpoint(height: int, part: int, data: bytes, *, final: bool) -> NewEvent:
    return _state_part(height, event_id(height, CHECKPOINT + part), part, data, final=final)

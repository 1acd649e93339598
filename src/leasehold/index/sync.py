"""A range of heights into the store: cut in slices, a task each, written height by whole height.

Slices are idempotent, so the manager gives one to another worker when its own dies. Each slice is
written when it is complete, or as far as it came; what failed stays missing in the coverage and is
known by that alone. Progress is what the coverage says and never a worker's claim.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

import msgspec

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.core.logs import get_logger
from leasehold.dispatch.manager import Manager
from leasehold.dispatch.task import Call, Retry
from leasehold.index.handlers import HEIGHTS
from leasehold.index.ranges import Range, missing, slices
from leasehold.index.settings import IndexSettings
from leasehold.index.store import Store
from leasehold.model.chain import (
    Block,
    Event,
    HeightPart,
    HeightRange,
    Heights,
    IndexedBlock,
    LatestData,
    Transaction,
)

WRITE_BYTES = 32 << 20
"""A slice is written in several transactions when its heights together are larger than this."""

log = get_logger(__name__)

_part = msgspec.json.Decoder(HeightPart)
_block = msgspec.json.Decoder(Block)
_transaction = msgspec.json.Decoder(Transaction)
_heights = msgspec.json.Decoder(Heights)
_mark = msgspec.json.Decoder(LatestData)


class Synced(msgspec.Struct, omit_defaults=True):
    """What became of a range. ``missing`` are ranges still not stored; ``errors`` say why."""

    first: int
    last: int
    stored: int = 0
    transactions: int = 0
    missing: list[Range] = []
    errors: list[str] = []


class Sync:
    """Fetches through ``manager`` into ``store``; ``on_written`` sees heights once durable."""

    def __init__(
        self,
        manager: Manager,
        store: Store,
        settings: IndexSettings | None = None,
        *,
        on_written: Callable[[Sequence[IndexedBlock]], None] | None = None,
    ) -> None:
        self.manager = manager
        self.store = store
        self.settings = settings or IndexSettings()
        self._on_written = on_written

    async def head(self, network: str, chain_id: str) -> LatestData:
        """The newest height of the chain, asked through a worker."""
        request = LatestData(network=network, chain_id=chain_id)
        responses = await self.manager.call(
            Call(
                network=network,
                chain_id=chain_id,
                type="GetLatestMark",
                payload=msgspec.json.encode(request),
                timeout=self.settings.rpc_timeout,
                retry=Retry.IDEMPOTENT,
            )
        )
        if not responses or responses[0].type != "LatestMark":
            raise _unexpected("GetLatestMark", responses[0].type if responses else "nothing")
        return _mark.decode(responses[0].payload)

    async def range(
        self, network: str, chain_id: str, first: int, last: int, *, overwrite: bool = False
    ) -> Synced:
        """Fetch what of ``first`` to ``last`` is not stored yet (with ``overwrite``: all of it).

        Never raises for a slice that failed: that is in the result.
        """
        if overwrite:
            await self.store.forget(network, chain_id, first, last)
        covered = await self.store.coverage(network, chain_id)
        wanted = [
            piece
            for start, end in missing(covered, first, last)
            for piece in slices(start, end, self.settings.slice)
        ]
        result = Synced(first, last)
        slots = asyncio.Semaphore(self.settings.parallel)

        async def one(piece: Range) -> None:
            async with slots:
                await self.slice(network, chain_id, piece, result)

        async with asyncio.TaskGroup() as group:
            for piece in wanted:
                await slots.acquire()  # so that a long range does not make a task per slice at once
                slots.release()
                group.create_task(one(piece))
        covered = await self.store.coverage(network, chain_id)
        result.missing = missing(covered, first, last)
        return result

    async def slice(self, network: str, chain_id: str, piece: Range, result: Synced) -> None:
        """Fetch and write one slice by one task; what went wrong is added to ``result.errors``."""
        batch: list[IndexedBlock] = []
        size = 0
        try:
            async for height in self.fetch(network, chain_id, *piece):
                batch.append(height)
                size += sum(len(tx.raw) for tx in height.transactions) * 4
                if size > WRITE_BYTES:
                    await self._write(network, chain_id, batch, result)
                    batch, size = [], 0
        except LeaseholdError as error:
            log.warning("slice.failed", chain=chain_id, first=piece[0], last=piece[1],
                        error=error.message)  # fmt: skip
            result.errors.append(f"{piece[0]}-{piece[1]}: {error.message}")
        await self._write(network, chain_id, batch, result)

    async def _write(
        self, network: str, chain_id: str, batch: list[IndexedBlock], result: Synced
    ) -> None:
        try:
            result.stored += await self.store.write(network, chain_id, batch)
        except LeaseholdError as error:
            if error.kind is not Kind.CONFLICT:
                raise
            result.errors.append(error.message)
            return
        result.transactions += sum(len(height.transactions) for height in batch)
        if self._on_written is not None and batch:
            self._on_written(batch)

    async def fetch(
        self, network: str, chain_id: str, first: int, last: int
    ) -> AsyncIterator[IndexedBlock]:
        """Whole heights from a worker, in order, each once; nothing is stored.

        Understands our workers' parts and an original's ``Block``/``Transaction``/``END``.
        Raises what ended the task early, after the heights that came before.
        """
        request = HeightRange(
            start_height=first, end_height=last, chain_id=chain_id, network=network, format=HEIGHTS
        )
        call = Call(
            network=network,
            chain_id=chain_id,
            type="GetTransactions",
            payload=msgspec.json.encode(request),
            timeout=self.settings.task_timeout,
            retry=Retry.IDEMPOTENT,
        )
        gathering = Gathering(first, last)
        attempts = 1
        async with self.manager.submit(call) as task:
            attempts = task.attempts
            async for response in task:
                if task.attempts != attempts:
                    attempts = task.attempts
                    gathering.restart()
                for height in gathering.add(response.type, response.payload):
                    yield height
        for height in gathering.finish():
            yield height


class Gathering:
    """Puts heights together out of responses, whichever style the worker answers in."""

    def __init__(self, first: int, last: int) -> None:
        self.first = first
        self.last = last
        self.done: set[int] = set()
        self._block: Block | None = None
        self._events: tuple[Event, ...] = ()
        self._transactions: list[Transaction] = []
        self._legacy = False

    def restart(self) -> None:
        """Another worker begins the range again; heights given out already are not repeated."""
        self._block = None
        self._transactions = []

    def add(self, type_: str, payload: bytes) -> list[IndexedBlock]:
        """Heights that are complete with this response."""
        try:
            if type_ == "Height":
                return self._add_part(_part.decode(payload))
            if type_ == "Block":
                self._legacy = True
                complete = self._take()
                self._block = _block.decode(payload)
                return complete
            if type_ == "Transaction":
                self._transactions.append(_transaction.decode(payload))
                return []
            if type_ == "Heights":
                _heights.decode(payload)
                return []
        except msgspec.MsgspecError as error:
            raise _unexpected(
                "GetTransactions", f"a {type_} that cannot be read: {error}"
            ) from None
        if type_ == "END":
            return []
        raise _unexpected("GetTransactions", type_)

    def finish(self) -> list[IndexedBlock]:
        """The task ended well: the last height of the old style is complete."""
        return self._take() if self._legacy else []

    def _add_part(self, part: HeightPart) -> list[IndexedBlock]:
        if part.part == 0:
            self._block, self._transactions = part.block, []
            self._events = part.events
        if self._block is None or self._block.height != part.height:
            raise _unexpected("GetTransactions", f"part {part.part} of height {part.height}")
        self._transactions.extend(part.transactions)
        return self._take() if part.last else []

    def _take(self) -> list[IndexedBlock]:
        block, transactions = self._block, self._transactions
        events, self._events = self._events, ()
        self._block, self._transactions = None, []
        if block is None or block.height in self.done:
            return []
        if not self.first <= block.height <= self.last:
            raise _unexpected("GetTransactions", f"height {block.height}, which was not asked for")
        if len(transactions) != block.num_txs:
            raise _unexpected(
                "GetTransactions",
                f"{len(transactions)} of {block.num_txs} transactions of height {block.height}",
            )
        self.done.add(block.height)
        return [IndexedBlock(block=block, transactions=tuple(transactions), events=events)]


def _unexpected(call: str, got: str) -> LeaseholdError:
    return LeaseholdError(
        "unexpected_response", f"the worker answered {call} with {got}", kind=Kind.UNAVAILABLE
    )


def incomplete(result: Synced | None, error: str = "") -> LeaseholdError:
    """The refusal of whoever needed all of a range."""
    gaps = result.missing if result is not None else []
    spoken = error or ("; ".join(result.errors) if result is not None else "")
    return LeaseholdError(
        "range_incomplete",
        f"not all heights could be fetched: {spoken or 'no reason given'}",
        kind=Kind.UNAVAILABLE,
        got=gaps[:20],
        retry_after=5.0,
    )

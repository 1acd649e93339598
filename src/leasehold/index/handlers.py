"""The tasks an index worker offers.

``GetTransactions`` fetches a range of heights, a bounded number at once, and answers in height
order; a height that cannot be fetched ends the range there. What it answers with depends on who
asks: ``Block``, ``Transaction`` … ``END`` for an original's manager, or, when asked for the format
``heights``, parts of whole heights and a final ``Heights`` that says which ones were done.
``GetLatestMark`` is the head of the chain. ``GetReward``, ``GetAccountBalance`` and
``GetAccountDelegations`` are questions about an account at a height.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import TypeVar

import msgspec

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.core.logs import get_logger
from leasehold.dispatch.worker import Handler, Job, Reply
from leasehold.index import metrics
from leasehold.index.accounts import Accounts
from leasehold.index.cometbft import Status, decode_height, decode_search, decode_status
from leasehold.index.rpc import Rpc
from leasehold.index.settings import IndexSettings
from leasehold.model.chain import (
    AccountBalance,
    AccountDelegations,
    Block,
    HeightAccount,
    HeightPart,
    HeightRange,
    Heights,
    IndexedBlock,
    LatestData,
    Reward,
    Transaction,
)

T = TypeVar("T")

HEIGHTS = "heights"
"""``format`` of a range whose asker wants whole heights."""

HEAD_TIMEOUT = 5.0
"""Seconds to look up the head of the chain."""

log = get_logger(__name__)


class Handlers(dict[str, Handler]):
    """Handlers by task type, and the connection they share; a worker closes it when it stops."""

    def __init__(self, network: CometNetwork) -> None:
        tasks: dict[str, Handler] = {
            "GetTransactions": network.get_transactions,
            "GetLatestMark": network.get_latest_mark,
            "GetLatest": network.get_latest,
            "GetReward": network.get_reward,
            "GetAccountBalance": network.get_account_balance,
            "GetAccountDelegations": network.get_account_delegations,
        }
        super().__init__({type_: _counted(type_, task) for type_, task in tasks.items()})
        self.network = network

    async def aclose(self) -> None:
        await self.network.rpc.close()


def _counted(type: str, handler: Handler) -> Handler:
    """The same handler, with the metrics of the original's workers."""
    received = metrics.REQUESTS.labels(type)
    duration = metrics.ENDPOINT_TIME.labels(type)

    async def counted(job: Job) -> AsyncIterator[Reply]:
        received.inc()
        replies = handler(job)
        with duration.time():
            try:
                async for reply in replies:
                    metrics.RESPONSES.labels(reply.type, str(reply.final).lower()).inc()
                    yield reply
            finally:
                if isinstance(replies, AsyncGenerator):
                    await replies.aclose()

    return counted


def worker_handlers(settings: IndexSettings | None = None, *, rpc: Rpc | None = None) -> Handlers:
    """What to give to :class:`leasehold.dispatch.worker.Worker` for the chain in ``settings``."""
    settings = settings or IndexSettings()
    rpc = rpc or Rpc(
        settings.rpc,
        timeout=settings.rpc_timeout,
        max_bytes=settings.rpc_max_bytes,
        connections=2 * settings.rpc_concurrency,
    )
    return Handlers(CometNetwork(rpc, settings))


class CometNetwork:
    """A chain behind a CometBFT RPC: ``cosmos`` or our own ``ledger``; the code is the same."""

    def __init__(self, rpc: Rpc, settings: IndexSettings) -> None:
        self.rpc = rpc
        self.settings = settings
        self.accounts = Accounts(rpc, settings.network)
        self._version: str | None = None

    async def status(self) -> Status:
        status = decode_status(await self.rpc.status())
        self._version = status.version
        return status

    async def height(self, height: int) -> IndexedBlock:
        """Everything of one height."""
        if self._version is None:
            await self.status()
        block, results = await asyncio.gather(
            self.rpc.block(height), self.rpc.block_results(height)
        )
        with metrics.CONVERSION_TIME.time():
            found = decode_height(block, results, version=self._version or "")
        metrics.TX_NUM.inc(len(found.transactions))
        metrics.BLOCK_TX_NUM.observe(len(found.transactions))
        return found

    async def heights(self, first: int, last: int) -> AsyncIterator[IndexedBlock]:
        """``first`` to ``last`` in order, ``rpc_concurrency`` of them fetched at once."""
        waiting: deque[asyncio.Task[IndexedBlock]] = deque()
        try:
            upcoming = iter(range(first, last + 1))
            for height in upcoming:
                waiting.append(asyncio.create_task(self.height(height)))
                if len(waiting) >= self.settings.rpc_concurrency:
                    yield await waiting.popleft()
            while waiting:
                yield await waiting.popleft()
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    # tasks

    async def get_transactions(self, job: Job) -> AsyncIterator[Reply]:
        wanted = decode(job, HeightRange)
        if wanted.hash:
            async for reply in self._by_hash(wanted.hash):
                yield reply
            return
        first, last = checked_range(wanted, self.settings.max_heights)
        done = Heights()
        error = ""
        mark = LatestData(network=wanted.network, chain_id=wanted.chain_id)
        try:
            async for height in self.heights(first, last):
                for reply in (
                    parts(height, self.settings.part_bytes)
                    if wanted.format == HEIGHTS
                    else pieces(height)
                ):
                    yield reply
                done.heights.append(height.height)
                done.num_tx += len(height.transactions)
                mark.last_height = height.height
                mark.last_hash = height.hash
                mark.last_time = height.time
        except LeaseholdError as failure:
            error = failure.message
            done.error_at.append((done.heights[-1] + 1) if done.heights else first)
        if wanted.format == HEIGHTS:
            done.num_heights = len(done.heights)
            done.latest = mark if done.heights else None
            yield Reply("Heights", msgspec.json.encode(done), final=True, error=error)
        elif error:
            raise LeaseholdError("range_failed", error, kind=Kind.UNAVAILABLE)

    async def get_latest_mark(self, job: Job) -> AsyncIterator[Reply]:
        known = decode(job, LatestData)
        yield Reply("LatestMark", msgspec.json.encode(await self._mark(known)), final=True)

    async def get_latest(self, job: Job) -> AsyncIterator[Reply]:
        """From the last known height to the head, ``latest_window`` heights at most."""
        known = decode(job, LatestData)
        head = await self._mark(known)
        first = max(known.last_height, head.last_height - self.settings.latest_window, 1)
        async for height in self.heights(first, head.last_height):
            for reply in pieces(height):
                yield reply

    async def get_reward(self, job: Job) -> AsyncIterator[Reply]:
        asked = decode_account(job)
        found = Reward(asked.height, await self.accounts.rewards(asked.account, asked.height))
        yield Reply("Reward", msgspec.json.encode(found))

    async def get_account_balance(self, job: Job) -> AsyncIterator[Reply]:
        asked = decode_account(job)
        balances = await self.accounts.balances(asked.account, asked.height)
        yield Reply("AccountBalance", msgspec.json.encode(AccountBalance(asked.height, balances)))

    async def get_account_delegations(self, job: Job) -> AsyncIterator[Reply]:
        asked = decode_account(job)
        delegations = await self.accounts.delegations(asked.account, asked.height)
        found = AccountDelegations(asked.height, delegations)
        yield Reply("AccountDelegations", msgspec.json.encode(found))

    async def _mark(self, known: LatestData) -> LatestData:
        async with asyncio.timeout(HEAD_TIMEOUT):
            status = await self.status()
        return LatestData(
            network=known.network,
            chain_id=status.chain_id,
            task_id=known.task_id,
            last_height=status.latest_height,
            last_hash=status.latest_hash,
            last_time=status.latest_time,
        )

    async def _by_hash(self, hash: str) -> AsyncIterator[Reply]:
        wanted = hash.removeprefix("0x").upper()
        if len(wanted) != 64 or not all(c in "0123456789ABCDEF" for c in wanted):
            raise LeaseholdError(
                "bad_hash", "a transaction hash is 64 hexadecimal digits", path="Hash", got=hash
            )
        if self._version is None:
            await self.status()
        found, _ = decode_search(
            await self.rpc.tx_search(f"tx.hash='{wanted}'"), version=self._version or ""
        )
        for transaction in found:
            whole = await self.height(transaction.height)
            yield Reply("Block", msgspec.json.encode(whole.block))
            for candidate in whole.transactions:
                if candidate.hash == wanted:
                    yield Reply("Transaction", msgspec.json.encode(candidate))


def checked_range(wanted: HeightRange, limit: int) -> tuple[int, int]:
    """First and last height; LeaseholdError ``bad_range``. An end of 0 means the start alone."""
    first, last = wanted.start_height, wanted.end_height or wanted.start_height
    if first < 1 or last < first or last - first + 1 > limit:
        raise LeaseholdError(
            "bad_range",
            f"heights {first} to {last}: they must be positive, in order, and at most {limit}",
            path="StartHeight",
            got=f"{first}-{last}",
        )
    return first, last


def pieces(height: IndexedBlock) -> Iterator[Reply]:
    """One height for an original's manager."""
    yield Reply("Block", msgspec.json.encode(height.block))
    for transaction in height.transactions:
        yield Reply("Transaction", msgspec.json.encode(transaction))


def parts(height: IndexedBlock, limit: int) -> Iterator[Reply]:
    """One height in parts of about ``limit`` bytes of transactions, as fit a message."""
    batch: list[Transaction] = []
    size = number = 0
    block: Block | None = height.block
    events = height.events
    for transaction in height.transactions:
        weight = 2 * len(transaction.raw) + len(transaction.raw_log) + 600
        weight += 120 * sum(1 + len(e.attributes) for e in transaction.raw_events)
        if batch and size + weight > limit:
            yield _part(HeightPart(height.height, number, False, block, events, tuple(batch)))
            batch, size, block, events = [], 0, None, ()
            number += 1
        batch.append(transaction)
        size += weight
    yield _part(HeightPart(height.height, number, True, block, events, tuple(batch)))


def _part(part: HeightPart) -> Reply:
    return Reply("Height", msgspec.json.encode(part))


def decode_account(job: Job) -> HeightAccount:
    asked = decode(job, HeightAccount)
    if not asked.account or asked.height < 0:
        raise LeaseholdError(
            "bad_payload", "an account and a height from 0 are needed", path="Account",
            got=asked.account,
        )  # fmt: skip
    return asked


def decode(job: Job, type_: type[T]) -> T:
    """The payload of a task; LeaseholdError ``bad_payload``."""
    try:
        return msgspec.json.decode(job.payload, type=type_)
    except msgspec.MsgspecError as error:
        raise LeaseholdError(
            "bad_payload", f"payload of {job.type}: {error}", kind=Kind.MALFORMED
        ) from None

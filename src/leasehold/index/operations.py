"""What a manager does with an index: catch up, synchronise a range, find and fill what is missing.

Managers keep nothing: each call looks at what is stored, does its part, and says how far all is
whole. A call for work that is under way here answers ``processing`` and changes nothing. Progress
never passes a height that failed, and the nonce of a caller comes back as it was.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from leasehold.core.clock import Clock, SystemClock
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.dispatch.manager import Manager
from leasehold.index import metrics
from leasehold.index.earnings import BalanceOf, Earned, Earnings
from leasehold.index.ranges import Range, missing, runs, watermark
from leasehold.index.search import Found, Search, find
from leasehold.index.settings import IndexSettings
from leasehold.index.store import Store
from leasehold.index.sync import Sync, Synced, incomplete
from leasehold.model.chain import IndexedBlock, LatestData, Transaction

MAX_RANGE = 1_000_000
"""Heights of one synchronous request."""


class SyncRange(LatestData, kw_only=True):
    """The parameter of ``sync_range``: go on from ``last_height`` to ``final_height``."""

    final_height: Annotated[int, Meta(ge=0)] = 0


class LatestQuestion(LatestData, kw_only=True):
    """The parameter of ``last_data``, in either spelling of the original's generations."""

    given_hash: str | None = msgspec.field(default=None, name="lastHash")
    given_epoch: str | None = msgspec.field(default=None, name="lastEpoch")
    given_height: int | None = msgspec.field(default=None, name="lastHeight")
    given_time: str | None = msgspec.field(default=None, name="lastTime")
    given_check: bool | None = msgspec.field(default=None, name="selfCheck")

    def plain(self) -> LatestData:
        """In our own spelling."""
        values = {name: getattr(self, name) for name in LatestData.__struct_fields__}
        given = {
            "last_hash": self.given_hash,
            "last_epoch": self.given_epoch,
            "last_height": self.given_height,
            "last_time": self.given_time,
            "self_check": self.given_check,
        }
        values.update((name, value) for name, value in given.items() if value is not None)
        return LatestData(**values)


class Missing(msgspec.Struct):
    """Ranges not stored. Heights are stored whole, so transactions are missing where blocks are."""

    missing_blocks: list[Range]
    missing_transactions: list[Range]


class Inserted(msgspec.Struct):
    """How many of the given transactions are in the index, and hashes that are not on the chain."""

    stored: int
    unknown: list[str]


class Operations:
    """One per manager; everything it knows is in ``store``."""

    def __init__(
        self,
        manager: Manager,
        store: Store,
        settings: IndexSettings | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.settings = settings or IndexSettings()
        self.manager = manager
        self.store = store
        self.clock = clock or SystemClock()
        self.sync = Sync(manager, store, self.settings)
        self.earnings = Earnings(manager, store)
        self._under_way: set[tuple[str, ...]] = set()

    def register(self) -> None:
        """Offer ``last_data`` and ``sync_range`` on the manager's websocket."""

        async def last_data(params: list[Any]) -> Any:
            return await self.last_data(msgspec.convert(_only(params), LatestQuestion).plain())

        async def sync_range(params: list[Any]) -> Any:
            return await self.sync_range(msgspec.convert(_only(params), SyncRange))

        async def search(params: list[Any]) -> Any:
            return await self.search(msgspec.convert(_only(params), Search))

        self.manager.method("last_data", last_data)
        self.manager.method("sync_range", sync_range)
        self.manager.method("search", search)

    # progress

    async def last_data(self, known: LatestData) -> LatestData:
        """Catch up with the head from ``known``, at most ``latest_window`` heights back.

        With ``self_check`` what is stored counts, not what the caller says it has.
        """
        async with self._doing("last_data", known) as free:
            if not free:
                return _processing(known)
            if known.self_check:
                known = await self._checked(known)
            head = await self.sync.head(known.network, known.chain_id)
            if head.last_height <= known.last_height:
                return _answer(known, known)
            first = latest_range(known.last_height, head.last_height, self.settings.latest_window)
            return await self._advance(known, first, head.last_height)

    async def _checked(self, known: LatestData) -> LatestData:
        covered = await self.store.coverage(known.network, known.chain_id)
        height = covered[-1][1] if covered else 0
        newest = await self._stored(known.network, known.chain_id, height)
        if newest is None:
            return msgspec.structs.replace(known, last_height=0, last_hash="", last_time="")
        return msgspec.structs.replace(
            known, last_height=height, last_hash=newest.hash, last_time=newest.time
        )

    async def sync_range(self, known: SyncRange) -> LatestData:
        """The next ``sync_window`` heights of a range that ends at ``final_height``."""
        async with self._doing("sync_range", known) as free:
            if not free:
                return _processing(known)
            last = min(known.last_height + self.settings.sync_window, known.final_height)
            if last <= known.last_height:
                return _answer(known, known)
            return await self._advance(known, known.last_height + 1, last)

    async def _advance(self, known: LatestData, first: int, last: int) -> LatestData:
        """Fetch a range; the answer is how far from its start everything is stored."""
        result = await self.range(known.network, known.chain_id, first, last)
        covered = await self.store.coverage(known.network, known.chain_id)
        reached = min(watermark(covered, first), last)
        newest = await self._stored(known.network, known.chain_id, reached)
        answer = _answer(known, known)
        if newest is not None and reached > known.last_height:
            answer.last_height = newest.height
            answer.last_hash = newest.hash
            answer.last_time = newest.time
            answer.last_epoch = newest.block.epoch
        if result.missing:
            spoken = "; ".join(result.errors) or "heights are missing"
            answer.error = f"{spoken} (missing {_text(result.missing)})".encode()[:1000]
        return answer

    async def _stored(self, network: str, chain_id: str, height: int) -> IndexedBlock | None:
        async for block in self.store.blocks(network, chain_id, height, height):
            return block
        return None

    @contextlib.asynccontextmanager
    async def _doing(self, what: str, known: LatestData) -> AsyncIterator[bool]:
        """Whether this manager is free to do it: one at a time for a (task, network, chain)."""
        key = (what, known.task_id, known.network, known.chain_id)
        if key in self._under_way:
            yield False
            return
        self._under_way.add(key)
        try:
            with metrics.CALL_TIME.labels(what).time():
                yield True
        finally:
            self._under_way.discard(key)

    # ranges

    async def range(
        self, network: str, chain_id: str, first: int, last: int, *, overwrite: bool = False
    ) -> Synced:
        """Fetch what is not stored of ``first`` to ``last``."""
        check_range(first, last)
        metrics.HEIGHTS_TO_GET.labels("get").observe(last - first + 1)
        with metrics.CALL_TIME.labels("GetTransactions").time():
            return await self.sync.range(network, chain_id, first, last, overwrite=overwrite)

    async def missing(self, network: str, chain_id: str, first: int, last: int) -> Missing:
        """What is not stored of ``first`` to ``last``."""
        check_range(first, last)
        with metrics.CALL_TIME.labels("CheckMissing").time():
            gaps = missing(await self.store.coverage(network, chain_id), first, last)
        return Missing(gaps, gaps)

    async def search(self, search: Search) -> Found:
        with metrics.CALL_TIME.labels("SearchTransactions").time():
            return await find(self.store, search)

    async def rewards(
        self, network: str, chain_id: str, account: str, start: str, end: str
    ) -> list[Earned]:
        with metrics.CALL_TIME.labels("Reward").time():
            return await self.earnings.rewards(network, chain_id, account, start, end)

    async def balances(
        self, network: str, chain_id: str, account: str, start: str, end: str
    ) -> list[BalanceOf]:
        with metrics.CALL_TIME.labels("AccountBalance").time():
            return await self.earnings.balances(network, chain_id, account, start, end)

    async def insert(self, network: str, transactions: Sequence[Transaction]) -> Inserted:
        """See to it that these transactions are in the index: their heights are fetched, whole.

        What the chain does not know under that hash and height is not taken on anybody's word.
        """
        by_chain: dict[str, dict[int, set[str]]] = {}
        for position, given in enumerate(transactions):
            if not given.chain_id or not given.hash or given.height < 1:
                raise LeaseholdError(
                    "bad_transaction",
                    "chain_id, height and hash say which transaction it is",
                    kind=Kind.MALFORMED,
                    path=f"[{position}]",
                )
            by_chain.setdefault(given.chain_id, {}).setdefault(given.height, set()).add(given.hash)
        stored, unknown = 0, []
        with metrics.CALL_TIME.labels("InsertTransactions").time():
            for chain_id, heights in by_chain.items():
                for first, last in runs(heights):
                    synced = await self.range(network, chain_id, first, last)
                    if synced.missing:
                        raise incomplete(synced)
                    async for block in self.store.blocks(network, chain_id, first, last):
                        known = {tx.hash for tx in block.transactions}
                        wanted = {hash_.upper() for hash_ in heights[block.height]}
                        stored += len(wanted & known)
                        unknown += sorted(wanted - known)
        return Inserted(stored, unknown)

    async def status(self) -> list[dict[str, Any]]:
        """Each chain of the index: what is covered, and what lies between."""
        out = []
        for network, chain_id in await self.store.chains():
            covered = await self.store.coverage(network, chain_id)
            gaps = missing(covered, covered[0][0], covered[-1][1]) if covered else []
            out.append(
                {
                    "network": network,
                    "chain_id": chain_id,
                    "covered": covered,
                    "missing": gaps,
                    "heights": sum(last - first + 1 for first, last in covered),
                }
            )
        return out


def latest_range(known: int, head: int, window: int) -> int:
    """The first height to fetch: after what is known, but never more than ``window`` back.

    Nothing known, or more than ``window`` behind: older heights are skipped on purpose, to be
    filled by ``sync_range``. Short chains start at 1.
    """
    if known <= 0 or head - known > window:
        return max(1, head - window)
    return known + 1


def check_range(first: int, last: int) -> None:
    """LeaseholdError ``bad_range`` unless 1 <= first <= last and it is not too long."""
    if first < 1 or last < first or last - first >= MAX_RANGE:
        raise LeaseholdError(
            "bad_range",
            f"heights {first} to {last}: they must be positive, in order and at most {MAX_RANGE}",
            kind=Kind.MALFORMED,
            path="start_height",
            expected=f"1 <= start <= end < start + {MAX_RANGE}",
            got=f"{first}-{last}",
        )


def _answer(known: LatestData, progress: LatestData) -> LatestData:
    """An answer to a caller, with its own task id and nonce."""
    return LatestData(
        network=known.network,
        chain_id=known.chain_id,
        version=known.version,
        task_id=known.task_id,
        last_height=progress.last_height,
        last_hash=progress.last_hash,
        last_epoch=progress.last_epoch,
        last_time=progress.last_time,
        nonce=known.nonce,
    )


def _processing(known: LatestData) -> LatestData:
    answer = _answer(known, known)
    answer.processing = True
    answer.retry_count = known.retry_count + 1
    return answer


def _only(params: list[Any]) -> Any:
    if len(params) != 1 or not isinstance(params[0], dict):
        raise ValueError("one object is expected")
    return params[0]


def _text(ranges: list[Range]) -> str:
    shown = ", ".join(f"{a}-{b}" for a, b in ranges[:20])
    return shown + (f" and {len(ranges) - 20} more" if len(ranges) > 20 else "")

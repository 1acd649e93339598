"""New blocks as they come, none left out.

Two tasks. *Listening* keeps a websocket subscription to the node: each announced height wakes the
other one. *Catching up* fetches, through a worker task, what lies between the last height that is
stored without a gap (the watermark) and the head, and stores it. A websocket that dies without
a word is noticed by unanswered pings; while there is none, the head is polled. Even with one the
head is looked at now and then: a subscription can be silently lost on a connection that lives.

Readers (:meth:`Follower.blocks`) get heights in order from what is stored, so what they saw is
durable, a restart continues where they say, and a slow reader holds up nobody.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence

from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.core.logs import get_logger
from leasehold.core.retry import Backoff
from leasehold.core.service import Service
from leasehold.dispatch.manager import Manager
from leasehold.index import metrics
from leasehold.index.cometbft import decode_status
from leasehold.index.ranges import Range, merged, runs, watermark
from leasehold.index.rpc import Rpc
from leasehold.index.settings import IndexSettings
from leasehold.index.store import Store
from leasehold.index.sync import Sync, Synced
from leasehold.model.chain import IndexedBlock

RECENT = 128
"""Newest heights kept in memory, so that readers at the head need not ask the database."""

RECENT_TXS = 1000
"""Heights with more transactions than this are not kept in memory."""

RETRY = Backoff(first=0.1, cap=5.0)
"""Seconds between attempts while a height cannot be fetched or the websocket cannot be opened."""

log = get_logger(__name__)


class Follower(Service):
    """Follows the chain of ``settings``; ``manager`` and ``store`` must run already."""

    def __init__(
        self,
        manager: Manager,
        store: Store,
        clock: Clock | None = None,
        settings: IndexSettings | None = None,
    ) -> None:
        super().__init__("index follower", clock=clock)
        self.settings = settings or IndexSettings()
        self.store = store
        self.sync = Sync(manager, store, self.settings, on_written=self._written)
        self.pushed = False
        self.problem = ""
        self.start_height = 0
        self.head = 0
        self._known: list[Range] = []
        self._recent: OrderedDict[int, IndexedBlock] = OrderedDict()
        self._wake = asyncio.Event()
        self._advanced = asyncio.Event()

    async def start(self) -> None:
        settings = self.settings
        self._rpc = Rpc(settings.rpc, timeout=settings.rpc_timeout)
        self.resources.push_async_callback(self._rpc.close)
        label = f"{settings.network}/{settings.chain_id}"
        self._head_gauge = metrics.HEAD.labels(label)
        self._watermark_gauge = metrics.WATERMARK.labels(label)
        self._pushed_gauge = metrics.PUSHED.labels(label)
        self._lost = metrics.PUSH_LOST.labels(label)
        self._missed = metrics.PUSH_MISSED.labels(label)
        self._known = await self.store.coverage(settings.network, settings.chain_id)
        self.start_height = await self.store.follow_from(
            settings.network, settings.chain_id, settings.start_height
        )
        self.spawn(self._listen(), name="listen")
        self.spawn(self._catch_up(), name="catch up")

    @property
    def watermark(self) -> int:
        """The last height up to which everything is stored; one less than the first if nothing."""
        return watermark(self._known, self.start_height) if self.start_height else 0

    @property
    def lag(self) -> int:
        """Heights the chain is known to have that are not stored yet."""
        return max(0, self.head - self.watermark)

    # readers

    async def blocks(self, after_height: int) -> AsyncIterator[IndexedBlock]:
        """Every height after ``after_height``, in order, forever; waits for those to come.

        0 means from where following began. LeaseholdError ``height_unavailable`` when a height
        before that is wanted which the node does not have any more.
        """
        while not self.start_height:
            await self._advanced_once()
        at = after_height or self.start_height - 1
        if at + 1 < self.start_height:
            await self._backfill(at + 1, self.start_height - 1)
        while True:
            while at >= self.watermark:
                await self._advanced_once()
            recent = self._recent.get(at + 1)
            if recent is not None:
                at += 1
                yield recent
                continue
            last = min(self.watermark, at + RECENT)
            settings = self.settings
            async for height in self.store.blocks(
                settings.network, settings.chain_id, at + 1, last
            ):
                if height.height != at + 1:
                    break
                at += 1
                yield height
            if at < last:
                raise LeaseholdError(
                    "height_missing",
                    f"height {at + 1} was deleted from the index; fetch it again",
                    kind=Kind.INTERNAL,
                    got=at + 1,
                )

    async def _advanced_once(self) -> None:
        await self._advanced.wait()

    async def _backfill(self, first: int, last: int) -> None:
        settings = self.settings
        result = await self.sync.range(settings.network, settings.chain_id, first, last)
        if result.missing:
            raise LeaseholdError(
                "height_unavailable",
                f"heights {result.missing[0][0]} to {result.missing[0][1]} cannot be fetched:"
                f" {result.errors[-1] if result.errors else 'unknown reason'}",
                kind=Kind.UNAVAILABLE,
                got=first,
            )
        self.start_height = min(self.start_height, first)

    def _written(self, heights: Sequence[IndexedBlock]) -> None:
        before = self.watermark
        self._known = merged([*self._known, *runs(height.height for height in heights)])
        for height in heights:
            if height.height >= before and len(height.transactions) <= RECENT_TXS:
                self._recent[height.height] = height
        while len(self._recent) > RECENT:
            self._recent.popitem(last=False)
        if self.watermark > before:
            self._notify()

    def _notify(self) -> None:
        self._watermark_gauge.set(self.watermark)
        # Everybody who waits is woken; who comes later waits for the next one.
        self._advanced.set()
        self._advanced = asyncio.Event()

    # listening

    async def _listen(self) -> None:
        failures = 0
        while True:
            try:
                async for height in self._rpc.new_blocks(silence=self.settings.push_silence):
                    if not self.pushed:
                        self._push_state(True)
                    failures = 0
                    # 0 says the subscription stands: what came before it was not announced.
                    self._announced(height or self.head)
            except LeaseholdError as error:
                self.problem = error.message
            if self.pushed:
                self._lost.inc()
                log.warning("push.ended", problem=self.problem)
            self._push_state(False)
            failures += 1
            await self.clock.sleep(RETRY.delay(failures))

    def _push_state(self, alive: bool) -> None:
        self.pushed = alive
        self._pushed_gauge.set(alive)
        self._wake.set()

    def _announced(self, height: int) -> None:
        if height > self.head:
            self.head = height
            self._head_gauge.set(height)
        self._wake.set()

    # catching up

    async def _catch_up(self) -> None:
        failures = 0
        look = True
        while True:
            try:
                if look:
                    await self._look()
                await self._fetch()
                self.problem = ""
                failures = 0
            except LeaseholdError as error:
                failures += 1
                self.problem = error.message
                log.warning("follow.failed", problem=error.message, failures=failures)
                await self.clock.sleep(RETRY.delay(failures))
                look = True
                continue
            look = not await self._woken()

    async def _woken(self) -> bool:
        """Wait for an announcement; False when it is time to look at the head instead."""
        settings = self.settings
        limit = settings.check_interval if self.pushed else settings.poll_interval
        before = self.pushed
        try:
            async with self.clock.timeout(limit):
                await self._wake.wait()
        except TimeoutError:
            return False
        self._wake.clear()
        # With a fresh or a lost subscription, look: something may have been missed meanwhile.
        return self.pushed and before and self.head > self.watermark

    async def _look(self) -> None:
        settings = self.settings
        mark = await self.sync.head(settings.network, settings.chain_id)
        if mark.chain_id and mark.chain_id != settings.chain_id:
            raise LeaseholdError(
                "wrong_chain",
                f"{settings.rpc} is a node of {mark.chain_id}, not of {settings.chain_id}",
                expected=settings.chain_id,
                got=mark.chain_id,
            )
        if not self.start_height:
            first = settings.start_height or await self._first_height()
            self.start_height = await self.store.follow_from(
                settings.network, settings.chain_id, first
            )
            self._notify()
        if self.pushed and self.head and mark.last_height > self.head:
            self._missed.inc(mark.last_height - self.head)
        self._announced(mark.last_height)
        self._wake.clear()

    async def _first_height(self) -> int:
        return max(1, decode_status(await self._rpc.status()).earliest_height)

    async def _fetch(self) -> None:
        settings = self.settings
        while self.start_height and self.watermark < self.head:
            first, last = self.watermark + 1, self.head
            if last - first < settings.slice:
                result = Synced(first, last)
                await self.sync.slice(settings.network, settings.chain_id, (first, last), result)
            else:
                last = min(last, first + settings.latest_window - 1)
                result = await self.sync.range(settings.network, settings.chain_id, first, last)
                if not result.missing:
                    # What another manager stored meanwhile is covered, too.
                    self._known = merged([*self._known, (first, last)])
                    self._notify()
            if self.watermark < last:
                raise LeaseholdError(
                    "follow_incomplete",
                    f"heights {self.watermark + 1} to {last} are not there yet:"
                    f" {result.errors[-1] if result.errors else 'no reason given'}",
                    kind=Kind.UNAVAILABLE,
                )

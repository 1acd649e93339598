"""Runs spells on events of the log, losing none.

Each spell has a position in the log, stored with it; it moves when the run that saw the events has
ended. So an event is handled at least once, whatever is killed in between, and events that were
appended while the node was down are handled after it came back. A spell sees up to 100 events a
run, oldest first.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from leasehold.core.clock import Clock
from leasehold.core.errors import LeaseholdError
from leasehold.core.logs import get_logger
from leasehold.core.retry import Backoff
from leasehold.core.service import Service
from leasehold.events.log import Log
from leasehold.node.spells.engine import SpellEngine
from leasehold.node.spells.trigger import TriggerConfig, TriggerEvent

MAX_EVENTS = 100
"""Events one run is given."""

READ_AHEAD = 1000

log = get_logger(__name__)


class LogTriggers(Service):
    """Follows the log for every spell with a log trigger. Without a log nothing ever fires."""

    def __init__(
        self, source: Log | None, engine: SpellEngine, *, clock: Clock | None = None
    ) -> None:
        super().__init__("spell log triggers", clock=clock)
        self.source = source
        self.engine = engine
        self._cursors: dict[str, int] = {}
        self._news = asyncio.Event()
        engine.on_log_subscribe = self._subscribed
        engine.on_run_ended = lambda _: self._news.set()

    async def start(self) -> None:
        if self.source is not None:
            self.spawn(self._listen(), name="listen")
            self.spawn(self._follow(), name="follow")

    def _subscribed(self, spell: str, config: TriggerConfig, cursor: int | None) -> None:
        if self.source is None:
            return
        if cursor is None:
            # A new subscription begins with what comes next.
            self.spawn(self._begin(spell), name="begin")
        else:
            self._cursors[spell] = cursor
            self._news.set()

    async def _begin(self, spell: str) -> None:
        assert self.source is not None
        cursor = await self.source.last_seq()
        await self.engine.use(spell, lambda store: store.set_cursor(cursor))
        self._cursors[spell] = cursor
        self._news.set()

    async def _listen(self) -> None:
        assert self.source is not None
        backoff, failures = Backoff(first=0.1, cap=5.0), 0
        while True:
            try:
                async for _ in self.source.signals():
                    failures = 0
                    self._news.set()
            except LeaseholdError as error:
                failures += 1
                log.warning("log.signals_lost", error=error.message)
                await self.clock.sleep(backoff.delay(failures))

    async def _follow(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            await self.engine.opened.wait()
            for spell in list(self._cursors):
                config = self.engine.bus.subscribed(spell)
                if config is None or not config.log.kinds:
                    self._cursors.pop(spell, None)
                elif not self.engine.is_running(spell):
                    await self._catch_up(spell, config)

    async def _catch_up(self, spell: str, config: TriggerConfig) -> None:
        """Fire ``spell`` for what it has not seen; it comes back here when the run has ended."""
        assert self.source is not None
        cursor = self._cursors[spell]
        events: list[dict[str, Any]] = []
        at = cursor
        async for event in self.source.read_all(cursor, limit=READ_AHEAD):
            at = event.seq
            if config.log.matches(event.entity.kind, event.type):
                events.append(
                    {
                        "seq": event.seq,
                        "kind": event.entity.kind,
                        "id": event.entity.id,
                        "type": event.type,
                        "at": event.at,
                        "data": msgspec.json.decode(event.data),
                    }
                )
                if len(events) >= MAX_EVENTS:
                    break
        if not events:
            self._cursors[spell] = at
            return

        def ended() -> None:
            self._cursors[spell] = at

        self.engine.fire(spell, TriggerEvent("log", {"events": events, "cursor": at}), ended)

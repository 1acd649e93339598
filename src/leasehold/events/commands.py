"""Commands: pure decisions, appended by compare-and-set.

An aggregate folds its entity's events to a state; ``decide(state, command)`` answers with the
payloads to append, or raises the error the caller gets. Nothing is written when it raises. On a
conflict the state is caught up and the decision taken again. Commands are written to be
idempotent: one that was applied already decides nothing.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

import msgspec

from leasehold.core.clock import Clock
from leasehold.core.errors import LeaseholdError
from leasehold.events.event import Entity, Event, NewEvent, Timer, WillBlock
from leasehold.events.log import Log, Trimmed, VersionConflict

CONFLICT_RETRIES = 16
"""Decisions taken again before a caller is told that the entity is too busy."""

CACHED_STATES = 10_000
"""States kept between commands; the least recently used is folded again when needed."""

S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Decision:
    """What to append: registered payloads, with ids where the fact has a key; and timers."""

    payloads: Sequence[msgspec.Struct] = ()
    ids: Sequence[str] = ()
    timers: Sequence[Timer] = ()


class Commands(Generic[S]):
    """Runs commands on the entities of one kind.

    ``initial`` makes the state before the first event; ``fold(state, event)`` returns the next one
    (it may mutate and return the same object).
    """

    def __init__(
        self,
        log: Log,
        clock: Clock,
        *,
        kind: str,
        initial: Callable[[str], S],
        fold: Callable[[S, Event], S],
    ) -> None:
        self.log = log
        self.clock = clock
        self.kind = kind
        self._initial = initial
        self._fold = fold
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._cache: OrderedDict[str, tuple[S, str | None]] = OrderedDict()

    async def state(self, id: str) -> S:
        """The state of an entity as of now."""
        return (await self._catch_up(id))[0]

    def known(self, id: str) -> S | None:
        """The state known last, without reading: it may be old. None when it is not known."""
        found = self._cache.get(id)
        return found[0] if found else None

    async def run(
        self, id: str, decide: Callable[[S], Decision | None], *, optimistic: bool = False
    ) -> list[Event]:
        """Decide on the newest state and append; returns the appended events, empty for none.

        ``optimistic``: decide on the state known last, without reading, when there is one. The
        compare-and-set finds out if it was old; a decision to append nothing or to refuse is taken
        again on the newest state.
        """
        # One at a time here, so that only other processes can be in our way.
        lock = self._locks.get(id)
        if lock is None:
            lock = self._locks[id] = asyncio.Lock()
        async with lock:
            return await self._run(id, decide, optimistic)

    async def _run(
        self, id: str, decide: Callable[[S], Decision | None], optimistic: bool
    ) -> list[Event]:
        entity = Entity(self.kind, id)
        known = self._cache.get(id) if optimistic else None
        for attempt in range(CONFLICT_RETRIES):
            state, head = known or await self._catch_up(id)
            try:
                decision = decide(state)
            except LeaseholdError:
                if known is None:
                    raise
                decision = None
            if decision is None or not (decision.payloads or decision.timers):
                if known is None:
                    return []
                known = None
                continue
            known = None
            new = [
                NewEvent.of(
                    payload,
                    id=decision.ids[i] if i < len(decision.ids) else "",
                    clock=self.clock,
                )
                for i, payload in enumerate(decision.payloads)
            ]
            try:
                appended = await self.log.append(entity, head, new, timers=decision.timers)
            except VersionConflict:
                if attempt == CONFLICT_RETRIES - 1:
                    raise
            else:
                self._advance(id, head, appended)
                return appended
        raise AssertionError("unreachable")

    def _advance(self, id: str, head: str | None, appended: Sequence[Event]) -> None:
        """Fold what was just appended, so that the next command need not read it back."""
        cached = self._cache.get(id)
        if cached is None or cached[1] != head or not appended or appended[0].parent != head:
            return
        state, tail = cached
        for event in appended:
            state, tail = self._fold(state, event), event.id
        self._cache[id] = (state, tail)

    async def _catch_up(self, id: str) -> tuple[S, str | None]:
        cached = self._cache.get(id)
        state, tail = cached if cached is not None else (self._initial(id), None)
        # Taken out while folding: a second caller must not fold into the same object.
        self._cache.pop(id, None)
        try:
            state, tail = await self._read(id, state, tail)
        except Trimmed:
            # What we knew is older than what the log still has: begin at its snapshot.
            state, tail = await self._read(id, self._initial(id), None)
        self._cache[id] = (state, tail)
        if len(self._cache) > CACHED_STATES:
            self._cache.popitem(last=False)
        return state, tail

    async def _read(self, id: str, state: S, tail: str | None) -> tuple[S, str | None]:
        async for event in self.log.read(Entity(self.kind, id), after=tail):
            if not isinstance(event, WillBlock):
                state, tail = self._fold(state, event), event.id
        return state, tail

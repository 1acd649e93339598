"""The log several provider instances share, in PostgreSQL.

Each instance writes on one connection. A batch takes the one advisory lock of all writers for the
length of its transaction, so ``seq`` is the commit order and has no gaps. Others hear of it by
NOTIFY, which is only a hint: every second each instance looks for what it was not told.

A partition (1 of 64) belongs to the instance whose lease row says so (see ``leases``); an append
that gives an ``epoch`` is refused in the same transaction when the row has another one by now.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import asyncpg

from leasehold.core.clock import Clock
from leasehold.core.errors import LeaseholdError, unavailable
from leasehold.core.ids import new as new_id
from leasehold.core.logs import get_logger
from leasehold.core.service import State, not_running
from leasehold.events import leases
from leasehold.events import postgres_writer as writer
from leasehold.events.batch import Request
from leasehold.events.event import (
    Checkpoint,
    DueTimer,
    Entity,
    Event,
    Head,
    Signal,
    Subscribed,
    WillBlock,
)
from leasehold.events.group import GroupCommit
from leasehold.events.log import STANDING_PAGE, Standing, Trimmed
from leasehold.events.settings import EventsSettings

READERS = 4
PAGE = 500
RECONNECT = 1.0
"""Seconds before a lost connection is made again."""

AWAY = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
"""What a server that refuses, or a connection that breaks at any step of its protocol, raises."""

log = get_logger(__name__)


class PostgresLog(GroupCommit):
    """A :class:`leasehold.events.log.Log` at a PostgreSQL URL; makes its tables when missing."""

    def __init__(
        self,
        url: str,
        clock: Clock | None = None,
        settings: EventsSettings | None = None,
        *,
        instance: str = "",
    ) -> None:
        super().__init__(clock, settings)
        self.url = url
        self._who = new_id(self.clock.now())
        self.instance = instance or self._who
        """The name partitions are claimed by; give one that the next process here has too."""
        self._seen = 0
        self._told = asyncio.Event()
        self._submitted: asyncio.Queue[list[Request]] = asyncio.Queue()

    async def start(self) -> None:
        try:
            await writer.prepare(self.url)
            pool = asyncpg.create_pool(self.url, min_size=1, max_size=READERS)
            self._pool = await self.resources.enter_async_context(pool)
            self._seen = await self.last_seq()
        except AWAY as error:
            raise unavailable(
                "log_cannot_open", f"PostgreSQL does not let us in: {error}", got=_safe(self.url)
            ) from error
        self.spawn(self._write(), name="writer")
        self.spawn(self._listen(), name="listen")
        self.spawn(self._catch_up(), name="catch-up")

    def _submit(self, batch: list[Request]) -> None:
        self._submitted.put_nowait(batch)

    # -- writing -------------------------------------------------------------------------------

    async def _write(self) -> None:
        db: Any = None
        try:
            while True:
                batch = await self._submitted.get()
                try:
                    if db is None or db.is_closed():
                        db = await writer.connect(self.url)
                    await self._store_or_part(db, batch)
                except AWAY as error:
                    refusal = unavailable(
                        "log_write_failed", f"the event log cannot be written: {error}"
                    )
                    for request in batch:
                        request.refuse(refusal)
                    if db is not None:
                        db.terminate()
                        db = None
                self._done(batch)
        finally:
            if db is not None:
                db.terminate()

    async def _store(self, db: Any, batch: list[Request]) -> None:
        before, after = await writer.commit(db, batch, self.clock.now(), self._who)
        if self._seen == before:
            self._seen = after  # we tell our own readers ourselves
        else:
            self._told.set()

    async def _store_or_part(self, db: Any, batch: list[Request]) -> None:
        """If one of them cannot be stored, the others shall not suffer for it."""
        try:
            await self._store(db, batch)
        except asyncpg.DataError:
            await self._apart(db, batch)

    async def _apart(self, db: Any, batch: list[Request]) -> None:
        for request in batch:
            request.refuse(None)
            try:
                await self._store(db, [request])
            except asyncpg.DataError as error:
                request.refuse(
                    LeaseholdError("append_unstorable", f"cannot store this append: {error}")
                )

    async def trim(self, entity: Entity, keep_from: str) -> int:
        async with self._connection() as db:
            return await writer.trim(db, entity, keep_from)

    async def claim(
        self, instance: str, ttl: float, held: Mapping[int, int], *, all_of_them: bool = False
    ) -> dict[int, int]:
        """See :func:`leasehold.events.leases.claim`."""
        async with self._connection() as db:
            return await leases.claim(db, instance, ttl, held, all_of_them=all_of_them)

    async def leave(self, instance: str) -> None:
        async with self._connection() as db:
            await leases.leave(db, instance)

    # -- news of others ------------------------------------------------------------------------

    async def _listen(self) -> None:
        """Hear of others' appends; a lost connection only makes us slower."""
        while True:
            try:
                db = await asyncpg.connect(self.url)
                lost = asyncio.Event()
                db.add_termination_listener(lambda *_, lost=lost: lost.set())
                await db.add_listener(writer.CHANNEL, self._hear)
                self._told.set()
                try:
                    await lost.wait()
                finally:
                    db.terminate()
            except AWAY as error:
                log.warning("events.listen_failed", error=str(error))
            await self.clock.sleep(RECONNECT)

    def _hear(self, _db: object, _pid: int, _channel: str, word: object) -> None:
        if not str(word).startswith(self._who):
            self._told.set()

    async def _catch_up(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with self.clock.timeout(self.settings.poll_s):
                    await self._told.wait()
            self._told.clear()
            try:
                seen = self._seen
                signals = await self.changed(seen)
                timers = await self.next_timer()
            except LeaseholdError as error:
                log.warning("events.poll_failed", error=str(error))
                continue
            if signals:
                self._seen = max(self._seen, signals[-1].seq)
                self._hub.publish(signals)
            elif timers is not None and timers != getattr(self, "_next_timer", None):
                # Another instance may have set a timer: whoever fires them shall look again.
                due = await self.due_timers(timers, limit=1)
                self._hub.publish([Signal(timer.entity, "", 0) for timer in due])
            self._next_timer = timers

    # -- reading -------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator[Any]:
        if self.state not in (State.STARTING, State.RUNNING, State.STOPPING):
            raise not_running(self.name)
        try:
            async with self._pool.acquire() as db:
                yield db
        except AWAY as error:
            raise unavailable(
                "log_read_failed", f"the event log cannot be read: {error}"
            ) from error

    async def read(
        self, entity: Entity, after: str | None = None, *, watch: bool = False
    ) -> AsyncIterator[Event | WillBlock]:
        tail = after
        with self._hub.watch(entity) as changed:
            while True:
                changed.clear()
                page = await self._page(entity, tail)
                for event in page:
                    yield event
                    tail = event.id
                if len(page) == PAGE or changed.is_set():
                    continue
                if not watch:
                    return
                yield WillBlock(tail)
                await changed.wait()

    async def _page(self, entity: Entity, after: str | None) -> list[Event]:
        async with self._connection() as db, db.transaction(isolation="repeatable_read"):
            row = await db.fetchrow(
                "SELECT e.eid, e.trimmed, v.seq FROM entities e"
                " LEFT JOIN events v ON v.eid = e.eid AND v.id = $3"
                " WHERE e.kind = $1 AND e.id = $2",
                *entity,
                after,
            )
            if row is None or (after is not None and row[2] is None and after != row[1]):
                if after is not None:
                    raise Trimmed(entity, after)
                return []
            rows = await db.fetch(
                "SELECT seq, id, parent, type, data, at FROM events"
                " WHERE eid = $1 AND seq > $2 ORDER BY seq LIMIT $3",
                row[0],
                row[2] or 0,
                PAGE,
            )
        return [Event(r[0], entity, r[1], r[2], r[3], r[4], r[5]) for r in rows]

    async def read_all(self, after_seq: int = 0, *, limit: int = 1000) -> AsyncIterator[Event]:
        newest = await self.last_seq()
        while after_seq < newest:
            async with self._connection() as db:
                rows = await db.fetch(
                    "SELECT v.seq, e.kind, e.id, v.id, v.parent, v.type, v.data, v.at"
                    " FROM events v JOIN entities e USING (eid)"
                    " WHERE v.seq > $1 AND v.seq <= $2 ORDER BY v.seq LIMIT $3",
                    after_seq,
                    newest,
                    limit,
                )
            for r in rows:
                yield Event(r[0], Entity(r[1], r[2]), r[3], r[4], r[5], r[6], r[7])
                after_seq = r[0]
            if len(rows) < limit:
                return

    async def head(self, entity: Entity) -> Head | None:
        async with self._connection() as db:
            row = await db.fetchrow(
                "SELECT head, head_seq FROM entities WHERE kind = $1 AND id = $2", *entity
            )
        return Head(*row) if row and row[0] is not None else None

    async def last_seq(self) -> int:
        async with self._connection() as db:
            return int(await db.fetchval("SELECT last_seq FROM counters"))

    async def entities(self, kind: str, prefix: str = "") -> list[tuple[Entity, Head]]:
        async with self._connection() as db:
            rows = await db.fetch(
                "SELECT id, head, head_seq FROM entities"
                " WHERE kind = $1 AND id >= $2 AND id < $3 AND head IS NOT NULL",
                kind,
                prefix,
                prefix + "\U0010ffff",
            )
        return [(Entity(kind, r[0]), Head(r[1], r[2])) for r in rows]

    async def signals(self, after_seq: int | None = None) -> AsyncIterator[Signal | Subscribed]:
        with self._hub.subscribe() as subscription:
            start = await self.last_seq() if after_seq is None else after_seq
            yield Subscribed(start)
            for signal in await self.changed(start):
                yield signal
            while True:
                for signal in await subscription.next():
                    if signal.seq > start or not signal.head:
                        yield signal

    async def changed(self, after_seq: int) -> list[Signal]:
        async with self._connection() as db:
            rows = await db.fetch(
                "SELECT e.kind, e.id, e.head, e.head_seq FROM"
                " (SELECT DISTINCT eid FROM events WHERE seq > $1) AS v"
                " JOIN entities e USING (eid) ORDER BY e.head_seq",
                after_seq,
            )
        return [Signal(Entity(r[0], r[1]), r[2], r[3]) for r in rows]

    async def due_timers(self, until: float, *, limit: int = 1000) -> list[DueTimer]:
        async with self._connection() as db:
            rows = await db.fetch(
                "SELECT e.kind, e.id, t.name, t.due_at FROM timers t JOIN entities e USING (eid)"
                " WHERE t.due_at <= $1 ORDER BY t.due_at LIMIT $2",
                until,
                limit,
            )
        return [DueTimer(Entity(r[0], r[1]), r[2], r[3]) for r in rows]

    async def next_timer(self, after: float | None = None) -> float | None:
        async with self._connection() as db:
            value = await db.fetchval(
                "SELECT min(due_at) FROM timers WHERE due_at > $1",
                float("-inf") if after is None else after,
            )
        return None if value is None else float(value)

    async def standing(self, activity: str, kind: str) -> AsyncIterator[Sequence[Standing]]:
        last = ""
        while True:
            async with self._connection() as db:
                rows = await db.fetch(
                    "SELECT e.id, e.head, c.tail, c.state FROM entities e"
                    " LEFT JOIN checkpoints c ON c.activity = $1 AND c.eid = e.eid"
                    " WHERE e.kind = $2 AND e.id > $3"
                    " AND (e.head IS NOT NULL OR c.state IS NOT NULL)"
                    " ORDER BY e.id LIMIT $4",
                    activity,
                    kind,
                    last,
                    STANDING_PAGE,
                )
            yield rows
            if len(rows) < STANDING_PAGE:
                return
            last = rows[-1][0]

    async def checkpoints(self, activity: str) -> dict[Entity, Checkpoint]:
        async with self._connection() as db:
            rows = await db.fetch(
                "SELECT e.kind, e.id, c.tail, c.state, c.seq"
                " FROM checkpoints c JOIN entities e USING (eid) WHERE c.activity = $1",
                activity,
            )
        return {Entity(r[0], r[1]): Checkpoint(activity, r[2], r[3], r[4]) for r in rows}


def _safe(url: str) -> str:
    """The URL without its credentials."""
    head, at, tail = url.rpartition("@")
    return f"{head.partition('://')[0]}://***@{tail}" if at else url

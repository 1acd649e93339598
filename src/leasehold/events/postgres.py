"""The log several provider instances share, in PostgreSQL.

Each instance writes on one connection. A batch takes the one advisory lock of all writers for the
length of its transaction, so ``seq`` is the commit order and has no gaps. Others hear of it by
NOTIFY, which is only a hint: every second each instance looks for what it was not told.

A partition (1 of 64) belongs to the instance whose lease row says so; an append that gives an
``epoch`` is refused in the same transaction when the row has another one by now.
"""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import asyncpg

from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError, unavailable
from leasehold.core.ids import new as new_id
from leasehold.core.logs import get_logger
from leasehold.core.service import State, not_running
from leasehold.events import schema
from leasehold.events.batch import Batch, HeadState, Request, decide
from leasehold.events.event import (
    Checkpoint,
    DueTimer,
    Entity,
    Event,
    Head,
    Signal,
    Subscribed,
    Timer,
    WillBlock,
)
from leasehold.events.group import GroupCommit
from leasehold.events.log import StaleOwner, Trimmed
from leasehold.events.settings import EventsSettings

WRITERS_LOCK = 0x6C65617365686F6C
"""Key of the advisory lock of all writers ("leasehol")."""

CHANNEL = "leasehold_events"
PARTITIONS = 64
READERS = 4
PAGE = 500
RECONNECT = 1.0
"""Seconds before a lost connection is made again."""

log = get_logger(__name__)


def partition_of(entity: Entity) -> int:
    """The same on every instance and release."""
    return zlib.crc32(str(entity).encode()) % PARTITIONS


class PostgresLog(GroupCommit):
    """A :class:`leasehold.events.log.Log` at a PostgreSQL URL; makes its tables when missing."""

    def __init__(
        self, url: str, clock: Clock | None = None, settings: EventsSettings | None = None
    ) -> None:
        super().__init__(clock, settings)
        self.url = url
        self.instance = new_id(self.clock.now())
        self._seen = 0
        self._told = asyncio.Event()
        self._submitted: asyncio.Queue[list[Request]] = asyncio.Queue()

    async def start(self) -> None:
        try:
            await prepare(self.url)
            pool = asyncpg.create_pool(self.url, min_size=1, max_size=READERS)
            self._pool = await self.resources.enter_async_context(pool)
            self._seen = await self.last_seq()
        except (OSError, asyncpg.PostgresError) as error:
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
        db: asyncpg.Connection[Any] | None = None
        try:
            while True:
                batch = await self._submitted.get()
                try:
                    if db is None or db.is_closed():
                        db = await asyncpg.connect(self.url)
                    await self._commit(db, batch)
                except asyncpg.DataError as error:
                    await self._apart(db, batch, error)
                except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
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

    async def _apart(
        self, db: asyncpg.Connection[Any] | None, batch: list[Request], error: Exception
    ) -> None:
        """One of them cannot be stored; the others shall not suffer for it."""
        assert db is not None
        for request in batch:
            request.refuse(None)
            try:
                await self._commit(db, [request])
            except asyncpg.DataError:
                request.refuse(
                    LeaseholdError("append_unstorable", f"cannot store this append: {error}")
                )

    async def _commit(self, db: asyncpg.Connection[Any], batch: list[Request]) -> None:
        async with db.transaction():
            await db.execute("SELECT pg_advisory_xact_lock($1)", WRITERS_LOCK)
            last_seq, last_eid = await db.fetchrow("SELECT last_seq, last_eid FROM counters")
            heads, last_eid = await _heads(db, batch, last_eid)
            known = await _known(db, batch, heads)
            refused = await self._fence(db, batch)
            decided = decide(
                batch, self.clock.now(), heads, known, last_seq, lambda r: refused.get(id(r))
            )
            await _store(db, decided, heads)
            await db.execute(
                "UPDATE counters SET last_seq = $1, last_eid = $2", decided.last_seq, last_eid
            )
            if decided.fresh or decided.timers:
                word = f"{self.instance} {last_seq} {decided.last_seq}"
                await db.execute("SELECT pg_notify($1, $2)", CHANNEL, word)
        if self._seen == last_seq:
            self._seen = decided.last_seq  # we tell our own readers ourselves
        else:
            self._told.set()

    async def _fence(
        self, db: asyncpg.Connection[Any], batch: list[Request]
    ) -> dict[int, LeaseholdError]:
        """Who may not write any more."""
        if all(request.epoch is None for request in batch):
            return {}
        rows = await db.fetch("SELECT partition, epoch FROM partitions")
        epochs = {row[0]: row[1] for row in rows}
        refused: dict[int, LeaseholdError] = {}
        for request in batch:
            if request.epoch is not None:
                current = epochs.get(partition_of(request.entity), 0)
                if current != request.epoch:
                    refused[id(request)] = StaleOwner(request.entity, request.epoch, current)
        return refused

    async def trim(self, entity: Entity, keep_from: str) -> int:
        async with self._connection() as db, db.transaction():
            await db.execute("SELECT pg_advisory_xact_lock($1)", WRITERS_LOCK)
            row = await db.fetchrow(
                "SELECT v.eid, v.seq, v.parent FROM entities e JOIN events v ON v.eid = e.eid"
                " WHERE e.kind = $1 AND e.id = $2 AND v.id = $3",
                *entity,
                keep_from,
            )
            if row is None:
                return 0
            eid, seq, parent = row
            status = await db.execute("DELETE FROM events WHERE eid = $1 AND seq < $2", eid, seq)
            count = int(status.split()[-1])
            if count:
                await db.execute("UPDATE entities SET trimmed = $1 WHERE eid = $2", parent, eid)
            return count

    # -- news of others ------------------------------------------------------------------------

    async def _listen(self) -> None:
        """Hear of others' appends; a lost connection only makes us slower."""
        while True:
            try:
                db = await asyncpg.connect(self.url)
                lost = asyncio.Event()
                db.add_termination_listener(lambda *_, lost=lost: lost.set())
                await db.add_listener(CHANNEL, self._hear)
                self._told.set()
                try:
                    await lost.wait()
                finally:
                    db.terminate()
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                log.warning("events.listen_failed", error=str(error))
            await self.clock.sleep(RECONNECT)

    def _hear(self, _db: object, _pid: int, _channel: str, word: object) -> None:
        if not str(word).startswith(self.instance):
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
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
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

    async def checkpoints(self, activity: str) -> dict[Entity, Checkpoint]:
        async with self._connection() as db:
            rows = await db.fetch(
                "SELECT e.kind, e.id, c.tail, c.state, c.seq"
                " FROM checkpoints c JOIN entities e USING (eid) WHERE c.activity = $1",
                activity,
            )
        return {Entity(r[0], r[1]): Checkpoint(activity, r[2], r[3], r[4]) for r in rows}

    # -- owning --------------------------------------------------------------------------------

    async def claim(self, instance: str, ttl: float) -> dict[int, int]:
        """Renew ``instance`` for ``ttl`` seconds and share the partitions out again.

        Takes what nobody holds, up to a fair share, and gives back what is more than that.
        Returns its partitions with their epochs; a partition that changes hands gets a new epoch,
        which refuses whoever held it before.
        """
        async with self._connection() as db, db.transaction():
            await db.execute("SELECT pg_advisory_xact_lock($1)", WRITERS_LOCK)
            now = await db.fetchval("SELECT extract(epoch FROM clock_timestamp())::float8")
            await db.execute("DELETE FROM instances WHERE expires_at < $1", now)
            await db.execute(
                "INSERT INTO instances VALUES ($1, $2)"
                " ON CONFLICT (id) DO UPDATE SET expires_at = excluded.expires_at",
                instance,
                now + ttl,
            )
            alive = await db.fetchval("SELECT count(*) FROM instances")
            rows = await db.fetch("SELECT partition, owner, epoch, expires_at FROM partitions")
            held = {r[0]: r[2] for r in rows if r[1] == instance and r[3] >= now}
            taken = {r[0] for r in rows if r[1] and r[1] != instance and r[3] >= now}
            epochs = {r[0]: r[2] for r in rows}
            fair = -(-PARTITIONS // alive)
            for extra in sorted(held)[fair:]:
                del held[extra]
                await db.execute("UPDATE partitions SET owner = '' WHERE partition = $1", extra)
            free = [p for p in range(PARTITIONS) if p not in held and p not in taken]
            for partition in free[: max(0, fair - len(held))]:
                held[partition] = epochs.get(partition, 0) + 1
            await db.executemany(
                "INSERT INTO partitions VALUES ($1, $2, $3, $4) ON CONFLICT (partition) DO UPDATE"
                " SET owner = excluded.owner, epoch = excluded.epoch,"
                " expires_at = excluded.expires_at",
                [(p, instance, epoch, now + ttl) for p, epoch in held.items()],
            )
            return held

    async def leave(self, instance: str) -> None:
        """Give everything back at once, so that nobody has to wait for the lease to end."""
        async with self._connection() as db, db.transaction():
            await db.execute("SELECT pg_advisory_xact_lock($1)", WRITERS_LOCK)
            await db.execute("UPDATE partitions SET owner = '' WHERE owner = $1", instance)
            await db.execute("DELETE FROM instances WHERE id = $1", instance)


async def _heads(
    db: asyncpg.Connection[Any], batch: Sequence[Request], last_eid: int
) -> tuple[dict[Entity, HeadState], int]:
    wanted = list({request.entity for request in batch})
    rows = await db.fetch(
        "SELECT e.kind, e.id, e.eid, e.head, e.head_seq"
        " FROM unnest($1::text[], $2::text[]) AS w (kind, id)"
        " JOIN entities e ON e.kind = w.kind AND e.id = w.id",
        [e.kind for e in wanted],
        [e.id for e in wanted],
    )
    heads = {Entity(r[0], r[1]): HeadState(r[2], r[3], r[4], True) for r in rows}
    for entity in wanted:
        if entity not in heads:
            last_eid += 1
            heads[entity] = HeadState(last_eid, None, 0, False)
    return heads, last_eid


async def _known(
    db: asyncpg.Connection[Any], batch: Sequence[Request], heads: dict[Entity, HeadState]
) -> dict[tuple[Entity, str], Event]:
    wanted = {
        (heads[request.entity].eid, event.id): request.entity
        for request in batch
        if heads[request.entity].id is not None
        for event in request.events
    }
    if not wanted:
        return {}
    rows = await db.fetch(
        "SELECT v.seq, v.eid, v.id, v.parent, v.type, v.data, v.at"
        " FROM unnest($1::bigint[], $2::text[]) AS w (eid, id)"
        " JOIN events v ON v.eid = w.eid AND v.id = w.id",
        [eid for eid, _ in wanted],
        [id for _, id in wanted],
    )
    out = {}
    for seq, eid, id, parent, type_, data, at in rows:
        entity = wanted[eid, id]
        out[entity, id] = Event(seq, entity, id, parent, type_, data, at)
    return out


async def _store(
    db: asyncpg.Connection[Any], decided: Batch, heads: dict[Entity, HeadState]
) -> None:
    if decided.changed:
        changed = decided.changed.items()
        await db.execute(
            "INSERT INTO entities (eid, kind, id, head, head_seq)"
            " SELECT * FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::bigint[])"
            " ON CONFLICT (eid) DO UPDATE SET head = excluded.head, head_seq = excluded.head_seq",
            [h.eid for _, h in changed],
            [e.kind for e, _ in changed],
            [e.id for e, _ in changed],
            [h.id for _, h in changed],
            [h.seq for _, h in changed],
        )
    if decided.fresh:
        await db.execute(
            "INSERT INTO events (seq, eid, id, parent, type, data, at) SELECT * FROM"
            " unnest($1::bigint[], $2::bigint[], $3::text[], $4::text[], $5::text[],"
            " $6::bytea[], $7::float8[])",
            [e.seq for e in decided.fresh],
            [heads[e.entity].eid for e in decided.fresh],
            [e.id for e in decided.fresh],
            [e.parent for e in decided.fresh],
            [e.type for e in decided.fresh],
            [e.data for e in decided.fresh],
            [e.at for e in decided.fresh],
        )
    for head, timer in decided.timers:
        await db.execute(*_timer(head.eid, timer))
    for head, checkpoint in decided.checkpoints:
        await db.execute(*_checkpoint(head.eid, checkpoint))


def _timer(eid: int, timer: Timer) -> tuple[Any, ...]:
    if timer.due_at is None and timer.was is None:
        return "DELETE FROM timers WHERE eid = $1 AND name = $2", eid, timer.name
    if timer.due_at is None:
        return (
            "DELETE FROM timers WHERE eid = $1 AND name = $2 AND due_at = $3",
            eid,
            timer.name,
            timer.was,
        )
    if timer.was is not None:
        return (
            "UPDATE timers SET due_at = $3 WHERE eid = $1 AND name = $2 AND due_at = $4",
            eid,
            timer.name,
            timer.due_at,
            timer.was,
        )
    return (
        "INSERT INTO timers VALUES ($1, $2, $3)"
        " ON CONFLICT (eid, name) DO UPDATE SET due_at = excluded.due_at",
        eid,
        timer.name,
        timer.due_at,
    )


def _checkpoint(eid: int, checkpoint: Checkpoint) -> tuple[Any, ...]:
    if checkpoint.state is None:
        return (
            "DELETE FROM checkpoints WHERE activity = $1 AND eid = $2",
            checkpoint.activity,
            eid,
        )
    return (
        "INSERT INTO checkpoints (activity, eid, tail, seq, state) VALUES ($1, $2, $3, $4, $5)"
        " ON CONFLICT (activity, eid) DO UPDATE"
        " SET tail = excluded.tail, seq = excluded.seq, state = excluded.state",
        checkpoint.activity,
        eid,
        checkpoint.tail,
        checkpoint.seq,
        checkpoint.state,
    )


async def prepare(url: str) -> str:
    """Make the tables in an empty database; returns the revision the database is at."""
    db = await asyncpg.connect(url)
    try:
        async with db.transaction():
            await db.execute("SELECT pg_advisory_xact_lock($1)", WRITERS_LOCK)
            found = await db.fetchval("SELECT to_regclass('alembic_version')::text")
            if found is None:
                for statement in schema.POSTGRES:
                    await db.execute(statement)
            revision = await db.fetchval("SELECT version_num FROM alembic_version")
    finally:
        await db.close()
    if revision != schema.REVISION:
        raise LeaseholdError(
            "log_schema_mismatch",
            "the database is not at the schema of this release; run: leasehold db migrate",
            kind=Kind.UNAVAILABLE,
            expected=schema.REVISION,
            got=revision or "no version",
        )
    return str(revision)


def _safe(url: str) -> str:
    """The URL without its credentials."""
    head, at, tail = url.rpartition("@")
    return f"{head.partition('://')[0]}://***@{tail}" if at else url

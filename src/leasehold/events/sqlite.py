"""The embedded log: SQLite behind one group-committing writer thread.

Appends of a loop turn are handed to the writer as one batch; while it is being made durable the
next one gathers. So a batch is one hop between threads, a few set-wise statements and one fsync
(WAL, ``synchronous=FULL``), however many callers wait for it. Readers have connections and threads
of their own and never wait for the writer; what is fresh is answered from memory. The WAL is
copied into the database while nobody appends, or when it grew past its limit.

Exactly one process may open the file: others reach the log through the one that has it.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import queue
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError, unavailable
from leasehold.core.logs import get_logger
from leasehold.core.service import State, not_running
from leasehold.events import schema
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
from leasehold.events.recent import Recent
from leasehold.events.settings import EventsSettings
from leasehold.events.sqlite_writer import Writer

READERS = 4
"""Threads, each with a read-only connection."""

PAGE = 500
"""Most events fetched by one query of a read."""

FIRST_PAGE = 16
"""Events fetched by the first query of a read: who wants one event should not load a megabyte of
them. Each further page is four times as long, up to :data:`PAGE`."""

IDLE = 0.25
"""Seconds without an append after which the WAL is copied back."""

log = get_logger(__name__)
T = TypeVar("T")


class SqliteLog(GroupCommit):
    """A :class:`leasehold.events.log.Log` in the file ``path`` (made when missing)."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        clock: Clock | None = None,
        settings: EventsSettings | None = None,
    ) -> None:
        super().__init__(clock, settings)
        self.path = Path(path)
        self._inbox: queue.SimpleQueue[list[Request] | Callable[[Writer], None] | None] = (
            queue.SimpleQueue()
        )
        self._wrote = asyncio.Event()
        self._recent = Recent()
        self._last_seq = 0
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []

    # -- lifecycle -----------------------------------------------------------------------------

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="log-reader")
        self.resources.callback(self._close)
        ready: asyncio.Future[int] = self._loop.create_future()
        self._writer = threading.Thread(
            target=self._write_forever, args=(ready,), name="log-writer", daemon=True
        )
        self._writer.start()
        self._last_seq = await ready
        self.spawn(self._copy_back_when_idle(), name="wal")

    def _close(self) -> None:
        self._closed = True
        self._inbox.put(None)
        if hasattr(self, "_writer"):
            self._writer.join()
        self._readers.shutdown(wait=True)
        for db in self._connections:
            db.close()

    # -- the writer's thread -------------------------------------------------------------------

    def _write_forever(self, ready: asyncio.Future[int]) -> None:
        lock = None
        try:
            lock = lock_file(self.path)
            db = _open(self.path)
        except Exception as error:
            if lock is not None:
                os.close(lock)
            refusal = error if isinstance(error, LeaseholdError) else _cannot_open(self.path, error)
            self._loop.call_soon_threadsafe(_fail, ready, refusal)
            return
        try:
            writer = Writer(db)
            self._loop.call_soon_threadsafe(ready.set_result, writer.last_seq)
            while (work := self._inbox.get()) is not None:
                if callable(work):
                    work(writer)
                else:
                    writer.commit(work, self.clock.now())
                    self._loop.call_soon_threadsafe(self._done, work)
        finally:
            db.close()
            os.close(lock)

    def _submit(self, batch: list[Request]) -> None:
        self._inbox.put(batch)

    def _done(self, batch: list[Request]) -> None:
        super()._done(batch)
        self._wrote.set()

    def _committed(self, events: Sequence[Event]) -> None:
        self._last_seq = events[-1].seq
        self._recent.add(events)

    async def _copy_back_when_idle(self) -> None:
        """Copy the WAL into the database between bursts, or in one when it is too long."""
        wal = self.path.with_name(self.path.name + "-wal")
        while True:
            await self._wrote.wait()
            self._wrote.clear()
            await self.clock.sleep(IDLE)
            grown = wal.stat().st_size > self.settings.max_wal_bytes if wal.exists() else False
            if self._wrote.is_set() and not grown:
                continue
            try:
                await self._copy_back(grown)
            except (LeaseholdError, sqlite3.Error) as error:
                # On a full disk, say. Nothing is lost: it is in the WAL, and tried after more.
                log.warning("log.not_copied_back", error=str(error))

    async def _copy_back(self, grown: bool) -> None:
        if grown:
            # In the writer's own turn: only then can the file be cut to nothing.
            await self._in_writer(
                lambda writer: writer.db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            )
        else:
            await self._query(lambda db: db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone())

    async def _in_writer(self, work: Callable[[Writer], T]) -> T:
        done: asyncio.Future[T] = self._loop.create_future()

        def run(writer: Writer) -> None:
            try:
                result = work(writer)
            except Exception as error:
                self._loop.call_soon_threadsafe(_fail, done, error)
            else:
                self._loop.call_soon_threadsafe(_answer, done, result)

        self._inbox.put(run)
        return await done

    async def trim(self, entity: Entity, keep_from: str) -> int:
        self._recent.forget(entity)
        return await self._in_writer(lambda writer: writer.trim(entity, keep_from))

    # -- reading -------------------------------------------------------------------------------

    async def _query(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self.state not in (State.RUNNING, State.STOPPING):
            raise not_running(self.name)

        def run() -> T:
            db = getattr(self._local, "db", None)
            if db is None:
                db = self._local.db = _connect(self.path)
                db.execute("PRAGMA query_only = ON")
                self._connections.append(db)
            return work(db)

        try:
            return await self._loop.run_in_executor(self._readers, run)
        except sqlite3.Error as error:
            raise unavailable(
                "log_read_failed", f"the event log cannot be read: {error}"
            ) from error

    async def read(
        self, entity: Entity, after: str | None = None, *, watch: bool = False
    ) -> AsyncIterator[Event | WillBlock]:
        tail, size = after, FIRST_PAGE
        with self._hub.watch(entity) as changed:
            while True:
                changed.clear()
                page = self._recent.after(entity, tail)
                complete = page is not None
                if page is None:
                    page = await self._query(partial(_page, entity=entity, after=tail, size=size))
                    complete = len(page) < size
                    size = min(PAGE, 4 * size)
                for event in page:
                    yield event
                    tail = event.id
                if not complete or changed.is_set():
                    continue
                if not watch:
                    return
                yield WillBlock(tail)
                await changed.wait()

    async def read_all(self, after_seq: int = 0, *, limit: int = 1000) -> AsyncIterator[Event]:
        newest = self._last_seq
        while after_seq < newest:
            page = await self._query(
                partial(_page_of_all, after=after_seq, upto=newest, limit=limit)
            )
            for event in page:
                yield event
                after_seq = event.seq
            if len(page) < limit:
                return

    async def head(self, entity: Entity) -> Head | None:
        newest = self._recent.newest(entity)
        if newest is not None:
            return Head(newest.id, newest.seq)
        row = await self._query(
            lambda db: db.execute(
                "SELECT head, head_seq FROM entities WHERE kind = ? AND id = ?", entity
            ).fetchone()
        )
        return Head(*row) if row and row[0] is not None else None

    async def last_seq(self) -> int:
        return self._last_seq

    async def entities(self, kind: str, prefix: str = "") -> list[tuple[Entity, Head]]:
        rows = await self._query(
            lambda db: db.execute(
                "SELECT id, head, head_seq FROM entities"
                " WHERE kind = ? AND id >= ? AND id < ? AND head IS NOT NULL",
                (kind, prefix, prefix + "\U0010ffff"),
            ).fetchall()
        )
        return [(Entity(kind, id), Head(head, seq)) for id, head, seq in rows]

    async def signals(self, after_seq: int | None = None) -> AsyncIterator[Signal | Subscribed]:
        with self._hub.subscribe() as subscription:
            start = self._last_seq if after_seq is None else after_seq
            yield Subscribed(start)
            for signal in await self.changed(start):
                yield signal
            while True:
                for signal in await subscription.next():
                    yield signal

    async def changed(self, after_seq: int) -> list[Signal]:
        if after_seq >= self._last_seq:
            return []
        rows = await self._query(
            lambda db: db.execute(
                "SELECT e.kind, e.id, e.head, e.head_seq FROM"
                " (SELECT DISTINCT eid FROM events WHERE seq > ?)"
                " JOIN entities e USING (eid) ORDER BY e.head_seq",
                (after_seq,),
            ).fetchall()
        )
        return [Signal(Entity(kind, id), head, seq) for kind, id, head, seq in rows]

    async def due_timers(self, until: float, *, limit: int = 1000) -> list[DueTimer]:
        rows = await self._query(
            lambda db: db.execute(
                "SELECT e.kind, e.id, t.name, t.due_at FROM timers t JOIN entities e USING (eid)"
                " WHERE t.due_at <= ? ORDER BY t.due_at LIMIT ?",
                (until, limit),
            ).fetchall()
        )
        return [DueTimer(Entity(kind, id), name, due_at) for kind, id, name, due_at in rows]

    async def next_timer(self, after: float | None = None) -> float | None:
        def earliest(db: sqlite3.Connection) -> float | None:
            floor = float("-inf") if after is None else after
            row = db.execute("SELECT min(due_at) FROM timers WHERE due_at > ?", (floor,)).fetchone()
            return row[0]  # type: ignore[no-any-return]

        return await self._query(earliest)

    async def standing(self, activity: str, kind: str) -> AsyncIterator[Sequence[Standing]]:
        def page(db: sqlite3.Connection) -> list[Standing]:
            return db.execute(
                "SELECT e.id, e.head, c.tail, c.state FROM entities e"
                " LEFT JOIN checkpoints c ON c.activity = ? AND c.eid = e.eid"
                " WHERE e.kind = ? AND e.id > ? AND (e.head IS NOT NULL OR c.state IS NOT NULL)"
                " ORDER BY e.id LIMIT ?",
                (activity, kind, last, STANDING_PAGE),
            ).fetchall()

        last = ""
        while True:
            rows = await self._query(page)
            yield rows
            if len(rows) < STANDING_PAGE:
                return
            last = rows[-1][0]

    async def checkpoints(self, activity: str) -> dict[Entity, Checkpoint]:
        rows = await self._query(
            lambda db: db.execute(
                "SELECT e.kind, e.id, c.tail, c.state, c.seq"
                " FROM checkpoints c JOIN entities e USING (eid) WHERE c.activity = ?",
                (activity,),
            ).fetchall()
        )
        return {
            Entity(kind, id): Checkpoint(activity, tail, state, seq)
            for kind, id, tail, state, seq in rows
        }


def _page(db: sqlite3.Connection, entity: Entity, after: str | None, size: int) -> list[Event]:
    """The next page of events of ``entity``; one snapshot, so a whole command or none of it."""
    db.execute("BEGIN")
    try:
        row = db.execute(
            "SELECT eid, trimmed FROM entities WHERE kind = ? AND id = ?", entity
        ).fetchone()
        if row is None:
            if after is not None:
                raise Trimmed(entity, after)
            return []
        eid, trimmed = row
        seq = 0
        if after is not None:
            found = db.execute(
                "SELECT seq FROM events WHERE eid = ? AND id = ?", (eid, after)
            ).fetchone()
            if found is not None:
                (seq,) = found
            elif after != trimmed:
                raise Trimmed(entity, after)
        rows = db.execute(
            "SELECT seq, id, parent, type, data, at FROM events"
            " WHERE eid = ? AND seq > ? ORDER BY seq LIMIT ?",
            (eid, seq, size),
        ).fetchall()
    finally:
        db.execute("COMMIT")
    return [
        Event(seq, entity, id, parent, type_, data, at) for seq, id, parent, type_, data, at in rows
    ]


def _page_of_all(db: sqlite3.Connection, after: int, upto: int, limit: int) -> list[Event]:
    rows = db.execute(
        "SELECT v.seq, e.kind, e.id, v.id, v.parent, v.type, v.data, v.at"
        " FROM events v JOIN entities e USING (eid)"
        " WHERE v.seq > ? AND v.seq <= ? ORDER BY v.seq LIMIT ?",
        (after, upto, limit),
    )
    return [
        Event(seq, Entity(kind, name), id, parent, type_, data, at)
        for seq, kind, name, id, parent, type_, data, at in rows
    ]


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10.0)
    db.execute("PRAGMA wal_autocheckpoint = 0")
    db.execute("PRAGMA cache_size = -16384")
    return db


def _open(path: Path) -> sqlite3.Connection:
    """The writer's connection to a file of this release's schema."""
    db = _connect(path)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        tables = {row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type='table'")}
        if not tables:
            db.execute("BEGIN IMMEDIATE")
            for statement in schema.SQLITE:
                db.execute(statement)
            db.execute("COMMIT")
            return db
        row: Any = None
        if "alembic_version" in tables:
            row = db.execute("SELECT version_num FROM alembic_version").fetchone()
        if row is None or row[0] != schema.REVISION:
            raise LeaseholdError(
                "log_schema_mismatch",
                f"{path} is not at the schema of this release; run: leasehold db migrate",
                kind=Kind.UNAVAILABLE,
                expected=schema.REVISION,
                got=row[0] if row else "no version",
            )
        return db
    except BaseException:
        db.close()
        raise


def lock_file(path: Path) -> int:
    """Hold ``path.lock`` for the life of the process, or say who does."""
    fd = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(fd)
        raise LeaseholdError(
            "log_in_use",
            f"{path} is open in process {holder}; only one process may open a SQLite log. "
            "Ask the running one through its gateway, or stop it first.",
            kind=Kind.CONFLICT,
            got=holder,
        ) from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def unlock_file(fd: int) -> None:
    os.close(fd)


def _cannot_open(path: Path, error: Exception) -> LeaseholdError:
    return LeaseholdError(
        "log_cannot_open",
        f"cannot open the event log {path}: {error}",
        kind=Kind.UNAVAILABLE,
        got=str(path),
    )


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


def _answer(future: asyncio.Future[Any], result: Any) -> None:
    if not future.done():
        future.set_result(result)

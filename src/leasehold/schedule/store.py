"""The rows of the scheduler, in SQLite or PostgreSQL.

To run a task an instance *claims* it: one conditional update that succeeds for one of them, gives
it a lease until a point in time, and raises the task's epoch. Renewing and finishing name the
epoch, so an instance that was paused past its lease can change nothing any more. Disabling a task
is also seen at the next renewal, wherever the task runs.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    and_,
    delete,
    event,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError, not_found
from leasehold.core.service import Service
from leasehold.core.tables import Schema, prepare
from leasehold.model.chain import LatestData

metadata = MetaData()

tasks = Table(
    "schedule_tasks",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("network", Text, nullable=False),
    Column("chain_id", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("task_id", Text, nullable=False),
    Column("interval", Float, nullable=False),  # seconds
    Column("config", Text, nullable=False),  # JSON
    Column("enabled", Boolean, nullable=False),
    Column("status", Text, nullable=False),  # added, running, stopped, finished
    Column("state", Text, nullable=False),  # LatestData as JSON
    Column("failures", Integer, nullable=False),
    Column("due_at", Float, nullable=False),  # seconds UTC
    Column("owner", Text),
    Column("lease_until", Float, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    UniqueConstraint("kind", "version", "network", "chain_id", "task_id"),
    Index("schedule_tasks_due", "enabled", "due_at"),
)

runs = Table(
    "schedule_runs",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("task", String(36), nullable=False),
    Column("at", Float, nullable=False),
    Column("seconds", Float, nullable=False),
    Column("instance", Text, nullable=False),
    Column("height", BigInteger, nullable=False),
    Column("hash", Text, nullable=False),
    Column("retry", Integer, nullable=False),
    Column("error", Text, nullable=False),
    Index("schedule_runs_task", "task", "id"),
)

SCHEMA = Schema("schedule", metadata)
"""What a store prepares; see there how tables change."""

KINDS = ("lastdata", "syncrange")

Name = Annotated[str, Meta(min_length=1, max_length=200)]


class NewTask(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A task to add. ``interval`` is seconds, or text like ``30s``, ``1m30s``, ``500ms``."""

    network: Name
    chain_id: Name
    interval: float | str
    task_id: Name = "default"
    kind: str = "lastdata"
    version: Annotated[str, Meta(max_length=64)] = "0.0.1"
    config: dict[str, str | int] = {}


class ScheduledTask(msgspec.Struct, kw_only=True):
    """A task as it is now. ``due_at`` is seconds UTC."""

    id: str
    network: str
    chain_id: str
    version: str
    kind: str
    task_id: str
    interval: float
    config: dict[str, str | int]
    enabled: bool
    status: str
    state: LatestData
    failures: int
    due_at: float
    owner: str | None
    epoch: int


class Run(msgspec.Struct, kw_only=True):
    """One result."""

    at: float
    seconds: float
    instance: str
    height: int
    hash: str
    retry: int
    error: str


class ScheduleStore(Service):
    """``url`` is an SQLAlchemy URL; several instances may share it."""

    def __init__(self, url: str, clock: Clock | None = None, *, keep_runs: int = 1000) -> None:
        super().__init__("schedule store", clock=clock)
        self.url = url
        self.keep_runs = keep_runs
        self.engine: AsyncEngine

    @classmethod
    def at(cls, path: Path, clock: Clock | None = None, *, keep_runs: int = 1000) -> ScheduleStore:
        """A SQLite file."""
        return cls(f"sqlite+aiosqlite:///{path}", clock, keep_runs=keep_runs)

    async def start(self) -> None:
        self.engine = create_async_engine(self.url)
        self.resources.push_async_callback(self.engine.dispose)
        if self.engine.dialect.name == "sqlite":
            event.listen(self.engine.sync_engine, "connect", _configure_sqlite)
        async with self.engine.begin() as connection:
            await connection.run_sync(prepare, SCHEMA)

    # tasks

    async def add(self, new: NewTask, *, enabled: bool = False) -> ScheduledTask:
        """Add a task; LeaseholdError ``task_exists`` or ``bad_task``. New ones are disabled."""
        row = _checked(new)
        row.update(
            id=str(uuid.uuid4()),
            enabled=enabled,
            status="added",
            state=json.dumps({}),
            failures=0,
            due_at=self.clock.now(),
            owner=None,
            lease_until=0.0,
            epoch=0,
        )
        try:
            async with self.engine.begin() as connection:
                await connection.execute(insert(tasks).values(**row))
        except IntegrityError:
            raise LeaseholdError(
                "task_exists",
                f"there is a {new.kind} task {new.task_id!r} for {new.network}/{new.chain_id}",
                kind=Kind.CONFLICT,
                got=new.task_id,
            ) from None
        return await self.get(row["id"])

    async def all(self) -> list[ScheduledTask]:
        async with self.engine.connect() as connection:
            rows = await connection.execute(
                select(tasks).order_by(tasks.c.network, tasks.c.chain_id, tasks.c.task_id)
            )
            return [_task(row) for row in rows]

    async def get(self, id: str) -> ScheduledTask:
        """A task by its id, or by its ``task_id`` when that is unique."""
        async with self.engine.connect() as connection:
            rows = (
                await connection.execute(
                    select(tasks).where(or_(tasks.c.id == id, tasks.c.task_id == id))
                )
            ).all()
        exact = [row for row in rows if row.id == id] or rows
        if not exact:
            raise not_found("scheduled task", id, hint="leasehold schedule ls shows them.")
        if len(exact) > 1:
            raise LeaseholdError(
                "ambiguous_task",
                f"several tasks are called {id!r}; use the id",
                kind=Kind.CONFLICT,
                expected=", ".join(row.id for row in exact),
            )
        return _task(exact[0])

    async def enable(self, id: str) -> ScheduledTask:
        """Let it run from now on. A finished task stays finished: there is nothing left to do."""
        task = await self.get(id)
        if task.status == "finished":
            raise LeaseholdError(
                "task_finished",
                f"task {task.task_id!r} is finished; add another one",
                kind=Kind.CONFLICT,
            )
        await self._set(task.id, enabled=True, status="added", due_at=self.clock.now())
        return await self.get(task.id)

    async def disable(self, id: str) -> ScheduledTask:
        """Stop it; a call under way is cancelled, wherever it runs."""
        task = await self.get(id)
        changed: dict[str, Any] = {"enabled": False}
        if task.status != "finished":
            changed["status"] = "stopped"
        await self._set(task.id, **changed)
        return await self.get(task.id)

    async def _set(self, id: str, **values: Any) -> None:
        async with self.engine.begin() as connection:
            await connection.execute(update(tasks).where(tasks.c.id == id).values(**values))

    # running

    async def due(self, *, limit: int) -> Sequence[str]:
        """Ids of tasks that somebody should run now, longest due first."""
        now = self.clock.now()
        async with self.engine.connect() as connection:
            rows = await connection.scalars(
                select(tasks.c.id)
                .where(tasks.c.enabled, tasks.c.due_at <= now, tasks.c.lease_until <= now)
                .order_by(tasks.c.due_at)
                .limit(limit)
            )
            return list(rows)

    async def claim(self, id: str, owner: str, lease: float) -> ScheduledTask | None:
        """Take a due task for ``lease`` seconds; None when somebody else was first."""
        now = self.clock.now()
        async with self.engine.begin() as connection:
            taken = await connection.execute(
                update(tasks)
                .where(
                    tasks.c.id == id,
                    tasks.c.enabled,
                    tasks.c.due_at <= now,
                    tasks.c.lease_until <= now,
                )
                .values(
                    owner=owner,
                    lease_until=now + lease,
                    epoch=tasks.c.epoch + 1,
                    status="running",
                )
            )
        return await self.get(id) if taken.rowcount == 1 else None

    async def renew(self, id: str, epoch: int, lease: float) -> bool:
        """Keep a claim; False when it is lost or the task was disabled."""
        async with self.engine.begin() as connection:
            kept = await connection.execute(
                update(tasks)
                .where(tasks.c.id == id, tasks.c.epoch == epoch, tasks.c.enabled)
                .values(lease_until=self.clock.now() + lease)
            )
        return kept.rowcount == 1

    async def finish(
        self,
        task: ScheduledTask,
        *,
        state: LatestData,
        error: str,
        failures: int,
        due_at: float,
        seconds: float,
        done: bool = False,
    ) -> bool:
        """Write a result and give the claim back; False when the claim was lost meanwhile."""
        now = self.clock.now()
        values: dict[str, Any] = {
            "owner": None,
            "lease_until": 0.0,
            "failures": failures,
            "due_at": due_at,
            "state": msgspec.json.encode(state).decode(),
        }
        if done:
            values.update(enabled=False, status="finished")
        async with self.engine.begin() as connection:
            written = await connection.execute(
                update(tasks)
                .where(tasks.c.id == task.id, tasks.c.epoch == task.epoch)
                .values(**values)
            )
            if written.rowcount != 1:
                return False
            await connection.execute(
                insert(runs).values(
                    task=task.id,
                    at=now,
                    seconds=seconds,
                    instance=task.owner or "",
                    height=state.last_height,
                    hash=state.last_hash,
                    retry=state.retry_count,
                    error=error[:1000],
                )
            )
            oldest = (
                select(runs.c.id)
                .where(runs.c.task == task.id)
                .order_by(runs.c.id.desc())
                .offset(self.keep_runs - 1)
                .limit(1)
                .scalar_subquery()
            )
            await connection.execute(
                delete(runs).where(and_(runs.c.task == task.id, runs.c.id < oldest))
            )
        return True

    async def release(self, task: ScheduledTask) -> None:
        """Give a claim back without a result, as when the instance stops."""
        async with self.engine.begin() as connection:
            await connection.execute(
                update(tasks)
                .where(tasks.c.id == task.id, tasks.c.epoch == task.epoch)
                .values(owner=None, lease_until=0.0)
            )

    async def history(self, id: str, *, limit: int = 100, offset: int = 0) -> list[Run]:
        """Results of a task, newest first."""
        task = await self.get(id)
        async with self.engine.connect() as connection:
            rows = await connection.execute(
                select(runs)
                .where(runs.c.task == task.id)
                .order_by(runs.c.id.desc())
                .limit(limit)
                .offset(offset)
            )
            return [
                Run(
                    at=row.at,
                    seconds=row.seconds,
                    instance=row.instance,
                    height=row.height,
                    hash=row.hash,
                    retry=row.retry,
                    error=row.error,
                )
                for row in rows
            ]


def seconds_of(interval: float | str) -> float:
    """``30s``, ``1m30s``, ``500ms``, ``2h`` or a number of seconds; LeaseholdError ``bad_task``."""
    if not isinstance(interval, str):
        value = float(interval)
    else:
        units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
        value, number, rest = 0.0, "", interval
        while rest:
            if rest[0].isdigit() or rest[0] == ".":
                number, rest = number + rest[0], rest[1:]
                continue
            unit = next((u for u in ("ms", "s", "m", "h") if rest.startswith(u)), None)
            if unit is None or number in ("", "."):
                raise _bad_task("interval", "like 30s, 1m30s or 500ms", interval)
            value += float(number) * units[unit]
            number, rest = "", rest[len(unit) :]
        if number:
            raise _bad_task("interval", "a unit: 30s, 1m30s, 500ms", interval)
    if not 0.1 <= value <= 366 * 86400:
        raise _bad_task("interval", "between 100ms and a year", interval)
    return value


def _checked(new: NewTask) -> dict[str, Any]:
    if new.kind not in KINDS:
        raise _bad_task("kind", f"one of {', '.join(KINDS)}", new.kind)
    config = new.config
    if new.kind == "syncrange":
        first, last = heights_of(config)
        config = {"height_from": first, "height_to": last}
    elif config:
        raise _bad_task("config", "nothing for lastdata", config)
    return {
        "network": new.network,
        "chain_id": new.chain_id,
        "version": new.version,
        "kind": new.kind,
        "task_id": new.task_id,
        "interval": seconds_of(new.interval),
        "config": json.dumps(config),
    }


def heights_of(config: dict[str, str | int]) -> tuple[int, int]:
    """``height_from`` and ``height_to``, as numbers or digits; LeaseholdError ``bad_task``."""
    heights = []
    for key in ("height_from", "height_to"):
        value = config.get(key)
        text = str(value)
        if value is None or not text.isascii() or not text.isdigit() or int(text) < 1:
            raise _bad_task(f"config.{key}", "a height of at least 1", value)
        heights.append(int(text))
    if heights[1] < heights[0]:
        raise _bad_task("config.height_to", f"at least {heights[0]}", heights[1])
    return heights[0], heights[1]


def _bad_task(path: str, expected: str, got: object) -> LeaseholdError:
    return LeaseholdError(
        "bad_task", f"{path} must be {expected}", path=path, expected=expected, got=got
    )


def _task(row: Any) -> ScheduledTask:
    return ScheduledTask(
        id=row.id,
        network=row.network,
        chain_id=row.chain_id,
        version=row.version,
        kind=row.kind,
        task_id=row.task_id,
        interval=row.interval,
        config=json.loads(row.config),
        enabled=row.enabled,
        status=row.status,
        state=msgspec.json.decode(row.state, type=LatestData),
        failures=row.failures,
        due_at=row.due_at,
        owner=row.owner,
        epoch=row.epoch,
    )


def _configure_sqlite(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "busy_timeout = 10000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()

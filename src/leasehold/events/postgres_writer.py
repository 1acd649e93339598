"""What the writing connection of the PostgreSQL log does: a batch in one transaction.

The transaction begins with the advisory lock of all writers, so batches of several instances come
one after the other: ``seq`` is the commit order and has no gaps. A batch is a few set-wise
statements, however many appends it holds. Round trips limit the log, so statements without
parameters travel together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import asyncpg

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.events import schema
from leasehold.events.batch import Batch, HeadState, Request, decide
from leasehold.events.event import Checkpoint, Entity, Event, Timer
from leasehold.events.leases import WRITERS_LOCK, epochs, partition_of
from leasehold.events.log import StaleOwner

CHANNEL = "leasehold_events"
"""Where others are told of a batch: ``who before after``, the writer and its sequence numbers."""

STORE = (
    "WITH heads AS ("
    "INSERT INTO entities (eid, kind, id, head, head_seq)"
    " SELECT * FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::bigint[])"
    " ON CONFLICT (eid) DO UPDATE SET head = excluded.head, head_seq = excluded.head_seq)"
    " INSERT INTO events (seq, eid, id, parent, type, data, at) SELECT * FROM"
    " unnest($6::bigint[], $7::bigint[], $8::text[], $9::text[], $10::text[],"
    " $11::bytea[], $12::float8[])"
)


BY_KEY = {"enable_seqscan": "off", "enable_hashjoin": "off", "enable_mergejoin": "off"}
"""Every statement of a writer looks rows up by their keys. Without statistics of a new table the
planner would read all of it for each batch, which gets slower with every event."""


async def connect(url: str) -> asyncpg.Connection[Any]:
    """A connection for :func:`commit`."""
    return await asyncpg.connect(url, server_settings=BY_KEY)


async def commit(
    db: asyncpg.Connection[Any], batch: Sequence[Request], at: float, who: str
) -> tuple[int, int]:
    """Decide and store ``batch``, tell everybody; the newest ``seq`` before and after it."""
    await db.execute(f"BEGIN; SELECT pg_advisory_xact_lock({WRITERS_LOCK})")
    try:
        heads, last_seq, last_eid = await _heads(db, batch)
        known = await _known(db, batch, heads)
        refused = await _fence(db, batch)
        decided = decide(batch, at, heads, known, last_seq, lambda r: refused.get(id(r)))
        await _store(db, decided, heads)
        end = f"UPDATE counters SET last_seq = {decided.last_seq:d}, last_eid = {last_eid:d};"
        if decided.fresh or decided.timers:
            end += f" NOTIFY {CHANNEL}, '{who} {last_seq:d} {decided.last_seq:d}';"
        await db.execute(f"{end} COMMIT")
    except BaseException:
        if not db.is_closed() and db.is_in_transaction():
            await db.execute("ROLLBACK")
        raise
    return last_seq, decided.last_seq


async def trim(db: asyncpg.Connection[Any], entity: Entity, keep_from: str) -> int:
    """See :meth:`leasehold.events.log.Log.trim`."""
    async with db.transaction():
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


async def _fence(
    db: asyncpg.Connection[Any], batch: Sequence[Request]
) -> dict[int, LeaseholdError]:
    """Who may not write any more."""
    if all(request.epoch is None for request in batch):
        return {}
    held = await epochs(db)
    refused: dict[int, LeaseholdError] = {}
    for request in batch:
        if request.epoch is not None:
            current = held.get(partition_of(request.entity), 0)
            if current != request.epoch:
                refused[id(request)] = StaleOwner(request.entity, request.epoch, current)
    return refused


async def _heads(
    db: asyncpg.Connection[Any], batch: Sequence[Request]
) -> tuple[dict[Entity, HeadState], int, int]:
    """Where the batch's entities are; the newest ``seq`` and ``eid``, new entities counted."""
    wanted = list({request.entity for request in batch})
    rows = await db.fetch(
        "SELECT c.last_seq, c.last_eid, e.kind, e.id, e.eid, e.head, e.head_seq FROM counters c"
        " LEFT JOIN (unnest($1::text[], $2::text[]) AS w (kind, id)"
        " JOIN entities e ON e.kind = w.kind AND e.id = w.id) ON true",
        [e.kind for e in wanted],
        [e.id for e in wanted],
    )
    last_seq, last_eid = rows[0][:2]
    heads = {
        Entity(kind, id): HeadState(eid, head, seq, True)
        for _, _, kind, id, eid, head, seq in rows
        if eid is not None
    }
    for entity in wanted:
        if entity not in heads:
            last_eid += 1
            heads[entity] = HeadState(last_eid, None, 0, False)
    return heads, last_seq, last_eid


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
        changed, fresh = decided.changed.items(), decided.fresh
        await db.execute(
            STORE,
            [h.eid for _, h in changed],
            [e.kind for e, _ in changed],
            [e.id for e, _ in changed],
            [h.id for _, h in changed],
            [h.seq for _, h in changed],
            [e.seq for e in fresh],
            [heads[e.entity].eid for e in fresh],
            [e.id for e in fresh],
            [e.parent for e in fresh],
            [e.type for e in fresh],
            [e.data for e in fresh],
            [e.at for e in fresh],
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

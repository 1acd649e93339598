"""The one writer of a SQLite log: a batch of appends becomes one durable transaction.

The appends are decided in memory (see ``batch``); what was accepted is written by a handful of
set-wise statements and made durable by one fsync. When the transaction fails, nothing of it is
known.

Everything here runs in the writer's thread.
"""

from __future__ import annotations

import itertools
import json
import sqlite3
from collections.abc import Sequence
from typing import Any

from leasehold.core.errors import Kind, LeaseholdError, unavailable
from leasehold.events.batch import HeadState, Request, decide
from leasehold.events.event import Checkpoint, Entity, Event, Timer

CACHED_HEADS = 200_000
"""Heads kept in memory, about 300 bytes each; others are read when needed."""


Statement = tuple[str, tuple[Any, ...]]


class Writer:
    """Decides and writes batches on one connection."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self.db = db
        self._heads: dict[Entity, HeadState] = {}
        self._reload()

    def _reload(self) -> None:
        self._heads.clear()
        (self.last_seq,) = self.db.execute("SELECT coalesce(max(seq), 0) FROM events").fetchone()
        (self._last_eid,) = self.db.execute("SELECT coalesce(max(eid), 0) FROM entities").fetchone()

    def commit(self, batch: Sequence[Request], at: float) -> None:
        """Fill in ``result`` or ``error`` of every request; durable when this returns."""
        try:
            self.db.execute("BEGIN IMMEDIATE")
            try:
                self._write(batch, at)
                self.db.execute("COMMIT")
            except BaseException:
                if self.db.in_transaction:
                    self.db.execute("ROLLBACK")
                raise
        except Exception as error:
            self._reload()
            for request in batch:
                request.refuse(None)
            if len(batch) > 1 and not isinstance(error, sqlite3.OperationalError):
                # One of them cannot be stored; the others shall not suffer for it.
                for request in batch:
                    self.commit([request], at)
                return
            for request in batch:
                request.refuse(_refusal(error))

    def _write(self, batch: Sequence[Request], at: float) -> None:
        self._load_heads({request.entity for request in batch})
        known = self._known(batch)
        decided = decide(batch, at, self._heads, known, self.last_seq)
        self.last_seq = decided.last_seq
        changed, fresh = decided.changed, decided.fresh
        side = [_timer(head.eid, timer) for head, timer in decided.timers]
        side += [_checkpoint(head.eid, checkpoint) for head, checkpoint in decided.checkpoints]
        if changed:
            self.db.executemany(
                "INSERT INTO entities (eid, kind, id, head, head_seq) VALUES (?, ?, ?, ?, ?)"
                " ON CONFLICT (eid) DO UPDATE"
                " SET head = excluded.head, head_seq = excluded.head_seq",
                [(h.eid, e.kind, e.id, h.id, h.seq) for e, h in changed.items()],
            )
            for head in changed.values():
                head.stored = True
        if fresh:
            self.db.executemany(
                "INSERT INTO events (seq, eid, id, parent, type, data, at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                [
                    (e.seq, self._heads[e.entity].eid, e.id, e.parent, e.type, e.data, e.at)
                    for e in fresh
                ],
            )
        # Order matters among statements on one timer, so only neighbours are joined.
        for sql, group in itertools.groupby(side, key=lambda statement: statement[0]):
            self.db.executemany(sql, [values for _, values in group])

    def _load_heads(self, entities: set[Entity]) -> None:
        missing = entities.difference(self._heads)
        if len(self._heads) + len(missing) > CACHED_HEADS:
            for entity in list(itertools.islice(self._heads, len(self._heads) // 4)):
                if entity not in entities:
                    del self._heads[entity]
        if not missing:
            return
        rows = self.db.execute(
            "SELECT e.kind, e.id, e.eid, e.head, e.head_seq FROM json_each(?) AS wanted"
            " CROSS JOIN entities AS e"
            " ON e.kind = wanted.value ->> 0 AND e.id = wanted.value ->> 1",
            (json.dumps(list(missing)),),
        )
        for kind, id, eid, head, seq in rows:
            self._heads[Entity(kind, id)] = HeadState(eid, head, seq, True)
        for entity in missing:
            if entity not in self._heads:
                self._last_eid += 1
                self._heads[entity] = HeadState(self._last_eid, None, 0, False)

    def _known(self, batch: Sequence[Request]) -> dict[tuple[Entity, str], Event]:
        """Those of the batch's events that are in the log already."""
        wanted = {}
        for request in batch:
            head = self._heads[request.entity]
            if head.id is not None:
                for event in request.events:
                    wanted[head.eid, event.id] = request.entity
        if not wanted:
            return {}
        rows = self.db.execute(
            "SELECT e.seq, e.eid, e.id, e.parent, e.type, e.data, e.at"
            " FROM json_each(?) AS wanted CROSS JOIN events AS e"
            " ON e.eid = wanted.value ->> 0 AND e.id = wanted.value ->> 1",
            (json.dumps(list(wanted)),),
        )
        return {
            (wanted[eid, id], id): Event(seq, wanted[eid, id], id, parent, type_, data, at)
            for seq, eid, id, parent, type_, data, at in rows
        }

    def trim(self, entity: Entity, keep_from: str) -> int:
        """Delete the events of ``entity`` before ``keep_from``; 0 when that one is not there."""
        with self.db:
            self.db.execute("BEGIN IMMEDIATE")
            row = self.db.execute(
                "SELECT v.eid, v.seq, v.parent FROM entities e JOIN events v ON v.eid = e.eid"
                " WHERE e.kind = ? AND e.id = ? AND v.id = ?",
                (*entity, keep_from),
            ).fetchone()
            if row is None:
                return 0
            eid, seq, parent = row
            count = self.db.execute(
                "DELETE FROM events WHERE eid = ? AND seq < ?", (eid, seq)
            ).rowcount
            if count:
                self.db.execute("UPDATE entities SET trimmed = ? WHERE eid = ?", (parent, eid))
            return count


def _refusal(error: Exception) -> LeaseholdError:
    if isinstance(error, sqlite3.Error):
        return unavailable("log_write_failed", f"the event log cannot be written: {error}")
    return LeaseholdError(
        "append_unstorable", f"the event log cannot store this append: {error}", kind=Kind.INVALID
    )


def _timer(eid: int, timer: Timer) -> Statement:
    if timer.due_at is None and timer.was is None:
        return "DELETE FROM timers WHERE eid = ? AND name = ?", (eid, timer.name)
    if timer.due_at is None:
        return (
            "DELETE FROM timers WHERE eid = ? AND name = ? AND due_at = ?",
            (eid, timer.name, timer.was),
        )
    if timer.was is not None:
        return (
            "UPDATE timers SET due_at = ? WHERE eid = ? AND name = ? AND due_at = ?",
            (timer.due_at, eid, timer.name, timer.was),
        )
    return (
        "INSERT INTO timers (eid, name, due_at) VALUES (?, ?, ?)"
        " ON CONFLICT (eid, name) DO UPDATE SET due_at = excluded.due_at",
        (eid, timer.name, timer.due_at),
    )


def _checkpoint(eid: int, checkpoint: Checkpoint) -> Statement:
    if checkpoint.state is None:
        return (
            "DELETE FROM checkpoints WHERE activity = ? AND eid = ?",
            (checkpoint.activity, eid),
        )
    return (
        "INSERT INTO checkpoints (activity, eid, tail, seq, state) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (activity, eid) DO UPDATE"
        " SET tail = excluded.tail, seq = excluded.seq, state = excluded.state",
        (checkpoint.activity, eid, checkpoint.tail, checkpoint.seq, checkpoint.state),
    )

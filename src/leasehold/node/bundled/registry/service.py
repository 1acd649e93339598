"""The service ``registry``: who offers what, found by name.

A *resource* is a label of an owner (``managers``, ``mirrors``, ``service/search``); a *record* says
that a peer serves it at a value (an address). Records expire; those of this node are renewed by the
spell, and copied between nodes. Of two records for the same resource and peer the newer counts.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from typing import Any

from leasehold.node.sdk import Refused, Service

MAX_RECORDS = 100_000
MAX_LABEL = 256
MAX_VALUE = 4096
MAX_MERGE = 10_000
"""Records taken from a neighbour at once."""
MAX_TTL = 7 * 86400
DEFAULT_TTL = 86400
SKEW = 300
"""Seconds a copied record may be from the future."""

service = Service()
db = sqlite3.connect(os.path.join(service.data, "registry.db"), isolation_level=None)
db.executescript(
    """
    PRAGMA journal_mode=WAL;
    PRAGMA synchronous=FULL;
    CREATE TABLE IF NOT EXISTS resource (id TEXT PRIMARY KEY, label TEXT NOT NULL,
        owner TEXT NOT NULL, created_at INTEGER NOT NULL);
    CREATE INDEX IF NOT EXISTS resource_label ON resource (label);
    CREATE TABLE IF NOT EXISTS record (resource TEXT NOT NULL, peer TEXT NOT NULL,
        value TEXT NOT NULL, weight INTEGER NOT NULL, issued_at INTEGER NOT NULL,
        expires_at INTEGER NOT NULL, own INTEGER NOT NULL, PRIMARY KEY (resource, peer));
    CREATE INDEX IF NOT EXISTS record_expires ON record (expires_at);
    """
)


def resource_id(label: str, owner: str) -> str:
    """The id of a label of an owner: the same everywhere."""
    return hashlib.sha256(f"{owner}\0{label}".encode()).hexdigest()


@service.function
def create_resource(label: str, owner: str = "") -> dict[str, Any]:
    """The resource ``label`` of ``owner`` (default: the caller), made when it is not there."""
    if not label or len(label) > MAX_LABEL:
        raise Refused(f"a label has 1 to {MAX_LABEL} characters")
    owner = owner or service.context.caller
    id = resource_id(label, owner)
    row = (id, label, owner, int(time.time()))
    db.execute("INSERT OR IGNORE INTO resource VALUES (?, ?, ?, ?)", row)
    return {"resource_id": id}


@service.function
def put_record(
    resource: str, value: str, peer: str = "", weight: int = 0, ttl_sec: int = DEFAULT_TTL
) -> dict[str, Any]:
    """Say that ``peer`` (default: the caller) serves ``resource`` at ``value`` for a while."""
    if db.execute("SELECT 1 FROM resource WHERE id = ?", (resource,)).fetchone() is None:
        raise Refused(f"there is no resource {resource}")
    if len(value) > MAX_VALUE:
        raise Refused(f"a value has at most {MAX_VALUE} characters")
    if not 1 <= int(ttl_sec) <= MAX_TTL:
        raise Refused(f"ttl_sec is 1 to {MAX_TTL}")
    now = int(time.time())
    peer = peer or service.context.caller
    own = 1 if peer in (service.context.host, service.context.owner) else 0
    _room()
    row = (resource, peer, value, int(weight), now, now + int(ttl_sec), own)
    db.execute("INSERT OR REPLACE INTO record VALUES (?, ?, ?, ?, ?, ?, ?)", row)
    return {"expires_at": now + int(ttl_sec)}


@service.function
def remove_record(resource: str, peer: str = "") -> None:
    """Take a record back."""
    key = (resource, peer or service.context.caller)
    db.execute("DELETE FROM record WHERE resource = ? AND peer = ?", key)


@service.function
def find(label: str, owner: str = "", limit: int = 100) -> dict[str, Any]:
    """Who serves ``label``: valid records, heaviest first."""
    rows = db.execute(
        "SELECT r.peer, r.value, r.weight, r.expires_at, s.owner FROM record r "
        "JOIN resource s ON s.id = r.resource WHERE s.label = ? AND (? = '' OR s.owner = ?) "
        "AND r.expires_at > ? ORDER BY r.weight DESC, r.issued_at DESC LIMIT ?",
        (label, owner, owner, int(time.time()), int(limit)),
    )
    names = ("peer", "value", "weight", "expires_at", "owner")
    return {"records": [dict(zip(names, row, strict=True)) for row in rows]}


@service.function
def expire(now_sec: int) -> dict[str, Any]:
    """Remove records that are over, and resources without records older than a day."""
    gone = db.execute("DELETE FROM record WHERE expires_at <= ?", (int(now_sec),)).rowcount
    db.execute(
        "DELETE FROM resource WHERE created_at < ? AND id NOT IN (SELECT resource FROM record)",
        (int(now_sec) - 86400,),
    )
    return {"removed": gone}


@service.function
def renew(now_sec: int, ttl_sec: int = DEFAULT_TTL) -> dict[str, Any]:
    """Issue the records of this node again."""
    now = int(now_sec)
    renewed = db.execute(
        "UPDATE record SET issued_at = ?, expires_at = ? WHERE own = 1 AND expires_at > ?",
        (now, now + int(ttl_sec), now),
    ).rowcount
    return {"renewed": renewed}


@service.function
def snapshot(now_sec: int, limit: int = MAX_MERGE) -> dict[str, Any]:
    """Valid records with their resources, newest first, for another node to merge."""
    rows = db.execute(
        "SELECT s.label, s.owner, r.peer, r.value, r.issued_at, r.expires_at FROM record r "
        "JOIN resource s ON s.id = r.resource WHERE r.expires_at > ? "
        "ORDER BY r.issued_at DESC LIMIT ?",
        (int(now_sec), min(int(limit), MAX_MERGE)),
    )
    names = ("label", "owner", "peer", "value", "issued_at", "expires_at")
    return {"records": [dict(zip(names, row, strict=True)) for row in rows]}


@service.function
def merge(records: list[dict[str, Any]], now_sec: int, weight: int = 0) -> dict[str, Any]:
    """Take over a neighbour's records that are newer than ours; malformed ones are counted."""
    if service.context.caller not in (service.context.owner, service.context.host):
        raise Refused("only the host merges records")
    now, taken, refused = int(now_sec), 0, 0
    db.execute("BEGIN")
    for record in records[:MAX_MERGE]:
        try:
            label, owner, peer = (str(record[k]) for k in ("label", "owner", "peer"))
            value = str(record["value"])
            issued, expires = int(record["issued_at"]), int(record["expires_at"])
        except (KeyError, TypeError, ValueError):
            refused += 1
            continue
        if (
            not 0 < len(label) <= MAX_LABEL
            or len(value) > MAX_VALUE
            or not now < expires <= issued + MAX_TTL
            or issued > now + SKEW
        ):
            refused += 1
            continue
        id = resource_id(label, owner)
        db.execute("INSERT OR IGNORE INTO resource VALUES (?, ?, ?, ?)", (id, label, owner, now))
        _room()
        taken += db.execute(
            "INSERT INTO record VALUES (?, ?, ?, ?, ?, ?, 0) ON CONFLICT (resource, peer) DO "
            "UPDATE SET value = excluded.value, weight = excluded.weight, "
            "issued_at = excluded.issued_at, expires_at = excluded.expires_at "
            "WHERE excluded.issued_at > record.issued_at AND record.own = 0",
            (id, peer, value, int(weight), issued, expires),
        ).rowcount
    db.execute("COMMIT")
    return {"taken": taken, "refused": refused}


def _room() -> None:
    """When the table is full the record that expires first yields."""
    (count,) = db.execute("SELECT count(*) FROM record").fetchone()
    if count >= MAX_RECORDS:
        db.execute(
            "DELETE FROM record WHERE rowid = (SELECT rowid FROM record WHERE own = 0 "
            "ORDER BY expires_at LIMIT 1)"
        )


if __name__ == "__main__":
    service.serve()

"""The rows that say which instance answers for which partition, in PostgreSQL.

A row is a lease: owner, epoch, and when it ends by the server's clock. Each change of hands has a
new epoch, so whoever held the partition before is refused by its number, however late it wakes up.
Claims take the writers' lock: once a partition has a new epoch, no append with the old one can
still be on its way into the log.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import asyncpg

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.events.event import Entity

PARTITIONS = 64

WRITERS_LOCK = 0x6C65617365686F6C
"""Key of the advisory lock of all writers ("leasehol")."""


def partition_of(entity: Entity) -> int:
    """The same on every instance and release."""
    return zlib.crc32(str(entity).encode()) % PARTITIONS


async def epochs(db: asyncpg.Connection[Any]) -> dict[int, int]:
    """The epoch of each partition; one that nobody ever had is missing."""
    return {row[0]: row[1] for row in await db.fetch("SELECT partition, epoch FROM partitions")}


async def claim(
    db: asyncpg.Connection[Any],
    instance: str,
    ttl: float,
    held: Mapping[int, int],
    *,
    all_of_them: bool = False,
) -> dict[int, int]:
    """Renew ``instance`` for ``ttl`` seconds and share the partitions out again.

    ``held`` are the epochs it believes to have; a row of its own name with another epoch is not
    its (an earlier process, or a second one of that name), and gets a new epoch. Takes what nobody
    holds, up to a fair share, and gives back what is more than that; or with ``all_of_them``
    everything, refusing with ``log_in_use`` while another instance is alive. Returns its
    partitions with their epochs.
    """
    async with db.transaction():
        await db.execute("SELECT pg_advisory_xact_lock($1)", WRITERS_LOCK)
        now = await db.fetchval("SELECT extract(epoch FROM clock_timestamp())::float8")
        await db.execute("DELETE FROM instances WHERE expires_at < $1", now)
        others = await db.fetch("SELECT id, expires_at FROM instances WHERE id <> $1", instance)
        if others and all_of_them:
            raise _in_use(others[0][0], others[0][1] - now)
        rows = await db.fetch("SELECT partition, owner, epoch, expires_at FROM partitions")
        mine = {r[0]: r[2] for r in rows if r[1] == instance and r[3] >= now}
        if all_of_them and held and any(mine.get(p, e) > e for p, e in held.items()):
            raise _in_use(f"another process named {instance}", ttl)
        await db.execute(
            "INSERT INTO instances VALUES ($1, $2)"
            " ON CONFLICT (id) DO UPDATE SET expires_at = excluded.expires_at",
            instance,
            now + ttl,
        )
        taken = {r[0] for r in rows if r[1] and r[1] != instance and r[3] >= now}
        last = {r[0]: r[2] for r in rows}
        fair = PARTITIONS if all_of_them else -(-PARTITIONS // (len(others) + 1))
        kept = {p: e if held.get(p) == e else e + 1 for p, e in mine.items()}
        for extra in sorted(kept)[fair:]:
            del kept[extra]
            await db.execute("UPDATE partitions SET owner = '' WHERE partition = $1", extra)
        free = [p for p in range(PARTITIONS) if p not in kept and p not in taken]
        for partition in free[: max(0, fair - len(kept))]:
            kept[partition] = last.get(partition, 0) + 1
        await db.executemany(
            "INSERT INTO partitions VALUES ($1, $2, $3, $4) ON CONFLICT (partition) DO UPDATE"
            " SET owner = excluded.owner, epoch = excluded.epoch,"
            " expires_at = excluded.expires_at",
            [(p, instance, epoch, now + ttl) for p, epoch in kept.items()],
        )
        return kept


async def leave(db: asyncpg.Connection[Any], instance: str) -> None:
    """Give everything back at once, so that nobody has to wait for the lease to end."""
    async with db.transaction():
        await db.execute("SELECT pg_advisory_xact_lock($1)", WRITERS_LOCK)
        await db.execute("UPDATE partitions SET owner = '' WHERE owner = $1", instance)
        await db.execute("DELETE FROM instances WHERE id = $1", instance)


def _in_use(who: str, seconds: float) -> LeaseholdError:
    return LeaseholdError(
        "log_in_use",
        f"another instance ({who}) answers for this event log; stop it, or wait until its claim "
        "has ended",
        kind=Kind.CONFLICT,
        got=who,
        retry_after=max(0.1, round(seconds, 1)),
    )

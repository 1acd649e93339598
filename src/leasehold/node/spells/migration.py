"""Bringing the state of a spell to a new schema, on a copy, with the original kept."""

from __future__ import annotations

import shutil
from typing import Any

from leasehold.core.errors import LeaseholdError
from leasehold.core.logs import get_logger
from leasehold.node.distro import SpellDistro
from leasehold.node.spells.files import SpellFiles
from leasehold.node.spells.functions import store_function
from leasehold.node.spells.pool import Pool
from leasehold.node.spells.store import SpellMeta, SpellStore

KEPT_BACKUPS = 3
MIGRATION_TTL = 60.0
"""Seconds a migration may take."""

log = get_logger(__name__)


async def migrate(
    files: SpellFiles,
    pool: Pool,
    spell: str,
    distro: SpellDistro,
    old: SpellMeta,
    meta: SpellMeta,
    now: float,
) -> None:
    """Change the state on a copy and put the copy in place; the original stays as a backup."""
    directory = files.directory(spell)
    backup = directory / f"backup-schema-{old.schema}-{int(now)}.db"
    await files.use(spell, lambda store: store.backup(backup))
    copy = directory / "migrating.db"
    for leftover in directory.glob("migrating.db*"):
        leftover.unlink()
    shutil.copyfile(backup, copy)
    store = SpellStore(copy)
    try:
        store.write(meta, distro.kv)
        if distro.migration:
            await _run(pool, spell, distro, old.schema, store)
        else:
            store.clear_state()
            log.warning("spell.state_set_aside", spell=distro.name, backup=str(backup))
    finally:
        store.close()
    files.forget(spell)
    for suffix in ("-wal", "-shm"):
        (directory / f"spell.db{suffix}").unlink(missing_ok=True)
    copy.rename(directory / "spell.db")
    backups = sorted(directory.glob("backup-*.db"), key=lambda path: path.stat().st_mtime)
    for path in backups[:-KEPT_BACKUPS]:
        path.unlink()


async def _run(pool: Pool, spell: str, distro: SpellDistro, old: int, store: SpellStore) -> None:
    async def answer(what: str, args: list[Any]) -> Any:
        if what == "kv":
            return store_function(store, "spell", str(args[0]), args[1:])
        raise LeaseholdError("not_in_migration", f"a migration cannot {what}")

    job = {
        "name": f"{distro.name} migration",
        "script": distro.migration,
        "names": {"from_schema": old, "to_schema": distro.schema, "spell_id": spell},
    }
    outcome = await pool.run(job, answer, ttl=MIGRATION_TTL)
    if outcome.outcome != "ok":
        raise LeaseholdError(
            "migration_failed",
            f"{distro.name}: the state could not be brought from schema {old} to "
            f"{distro.schema}: {outcome.errors[0][1] if outcome.errors else outcome.outcome}",
            path=distro.name,
        )

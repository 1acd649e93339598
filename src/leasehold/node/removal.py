"""Removing instances, for good and without leaving anything: what a crash left included."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from leasehold.core.errors import LeaseholdError
from leasehold.core.logs import get_logger
from leasehold.node.journal import Change, Drop, DropAlias, Instance, Journal, Put
from leasehold.node.services import Services
from leasehold.node.spells.engine import SpellEngine

Step = Callable[[str, str], None]
"""Called with a package and an act, before the act."""

log = get_logger(__name__)


class Remover:
    """Instances by their rows, and whatever has no row."""

    def __init__(
        self, journal: Journal, services: Services, spells: SpellEngine, on_step: Step
    ) -> None:
        self.journal = journal
        self.services = services
        self.spells = spells
        self.on_step = on_step

    async def drop(self, package: str, candidates: list[Instance]) -> None:
        for instance in candidates:
            self.on_step(package, f"roll back {instance.name}")
            await self._remove(instance)

    async def retire(self, package: str) -> None:
        for instance in list(self.journal.instances.values()):
            if instance.package == package and instance.state == "retiring":
                self.on_step(package, f"retire {instance.name}")
                await self._remove(instance)

    async def _remove(self, instance: Instance) -> bool:
        """Remove what there is of ``instance``, then its row. What cannot be removed now keeps its
        row as retiring, holds no alias, and is tried again at the next deploy."""
        try:
            if instance.is_spell:
                await self.spells.remove(instance.id)
            else:
                await self.services.drain(instance)
                await self.services.remove(instance)
        except (LeaseholdError, OSError) as error:
            log.error("instance.not_removed", name=instance.name, id=instance.id, error=str(error))
            changes: list[Change] = [DropAlias(*a) for a in self.journal.aliases_of(instance.id)]
            await self.journal.commit(
                Put(msgspec.structs.replace(instance, state="retiring")), *changes
            )
            return False
        await self.journal.commit(Drop("instance", instance.id))
        return True

    async def remove(self, instance: Instance) -> bool:
        """Remove an instance for good; returns False when that could not be finished now."""
        changes: list[Change] = [DropAlias(*a) for a in self.journal.aliases_of(instance.id)]
        retiring = msgspec.structs.replace(instance, state="retiring")
        await self.journal.commit(Put(retiring), *changes)
        return await self._remove(retiring)

    async def recover(self) -> None:
        """Finish or undo what a crash left half done, and remove what nobody knows."""
        for instance in list(self.journal.instances.values()):
            if instance.state in ("candidate", "retiring"):
                self.on_step(instance.package, f"clean up {instance.name}")
                await self._remove(instance)
        known = set(self.journal.instances)
        await self.services.refresh()
        for id in self.services.process_ids() - known:
            self.on_step("", f"end stranger {id}")
            log.warning("orphan.process", id=id)
            await self.services.halt_stranger(id)
        for id in self.services.on_disk() - known:
            self.on_step("", f"delete {id}")
            stranger = Instance(id, "process", id, "", "", "", "", "")
            await self.services.remove(stranger)
        for id in self.spells.on_disk() - known:
            self.on_step("", f"delete {id}")
            await self.spells.remove(id)
        for (scope, alias), id in list(self.journal.aliases.items()):
            if id not in known:
                await self.journal.commit(DropAlias(scope, alias))

    async def prune(self, wanted: set[str]) -> None:
        """Handle packages that are no longer wanted, each by its own policy."""
        for row in list(self.journal.packages.values()):
            if row.name in wanted or row.status == "disabled":
                continue
            self.on_step(row.name, f"prune ({row.on_disable})")
            log.info("package.pruned", package=row.name, policy=row.on_disable)
            mine = [i for i in self.journal.instances.values() if i.package == row.name]
            if row.on_disable == "remove":
                gone = [await self.remove(instance) for instance in mine]
                if all(gone):
                    await self.services.remove_data(row.name)
                    await self.journal.commit(Drop("package", row.name))
                continue
            if row.on_disable == "stop":
                for instance in mine:
                    if instance.is_spell:
                        self.spells.unsubscribe(instance.id)
                    else:
                        await self.services.halt(instance)
                    await self.journal.commit(
                        Put(msgspec.structs.replace(instance, state="stopped"))
                    )
            await self.journal.commit(Put(msgspec.structs.replace(row, status="disabled")))
        used = {i.code for i in self.journal.instances.values() if not i.is_spell}
        await asyncio.to_thread(self.services.prune_blueprints, used)

"""Installing one package: start candidates, initialise, switch, settle. See ``deployer``."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec

from leasehold.core import ids
from leasehold.core.clock import Clock
from leasehold.core.errors import LeaseholdError
from leasehold.core.logs import get_logger
from leasehold.node import blueprint, distro, rpc
from leasehold.node.distro import Created, Existing, PackageDistro, Report
from leasehold.node.instances import Instances
from leasehold.node.journal import (
    ROOT_SCOPE,
    Change,
    DropAlias,
    Instance,
    PackageRow,
    Put,
    PutAlias,
)
from leasehold.node.removal import Remover
from leasehold.node.settings import NodeSettings

RUN_PREFIX = "system-services-deployment"
"""Run ids of calls made while deploying start with this, then a number of their own."""

log = get_logger(__name__)


class Result(msgspec.Struct):
    """What a deploy did with one package.

    ``status``: unchanged, ready, degraded (works, with warnings or in its old version), failed,
    blocked (waits for a package that failed), held (would be a downgrade).
    """

    package: str
    status: str
    changes: list[str] = []
    warnings: list[str] = []
    message: str = ""
    seconds: float = 0.0


class Action(msgspec.Struct, frozen=True):
    """One planned change, for a dry run."""

    package: str
    what: str
    name: str


class Installer:
    """Compares packages with what is installed, and makes one what it should be."""

    def __init__(
        self, instances: Instances, remover: Remover, *, clock: Clock, settings: NodeSettings
    ) -> None:
        self.instances = instances
        self.remover = remover
        self.journal = remover.journal
        self.services = remover.services
        self.spells = remover.spells
        self.on_step = remover.on_step
        self.clock = clock
        self.settings = settings

    def plan(self, package: PackageDistro) -> list[Action]:
        """What :meth:`install` would do."""
        actions: list[Action] = []
        have = self._installed(package.name)
        for service in package.services:
            what = self._decide_service(package, service, have.get(service.name))
            if what != "keep":
                actions.append(Action(package.name, what, service.name))
        for spell in package.spells:
            old = have.get(spell.name)
            if old is None:
                actions.append(Action(package.name, "create", spell.name))
            elif not self._is_same_spell(spell, old):
                actions.append(Action(package.name, "update", spell.name))
        gone = set(have) - set(package.names)
        return [*actions, *(Action(package.name, "remove", name) for name in gone)]

    def _installed(self, package: str) -> dict[str, Instance]:
        """The instances of ``package`` that hold, or held before a stop, its names."""
        return {
            instance.name: instance
            for instance in self.journal.instances.values()
            if instance.package == package
            and instance.scope == ROOT_SCOPE
            and instance.state in ("live", "stopped")
        }

    def _decide_service(
        self, package: PackageDistro, service: distro.ServiceDistro, old: Instance | None
    ) -> str:
        """create, replace, note (remember the new configuration), start, or keep."""
        if old is None:
            return "create"
        if old.kind != service.kind or old.code != blueprint.service_code(service):
            return "replace"
        if old.blueprint != blueprint.service_blueprint(package, service):
            return "replace" if package.on_config_change == "reinstall" else "note"
        if self.journal.aliases.get((ROOT_SCOPE, old.name)) != old.id:
            return "realias"
        state = self.services.state_of(old)
        if old.state == "stopped" or state in ("absent", "exited", "failed", "stopping"):
            return "start"
        return "keep"

    async def install(self, package: PackageDistro) -> Result:
        """Raises, with the old version serving, when the new one cannot take its place."""
        row = self.journal.packages.get(package.name)
        if (
            row is not None
            and not self.settings.allow_downgrade
            and distro.older(package.version, row.version)
        ):
            message = (
                f"version {package.version} is older than the installed {row.version}; "
                "set node.allow_downgrade to install it"
            )
            log.warning("package.held", package=package.name, message=message)
            return Result(package.name, "held", message=message)
        have = self._installed(package.name)
        plan = {
            s.name: self._decide_service(package, s, have.get(s.name)) for s in package.services
        }
        fingerprint = blueprint.fingerprint(package)
        if (
            row is not None
            and row.fingerprint == fingerprint
            and row.status in ("ready", "degraded")
            and not (row.status == "degraded" and row.message)
            and all(what == "keep" for what in plan.values())
            and all(self._is_same_spell(spell, have.get(spell.name)) for spell in package.spells)
            and set(have) == set(package.names)
        ):
            return Result(package.name, "unchanged", warnings=list(row.warnings))
        candidates: list[Instance] = []
        result = Result(package.name, "ready")
        try:
            report, switch = await self._prepare(package, plan, have, candidates, result)
            await self._initialise(package, row, plan, report, result)
        except BaseException:
            await self.remover.drop(package.name, candidates)
            raise
        await self._switch(package, have, switch, result)
        await self._settle_spells(package, result)
        await self.remover.retire(package.name)
        if result.warnings:
            result.status = "degraded"
        self.on_step(package.name, "record")
        await self.journal.commit(
            Put(
                PackageRow(
                    package.name,
                    package.version,
                    fingerprint,
                    result.status,
                    message=result.message,
                    warnings=tuple(result.warnings),
                    initialised=blueprint.init_key(package),
                    on_disable=package.on_disable,
                    source=package.source,
                    at=self.clock.now(),
                )
            )
        )
        return result

    def _is_same_spell(self, spell: distro.SpellDistro, old: Instance | None) -> bool:
        """Whether ``old`` is what ``spell`` says: installed, in its file, armed and named."""
        if old is None or old.state != "live" or not old.is_spell:
            return False
        code = blueprint.spell_code(spell)
        return (
            old.code == code
            and self.spells.known_code(old.id) == code
            and self.journal.aliases.get((ROOT_SCOPE, spell.name)) == old.id
        )

    async def _prepare(
        self,
        package: PackageDistro,
        plan: Mapping[str, str],
        have: Mapping[str, Instance],
        candidates: list[Instance],
        result: Result,
    ) -> tuple[Report, list[Change]]:
        """Start candidates; returns the report and what the switch is to commit."""
        report: Report = {}
        switch: list[Change] = []
        for service in package.services:
            what, old = plan[service.name], have.get(service.name)
            if what in ("create", "replace"):
                new = await self._start_candidate(package, service, candidates)
                report[service.name] = Created(new.id)
                switch += [
                    Put(msgspec.structs.replace(new, state="live")),
                    PutAlias(ROOT_SCOPE, new.name, new.id),
                ]
                if old is not None:
                    switch.append(Put(msgspec.structs.replace(old, state="retiring")))
                result.changes.append(f"{what}d {service.name}")
                continue
            assert old is not None
            report[service.name] = Existing(old.id)
            if what == "start":
                self.on_step(package.name, f"start {service.name}")
                if self.services.state_of(old) in ("exited", "failed"):
                    await self.services.restart(old)
                else:
                    await self.services.launch(old)
                await self.services.wait_ready(old)
                result.changes.append(f"started {service.name}")
            if what != "keep":
                fresh = blueprint.service_blueprint(package, service)
                spec = self.services.spec(package, service)
                kept = msgspec.structs.replace(
                    old, state="live", blueprint=fresh, spec=spec, version=package.version
                )
                switch += [Put(kept), PutAlias(ROOT_SCOPE, old.name, old.id)]
        for spell in package.spells:
            old = have.get(spell.name)
            if old is not None and old.is_spell:
                report[spell.name] = Existing(old.id)
                if self.journal.aliases.get((ROOT_SCOPE, spell.name)) != old.id:
                    switch.append(PutAlias(ROOT_SCOPE, spell.name, old.id))
                continue
            new = await self._install_spell(package, spell, candidates)
            report[spell.name] = Created(new.id)
            switch += [
                Put(msgspec.structs.replace(new, state="live")),
                PutAlias(ROOT_SCOPE, new.name, new.id),
            ]
            if old is not None:
                switch.append(Put(msgspec.structs.replace(old, state="retiring")))
            result.changes.append(f"created {spell.name}")
        return report, switch

    def _new(self, package: PackageDistro, name: str, **fields: Any) -> Instance:
        now = self.clock.now()
        return Instance(
            id=ids.new(now).lower(),
            name=name,
            package=package.name,
            version=package.version,
            owner=self.instances.principals.host,
            created_at=now,
            **fields,
        )

    async def _start_candidate(
        self, package: PackageDistro, service: distro.ServiceDistro, candidates: list[Instance]
    ) -> Instance:
        code = blueprint.service_code(service)
        new = self._new(
            package,
            service.name,
            kind=service.kind,
            blueprint=blueprint.service_blueprint(package, service),
            code=code,
            spec=self.services.spec(package, service),
        )
        self.on_step(package.name, f"write {service.name}")
        await self.journal.commit(Put(new))
        candidates.append(new)
        self.on_step(package.name, f"unpack {service.name}")
        await asyncio.to_thread(self.services.write_blueprint, code, service.artifacts)
        self.on_step(package.name, f"launch {service.name}")
        await self.services.launch(new)
        self.on_step(package.name, f"wait for {service.name}")
        await self.services.wait_ready(new)
        return new

    async def _install_spell(
        self, package: PackageDistro, spell: distro.SpellDistro, candidates: list[Instance]
    ) -> Instance:
        code = blueprint.spell_code(spell)
        new = self._new(package, spell.name, kind="spell", blueprint=code, code=code)
        self.on_step(package.name, f"write {spell.name}")
        await self.journal.commit(Put(new))
        candidates.append(new)
        self.on_step(package.name, f"install {spell.name}")
        await self.spells.install(new.id, spell)
        return new

    async def _initialise(
        self,
        package: PackageDistro,
        row: PackageRow | None,
        plan: Mapping[str, str],
        report: Report,
        result: Result,
    ) -> None:
        if package.init is None:
            return
        key = blueprint.init_key(package)
        fresh = any(isinstance(report[s.name], Created) for s in package.services)
        if not fresh and row is not None:
            config_ignored = package.on_config_change == "ignore"
            if row.initialised == key or (config_ignored and row.initialised):
                result.warnings = list(row.warnings)
                return
        self.on_step(package.name, "initialise")
        caller = _Caller(self, report)
        if isinstance(package.init, tuple):
            # All calls are tried, then the first failure counts.
            failed: LeaseholdError | None = None
            for call in package.init:
                try:
                    await caller.call(*call.target, *call.args)
                except LeaseholdError as error:
                    failed = failed or error
            if failed is not None:
                raise failed
        else:
            result.warnings = await package.init(caller, report)
        result.changes.append("initialised")

    async def _switch(
        self,
        package: PackageDistro,
        have: Mapping[str, Instance],
        switch: list[Change],
        result: Result,
    ) -> None:
        """One transaction: the new instances take the names, the old and dropped ones retire."""
        names = set(package.names)
        for name in set(have) - names:
            old = have[name]
            switch.append(Put(msgspec.structs.replace(old, state="retiring")))
            switch += [DropAlias(*alias) for alias in self.journal.aliases_of(old.id)]
            result.changes.append(f"removed {name}")
        for change in switch:
            if isinstance(change, PutAlias):
                holder = self.journal.aliases.get((change.scope, change.alias))
                row = self.journal.instances.get(holder or "")
                if row is not None and row.id != change.instance and row.package != package.name:
                    log.warning("alias.taken", alias=change.alias, package=package.name, was=row.id)
                    result.changes.append(f"took alias {change.alias}")
        self.on_step(package.name, "switch")
        await self.journal.commit(*switch)

    async def _settle_spells(self, package: PackageDistro, result: Result) -> None:
        """Update spells in place and subscribe them. A spell that cannot be updated stays as it
        was, and the package is degraded until it can."""
        installed = self._installed(package.name)
        for spell in package.spells:
            instance = installed[spell.name]
            try:
                await self._settle_spell(package, spell, instance, result)
            except LeaseholdError as error:
                result.status = "degraded"
                result.message = f"spell {spell.name}: {error.message}"
                log.warning("spell.not_updated", spell=spell.name, error=error.message)

    async def _settle_spell(
        self,
        package: PackageDistro,
        spell: distro.SpellDistro,
        instance: Instance,
        result: Result,
    ) -> None:
        self.on_step(package.name, f"update {spell.name}")
        try:
            changed = await self.spells.update(instance.id, spell)
        except LeaseholdError as error:
            if error.code not in ("spell_store_corrupt", "spell_incomplete", "spell_not_found"):
                raise
            if error.code == "spell_store_corrupt":
                aside = await self.spells.set_aside(instance.id)
                result.status = "degraded"
                result.message = (
                    f"the data of spell {spell.name} could not be read and was moved to {aside}; "
                    "it started empty"
                )
            await self.spells.install(instance.id, spell)
            changed = True
        code = blueprint.spell_code(spell)
        if instance.code != code or instance.state != "live" or instance.version != package.version:
            await self.journal.commit(
                Put(
                    msgspec.structs.replace(
                        instance, code=code, blueprint=code, state="live", version=package.version
                    )
                )
            )
        if changed and f"created {spell.name}" not in result.changes:
            result.changes.append(f"updated {spell.name}")
        self.on_step(package.name, f"subscribe {spell.name}")
        if self.spells.known_code(instance.id) != code:
            await self.spells.subscribe(instance.id)


class _Caller:
    """Calls made while deploying: as the host, to the instances of the report, in 60 seconds."""

    def __init__(self, installer: Installer, report: Report) -> None:
        self.installer = installer
        self.report = report
        now = installer.clock.now()
        self.run = f"{RUN_PREFIX}_{ids.new(now).lower()}"

    async def call(self, service: str, function: str, *args: Any) -> dict[str, Any]:
        host = self.installer.instances.principals.host
        entry = self.report.get(service)
        name = entry.id if entry is not None else service
        instance = self.installer.instances.get(name)
        context = rpc.Context(host, instance.owner, host, self.run)
        value = await self.installer.services.call(instance, function, list(args), context)
        return rpc.check_reply(f"{service}.{function}", value)

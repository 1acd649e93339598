"""Makes the packages of a node what they should be, and changes nothing else.

For each package, in this order:

1. *Check* everything that can be checked without touching anything.
2. Start what is new or changed as **candidates**, beside what runs; wait until they answer.
3. *Initialise* them.
4. **Switch**: one transaction moves every alias of the package to its candidates.
5. Update spells in place, subscribe them, retire what was replaced, write down the result.

A failure before the switch removes the candidates and leaves the old version serving. A crash
anywhere leaves rows that say what to do: at the next boot candidates and retiring instances are
removed, whatever has no row is an orphan and removed too, and the deploy is done again. What is as
it should be already is not touched, restarted or written.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from leasehold.core import ids
from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.core.logs import get_logger
from leasehold.core.metrics import counter, histogram
from leasehold.core.retry import Backoff
from leasehold.node import blueprint, distro, rpc
from leasehold.node.distro import Created, Existing, PackageDistro, Report
from leasehold.node.instances import Instances
from leasehold.node.journal import (
    ROOT_SCOPE,
    Change,
    Drop,
    DropAlias,
    Instance,
    Journal,
    PackageRow,
    Put,
    PutAlias,
)
from leasehold.node.services import Services
from leasehold.node.settings import NodeSettings
from leasehold.node.spells.engine import SpellEngine

RUN_PREFIX = "system-services-deployment"
"""Run ids of calls made while deploying start with this, then a number of their own."""

PARALLEL_PER_CPU = 4
MIN_PARALLEL = 16
"""Packages at once, unless set. The original's bound is the number of CPUs; but a deploy mostly
waits (for a new process to answer, for the disk), and twice two leave a small machine idle."""

log = get_logger(__name__)

deploys = counter("leasehold_package_deploys", "Deploys of packages", ["package", "status"])
deploy_seconds = histogram("leasehold_package_deploy_seconds", "Time of a deploy of one package")

PERMANENT = (Kind.MALFORMED, Kind.INVALID, Kind.FORBIDDEN, Kind.UNSUPPORTED, Kind.CONFLICT)
"""Kinds of errors that trying again does not cure."""


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


Step = Callable[[str, str], None]
Told = Callable[[Result, str], Awaitable[None]]


class Deployer:
    """``on_step(package, step)`` is called before each act; ``told(result, version)`` after."""

    def __init__(
        self,
        journal: Journal,
        instances: Instances,
        services: Services,
        spells: SpellEngine,
        *,
        clock: Clock,
        settings: NodeSettings | None = None,
        on_step: Step | None = None,
        told: Told | None = None,
    ) -> None:
        self.journal = journal
        self.instances = instances
        self.services = services
        self.spells = spells
        self.clock = clock
        self.settings = settings or NodeSettings()
        self.on_step = on_step or (lambda package, step: None)
        self.told = told
        self.results: dict[str, Result] = {}
        self._one_at_a_time = asyncio.Lock()

    # -- the whole -----------------------------------------------------------------------------

    async def deploy(
        self, packages: Mapping[str, PackageDistro], *, broken: Mapping[str, str] | None = None
    ) -> dict[str, Result]:
        """Install what is wanted, remove what is not. Raises only for packages whose policy is to
        fail the node, after all others are done.

        ``broken`` names packages whose source could not be read: they are reported as failed, and
        what is installed of them stays.
        """
        async with self._one_at_a_time:
            await self.recover()
            wrong = distro.check(packages, self.clock.now())
            results: dict[str, Result] = {}
            for name, message in (broken or {}).items():
                results[name] = await self._failed(name, message, "degrade")
            limit = self.settings.parallel_packages or max(
                MIN_PARALLEL, PARALLEL_PER_CPU * (os.cpu_count() or 1)
            )
            slots = asyncio.Semaphore(limit)
            done = {name: asyncio.Event() for name in packages}

            async def one(package: PackageDistro) -> None:
                try:
                    results[package.name] = await self._in_turn(
                        package, wrong, results, done, slots
                    )
                finally:
                    done[package.name].set()

            async with asyncio.TaskGroup() as tasks:
                for package in packages.values():
                    tasks.create_task(one(package))
            await self._prune(set(packages) | set(broken or ()))
            self.results = results
            fatal = [
                results[p.name]
                for p in packages.values()
                if p.on_failure == "fail" and results[p.name].status in ("failed", "blocked")
            ]
            if fatal:
                raise LeaseholdError(
                    "package_failed",
                    f"package {fatal[0].package} could not be deployed: {fatal[0].message}",
                    kind=Kind.UNAVAILABLE,
                    path=fatal[0].package,
                )
            return results

    async def _in_turn(
        self,
        package: PackageDistro,
        wrong: Mapping[str, list[Any]],
        results: Mapping[str, Result],
        done: Mapping[str, asyncio.Event],
        slots: asyncio.Semaphore,
    ) -> Result:
        """Wait for what ``package`` comes after, then deploy it with retries."""
        if package.name in wrong:
            message = LeaseholdError.of(wrong[package.name]).message
            return await self._failed(package.name, message, package.on_failure)
        for other in package.after:
            if other in done:
                await done[other].wait()
                if results[other].status in ("failed", "blocked"):
                    result = Result(
                        package.name, "blocked", message=f"waits for {other}, which failed"
                    )
                    await self._tell(result, package.version)
                    return result
        async with slots:
            return await self._with_retries(package)

    async def _with_retries(self, package: PackageDistro) -> Result:
        backoff = Backoff(first=self.settings.deploy_backoff_sec, cap=10.0)
        began = self.clock.monotonic()
        attempt = 0
        while True:
            attempt += 1
            try:
                result = await self._deploy_one(package)
                break
            except (LeaseholdError, OSError) as error:
                permanent = isinstance(error, LeaseholdError) and error.kind in PERMANENT
                if permanent or attempt >= self.settings.deploy_attempts:
                    message = error.message if isinstance(error, LeaseholdError) else str(error)
                    return await self._failed(package.name, message, package.on_failure)
                log.warning("package.retry", package=package.name, error=str(error))
                await self.clock.sleep(backoff.delay(attempt))
        result.seconds = self.clock.monotonic() - began
        deploy_seconds.observe(result.seconds)
        deploys.labels(package.name, result.status).inc()
        if result.status != "unchanged":
            await self._tell(result, package.version)
        return result

    async def _failed(self, name: str, message: str, policy: str) -> Result:
        row = self.journal.packages.get(name)
        serving = row is not None and any(
            i.package == name and i.state == "live" for i in self.journal.instances.values()
        )
        result = Result(name, "failed", message=message)
        if serving:
            result.changes = [f"kept version {row.version if row else '?'}"]
        if row is not None:
            await self.journal.commit(
                Put(msgspec.structs.replace(row, status="degraded", message=message))
            )
        level = log.error if policy == "fail" else log.warning
        level("package.failed", package=name, error=message, policy=policy)
        deploys.labels(name, "failed").inc()
        await self._tell(result, row.version if row else "")
        return result

    async def _tell(self, result: Result, version: str) -> None:
        if self.told is not None:
            await self.told(result, version)

    # -- one package ---------------------------------------------------------------------------

    def plan(self, packages: Mapping[str, PackageDistro]) -> list[Action]:
        """What :meth:`deploy` would do, without doing it."""
        actions: list[Action] = []
        for package in packages.values():
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
            names = set(package.names)
            actions += [Action(package.name, "remove", name) for name in set(have) - names]
        for name, row in self.journal.packages.items():
            if name not in packages and row.status != "disabled":
                actions.append(Action(name, f"prune ({row.on_disable})", name))
        return actions

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

    async def _deploy_one(self, package: PackageDistro) -> Result:
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
            await self._drop_candidates(package.name, candidates)
            raise
        await self._switch(package, have, switch, result)
        await self._settle_spells(package, result)
        await self._retire_all(package.name)
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

    # -- removal -------------------------------------------------------------------------------

    async def _drop_candidates(self, package: str, candidates: list[Instance]) -> None:
        for instance in candidates:
            self.on_step(package, f"roll back {instance.name}")
            await self._remove(instance)

    async def _retire_all(self, package: str) -> None:
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

    async def _prune(self, wanted: set[str]) -> None:
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


class _Caller:
    """Calls made while deploying: as the host, to the instances of the report, in 60 seconds."""

    def __init__(self, deployer: Deployer, report: Report) -> None:
        self.deployer = deployer
        self.report = report
        now = deployer.clock.now()
        self.run = f"{RUN_PREFIX}_{ids.new(now).lower()}"

    async def call(self, service: str, function: str, *args: Any) -> dict[str, Any]:
        host = self.deployer.instances.principals.host
        entry = self.report.get(service)
        name = entry.id if entry is not None else service
        instance = self.deployer.instances.get(name)
        context = rpc.Context(host, instance.owner, host, self.run)
        value = await self.deployer.services.call(instance, function, list(args), context)
        return rpc.check_reply(f"{service}.{function}", value)

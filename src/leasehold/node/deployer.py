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

from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.core.logs import get_logger
from leasehold.core.metrics import counter, histogram
from leasehold.core.retry import Backoff
from leasehold.node import distro
from leasehold.node.distro import PackageDistro
from leasehold.node.install import Action, Installer, Result
from leasehold.node.instances import Instances
from leasehold.node.journal import Instance, Journal, Put
from leasehold.node.removal import Remover, Step
from leasehold.node.services import Services
from leasehold.node.settings import NodeSettings
from leasehold.node.spells.engine import SpellEngine

PARALLEL_PER_CPU = 4
MIN_PARALLEL = 16
"""Packages at once, unless set. The original's bound is the number of CPUs; but a deploy mostly
waits (for a new process to answer, for the disk), and twice two leave a small machine idle."""

log = get_logger(__name__)

deploys = counter("leasehold_package_deploys", "Deploys of packages", ["package", "status"])
deploy_seconds = histogram("leasehold_package_deploy_seconds", "Time of a deploy of one package")

PERMANENT = (Kind.MALFORMED, Kind.INVALID, Kind.FORBIDDEN, Kind.UNSUPPORTED, Kind.CONFLICT)
"""Kinds of errors that trying again does not cure."""


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
        self.clock = clock
        self.settings = settings or NodeSettings()
        self.remover = Remover(journal, services, spells, on_step or (lambda package, step: None))
        self.installer = Installer(instances, self.remover, clock=clock, settings=self.settings)
        self.told = told
        self.results: dict[str, Result] = {}
        self._one_at_a_time = asyncio.Lock()

    async def deploy(
        self, packages: Mapping[str, PackageDistro], *, broken: Mapping[str, str] | None = None
    ) -> dict[str, Result]:
        """Install what is wanted, remove what is not. Raises only for packages whose policy is to
        fail the node, after all others are done.

        ``broken`` names packages whose source could not be read: they are reported as failed, and
        what is installed of them stays.
        """
        async with self._one_at_a_time:
            await self.remover.recover()
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
            await self.remover.prune(set(packages) | set(broken or ()))
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
                result = await self.installer.install(package)
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

    def plan(self, packages: Mapping[str, PackageDistro]) -> list[Action]:
        """What :meth:`deploy` would do, without doing it."""
        actions = [action for p in packages.values() for action in self.installer.plan(p)]
        for name, row in self.journal.packages.items():
            if name not in packages and row.status != "disabled":
                actions.append(Action(name, f"prune ({row.on_disable})", name))
        return actions

    async def remove(self, instance: Instance) -> bool:
        """Remove an instance for good; returns False when that could not be finished now."""
        return await self.remover.remove(instance)

"""The managers in use: made on demand, bounded, forgotten when nobody used them for a while."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import Any

from leasehold.core import metrics
from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.core.retry import Backoff
from leasehold.manifest.manager import Manager
from leasehold.manifest.ports import Market
from leasehold.manifest.settings import ManifestSettings
from leasehold.model.market import DeploymentId

MANAGERS = metrics.gauge("provider_manifest_manager", "deployments being worked on")


class Managers:
    """All they hold is a cache, so any that nobody is waiting on may go."""

    def __init__(
        self,
        market: Market,
        provider: str,
        clock: Clock,
        settings: ManifestSettings,
        spawn: Callable[[Coroutine[Any, Any, Any]], asyncio.Task[Any]],
        backoff: Backoff,
    ) -> None:
        self.settings = settings
        self.clock = clock

        def make(id: DeploymentId) -> Manager:
            return Manager(id, market, provider, clock, settings, spawn, backoff)

        self._make = make
        self._managers: OrderedDict[DeploymentId, Manager] = OrderedDict()

    def __contains__(self, id: DeploymentId) -> bool:
        return id in self._managers

    def __len__(self) -> int:
        return len(self._managers)

    def get(self, id: DeploymentId) -> Manager | None:
        """The manager of a deployment if it is in use."""
        return self._managers.get(id)

    def ensure(self, id: DeploymentId) -> Manager:
        """The manager of a deployment; UNAVAILABLE when all there may be are busy."""
        manager = self._managers.get(id)
        if manager is None:
            if len(self._managers) >= self.settings.max_managers and not self._evict():
                raise LeaseholdError(
                    "too_many_deployments",
                    "too many deployments are being worked on; try again shortly",
                    kind=Kind.UNAVAILABLE,
                    retry_after=5.0,
                )
            manager = self._managers[id] = self._make(id)
            MANAGERS.set(len(self._managers))
        self._managers.move_to_end(id)
        manager.used_at = self.clock.monotonic()
        return manager

    def drop(self, manager: Manager) -> None:
        """Forget a manager unless somebody waits on it."""
        if not manager.waiting:
            self._managers.pop(manager.id, None)
            MANAGERS.set(len(self._managers))

    def _evict(self) -> bool:
        for manager in self._managers.values():
            if not manager.waiting:
                self.drop(manager)
                return True
        return False

    async def linger(self) -> None:
        """For ever: forget what was not used for the linger time."""
        while True:
            await self.clock.sleep(max(self.settings.linger_s, 1.0) / 2)
            until = self.clock.monotonic() - self.settings.linger_s
            for manager in list(self._managers.values()):
                if manager.used_at <= until:
                    self.drop(manager)

    def working(self, id: DeploymentId) -> Working:
        """``async with managers.working(id) as manager``: a caller's turn, counted and timed."""
        return Working(self, id)


class Working:
    """A caller's turn with a manager, within the submit budget."""

    def __init__(self, managers: Managers, id: DeploymentId) -> None:
        self.managers = managers
        self.id = id

    async def __aenter__(self) -> Manager:
        settings = self.managers.settings
        self.manager = manager = self.managers.ensure(self.id)
        if manager.waiting >= settings.max_waiting:
            raise LeaseholdError(
                "too_many_manifests",
                f"{manager.waiting} manifests of {self.id} are being worked on",
                kind=Kind.RATE_LIMITED,
                retry_after=1.0,
            )
        manager.waiting += 1
        self.timeout = self.managers.clock.timeout(settings.submit_budget_s)
        await self.timeout.__aenter__()
        return manager

    async def __aexit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.manager.waiting -= 1
        try:
            await self.timeout.__aexit__(kind, error, trace)
        except TimeoutError:
            # The reason of the wait is the better answer.
            raise self.manager.trouble or LeaseholdError(
                "submit_timeout",
                f"no verdict within {self.managers.settings.submit_budget_s:g} s; try again",
                kind=Kind.UNAVAILABLE,
                retry_after=5.0,
            ) from None

"""The seam between a deployment and what runs it: this machine, or a cluster.

The state machine (:mod:`.deployment`) knows when to bring a version up, watch it and tear it down;
a driver knows how. :mod:`.local` does it with containers of this machine, :mod:`.kubernetes` with
objects of a cluster.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from leasehold.core.clock import Clock
from leasehold.deploy.replica import Replica
from leasehold.deploy.settings import DeploySettings
from leasehold.deploy.workload import Workload
from leasehold.model.manifest import ManifestService
from leasehold.model.market import LeaseId

Emit = Callable[..., Awaitable[Any]]
"""``emit(payload, key=)`` appends to the lease's entity."""


@dataclass
class Applied:
    """A version that is up: what should run, by service."""

    workload: Workload
    revisions: dict[str, str]
    digests: dict[str, str] = field(default_factory=dict)
    """By service; empty in logs of older versions."""

    def keys(self) -> dict[str, tuple[ManifestService, int]]:
        """Every replica that should run."""
        return {
            self.workload.key(service, self.revisions[service.name], number): (service, number)
            for service in self.workload.services
            for number in range(service.count)
        }


@dataclass
class History:
    """What the lease's events say of earlier runs of the provider."""

    hash: str = ""
    revisions: dict[str, str] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    workload: Workload | None = None
    """What requests went to last, by its hash and its services' revisions."""
    healthy: bool | None = None
    failed: tuple[str, str] = ("", "")


@dataclass
class Health:
    """``healthy`` is None while unknown; ``told`` is the last verdict that stands on the log."""

    healthy: bool | None = None
    told: bool | None = None
    reason: str = ""
    unhealthy_checks: int = 0
    attempts_left: int = 0
    restarts: dict[str, int] = field(default_factory=dict)


class Attempt(Protocol):
    """One attempt to bring a version up; the two tables are filled in as it learns them."""

    revisions: dict[str, str]
    digests: dict[str, str]

    async def run(self) -> Applied:
        """Bring it up, or raise and leave things as they were."""
        ...


class Watch(Protocol):
    """Looks after one applied version until it is cancelled."""

    async def run(self) -> None: ...

    def exited(self, replica: Replica) -> None: ...

    def look_again(self) -> None: ...


class Driver(Protocol):
    """How a lease's workload is brought up, watched and removed. Everything may be done again."""

    settings: DeploySettings
    clock: Clock
    rng: random.Random
    late: tuple[str, ...]
    """Codes of failures after which a first version stays as it is and the watch takes over."""

    def rollout(self, workload: Workload, before: Applied | None, emit: Emit) -> Attempt: ...

    def watch(self, applied: Applied, health: Health, emit: Emit) -> Watch: ...

    def allow(self, lease: LeaseId, withheld: Iterable[str], allowed: Iterable[str] | None) -> bool:
        """Which host names may lead to ``lease``: none of ``withheld``, and after a transfer only
        ``allowed``. True when that is news."""
        ...

    async def adopt(self, lease: LeaseId, history: History) -> Applied | None:
        """What runs from before this provider started; nothing is restarted for it."""
        ...

    async def point(self, applied: Applied) -> None:
        """Host names were moved to or from the lease."""
        ...

    async def sweep(self, applied: Applied) -> None:
        """Remove what is left of attempts that failed, or that a crash cut short."""
        ...

    async def remove(self, lease: LeaseId) -> None:
        """Remove everything of the lease."""
        ...

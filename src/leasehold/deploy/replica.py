"""Replicas: what is asked of a runtime, and what a runtime says is there."""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from leasehold.deploy.oci.cgroups import Usage
from leasehold.deploy.oci.image import HealthCheck
from leasehold.deploy.ports import Image
from leasehold.model.manifest import ManifestService
from leasehold.model.market import LeaseId


class State(enum.Enum):
    RUNNING = "running"
    EXITED = "exited"


@dataclass(frozen=True, slots=True)
class Ended:
    """``code`` or ``signal``; both None when nobody saw the end: unknown is not zero."""

    code: int | None = None
    signal: int | None = None
    at: float = 0.0

    @property
    def known(self) -> bool:
        return self.code is not None or self.signal is not None

    def __str__(self) -> str:
        if self.code is not None:
            return f"exit code {self.code}"
        return f"signal {self.signal}" if self.signal is not None else "an unknown end"


@dataclass(frozen=True, slots=True)
class Order:
    """One replica to run. ``volumes`` are host directories by mount point."""

    key: str
    lease: LeaseId
    service: ManifestService
    revision: str
    number: int
    hash: str
    image: Image
    environment: dict[str, str]
    mark: int
    volumes: dict[str, Path] = field(default_factory=dict)
    replaces: str = ""
    """The key of a replica that was removed with its network kept for this one."""


@dataclass(slots=True)
class Replica:
    """One replica as the runtime knows it. ``address`` is inside the node's network."""

    key: str
    lease: LeaseId
    service: str
    revision: str
    number: int
    state: State
    address: str = ""
    mark: int = 0
    pid: int = 0
    started_at: float = 0.0
    ended: Ended | None = None
    health: HealthCheck | None = None


class Runtime(Protocol):
    """Runs replicas. Starting one that runs and removing one that is gone change nothing."""

    name: str

    async def start_replica(self, order: Order) -> Replica: ...

    async def remove_replica(
        self, key: str, *, grace: float = 0.0, keep_network: bool = False
    ) -> None: ...

    async def replicas(self, lease: LeaseId | None = None) -> list[Replica]:
        """What there is (of one lease), running or ended and not removed."""
        ...

    def on_exit(self, listener: Callable[[Replica], None]) -> None: ...

    def on_lost(self, listener: Callable[[], None]) -> None:
        """Called when replicas may have changed unseen: look at :meth:`replicas` again."""
        ...

    async def answers(self, replica: Replica, ports: Sequence[int]) -> bool:
        """True when it passes its image's health check, or else accepts TCP on all ``ports``."""
        ...

    def usage(self, replica: Replica) -> Usage | None: ...

    def log_folder(self, lease: LeaseId) -> Path: ...

    def forget_lease(self, lease: LeaseId) -> None:
        """Remove what belongs to the lease as a whole, once its replicas are gone."""
        ...


Lines = AsyncIterator[tuple[str, bytes]]

"""What the gateway needs of the system that runs workloads."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

import msgspec

from leasehold.model.market import LeaseId

STDOUT, STDERR = 1, 2


class LogLine(msgspec.Struct, frozen=True):
    """``name`` is the replica that wrote the line, ``service-0``; ``at`` is seconds UTC."""

    service: str
    name: str
    message: str
    at: float = 0.0


class Exec(Protocol):
    """A command that runs inside a workload."""

    async def write(self, data: bytes) -> None:
        """To its standard input; waits while its buffer is full."""
        ...

    async def close_input(self) -> None: ...

    async def resize(self, width: int, height: int) -> None:
        """The size of its terminal in characters."""
        ...

    def output(self) -> AsyncIterator[tuple[int, bytes]]:
        """``(STDOUT or STDERR, data)`` until it ends; everything is STDOUT with a terminal."""
        ...

    async def wait(self) -> int:
        """Its exit code; 128 + signal when it was killed."""
        ...

    async def kill(self) -> None:
        """End it; harmless when it ended."""
        ...


class Workloads(Protocol):
    """Running workloads of leases. NOT_FOUND: no such lease or service; UNAVAILABLE: the runtime
    does not answer, which says nothing about the workload."""

    async def status(self, lease: LeaseId) -> dict[str, Any]:
        """``services``: name to ``{name, available, total, uris, observed_generation, replicas,
        updated_replicas, ready_replicas, available_replicas}``; ``forwarded_ports``; ``ips``."""
        ...

    def logs(
        self, lease: LeaseId, services: Sequence[str], *, follow: bool, tail: int
    ) -> AsyncIterator[LogLine]:
        """Lines of the given services (none: all), the last ``tail`` of each (-1: all), then with
        ``follow`` what comes. Ends when the lease does."""
        ...

    async def search(
        self, lease: LeaseId, services: Sequence[str], text: str, limit: int
    ) -> list[LogLine]:
        """The newest ``limit`` lines of the given services (none: all) that contain ``text``."""
        ...

    async def exec(
        self,
        lease: LeaseId,
        service: str,
        command: Sequence[str],
        *,
        replica: int,
        tty: bool,
        stdin: bool,
    ) -> Exec: ...


class Addresses(Protocol):
    """Leased addresses that can move between leases of one owner."""

    async def transfer(self, lease: LeaseId, names: Sequence[str]) -> list[str]:
        """Point the named endpoints, and only those, at ``lease``; returns what moved."""
        ...

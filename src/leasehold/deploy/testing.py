"""A runtime in memory and a deployment on it, for tests in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from leasehold.core.clock import Clock
from leasehold.core.errors import LeaseholdError, unavailable
from leasehold.deploy.deployment import Deployment
from leasehold.deploy.driver import History
from leasehold.deploy.local import LocalDriver
from leasehold.deploy.oci.cgroups import Usage
from leasehold.deploy.replica import Ended, Order, Replica, State
from leasehold.deploy.rollout import Parts
from leasehold.deploy.routes import Routes
from leasehold.deploy.settings import DeploySettings
from leasehold.deploy.workload import Workload
from leasehold.model.market import LeaseId


@dataclass
class MemoryImage:
    reference: str
    digest: str = "sha256:0"
    config: dict[str, Any] = field(default_factory=dict)
    layers: list[Path] = field(default_factory=list)


class MemoryImages:
    """``errors`` by reference; each is raised once and taken off the list."""

    def __init__(self) -> None:
        self.errors: dict[str, list[Exception]] = {}
        self.digests: dict[str, str] = {}
        self.asked: list[str] = []
        self.held: set[tuple[str, str]] = set()
        """(holder, digest)."""

    async def ensure(
        self, reference: str, *, credentials: Any = None, progress: Any = None, holder: str = ""
    ) -> MemoryImage:
        self.asked.append(reference)
        if self.errors.get(reference):
            raise self.errors[reference].pop(0)
        digest = self.digests.get(reference, f"sha256:{reference}")
        self.held.add((holder, digest))
        return MemoryImage(reference, digest)

    async def release(self, holder: str, *, keep: Collection[str] = ()) -> None:
        self.held = {(by, d) for by, d in self.held if by != holder or d in keep}


class MemoryVolumes:
    def __init__(self) -> None:
        self.released: list[tuple[str, int]] = []

    async def ensure(
        self, owner: str, dseq: int, service: str, volume: str, size_bytes: int
    ) -> Path:
        return Path("/volumes") / owner / str(dseq) / service / volume

    async def release(self, owner: str, dseq: int) -> None:
        self.released.append((owner, dseq))

    def reserved_bytes(self) -> int:
        return 0


class MemoryMarket:
    """``failures`` refusals before a close is taken."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.tries = 0
        self.closed: list[tuple[LeaseId, int]] = []

    async def close_bid(self, lease: LeaseId, *, reason: int) -> None:
        self.tries += 1
        if self.tries <= self.failures:
            raise unavailable("market_away", "the market does not answer")
        self.closed.append((lease, reason))


class MemoryRuntime:
    """Replicas are rows. ``away`` makes every question fail; ``silent`` names services that do not
    answer; ``refuse`` maps a service to the error of its start."""

    name = "memory"

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.running: dict[str, Replica] = {}
        self.away = False
        self.silent: set[str] = set()
        self.refuse: dict[str, LeaseholdError] = {}
        self.starts = 0
        self._listeners: list[Callable[[Replica], None]] = []

    async def start_replica(self, order: Order) -> Replica:
        self._check()
        if order.service.name in self.refuse:
            raise self.refuse[order.service.name]
        found = self.running.get(order.key)
        if found is not None and found.state is State.RUNNING:
            return found
        self.starts += 1
        replica = self.running[order.key] = Replica(
            order.key,
            order.lease,
            order.service.name,
            order.revision,
            order.number,
            State.RUNNING,
            address=f"10.0.0.{self.starts % 250 + 1}",
            mark=order.mark,
            pid=self.starts,
            started_at=self.clock.now(),
        )
        return replica

    async def remove_replica(
        self, key: str, *, grace: float = 0.0, keep_network: bool = False
    ) -> None:
        self._check()
        self.running.pop(key, None)

    async def replicas(self, lease: LeaseId | None = None) -> list[Replica]:
        self._check()
        return [replace(r) for r in self.running.values() if lease in (None, r.lease)]

    def on_exit(self, listener: Callable[[Replica], None]) -> None:
        self._listeners.append(listener)

    def on_lost(self, listener: Callable[[], None]) -> None:
        pass

    async def answers(self, replica: Replica, ports: Sequence[int]) -> bool:
        self._check()
        return replica.state is State.RUNNING and replica.service not in self.silent

    def usage(self, replica: Replica) -> Usage | None:
        return None

    def log_folder(self, lease: LeaseId) -> Path:
        return Path("/nowhere")

    def forget_lease(self, lease: LeaseId) -> None:
        pass

    def end(self, key: str, code: int = 1) -> None:
        """The replica's process ends by itself."""
        replica = self.running[key]
        replica.state = State.EXITED
        replica.ended = Ended(code=code, at=self.clock.now())
        for listener in self._listeners:
            listener(replace(replica))

    def _check(self) -> None:
        if self.away:
            raise unavailable("runtime_away", "the runtime does not answer")


LEASE = LeaseId("owner", 1, 1, 1, "provider")


def service(name: str = "web", image: str = "img", **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "image": image,
        "count": 1,
        "resources": {"id": 1},
        "expose": [{"port": 80, "proto": "TCP", "global": True, "hosts": ["a.test"]}],
        **more,
    }


def workload(hash: str, *services: dict[str, Any]) -> Workload:
    return Workload.of(LEASE, hash, {"name": "g", "services": list(services) or [service()]})


class Bench:
    """One deployment and what it did: ``said`` are the payloads it emitted."""

    def __init__(self, clock: Clock, **settings: Any) -> None:
        self.clock = clock
        self.runtime = MemoryRuntime(clock)
        self.images = MemoryImages()
        self.volumes = MemoryVolumes()
        self.market = MemoryMarket()
        self.settings = DeploySettings(**settings)
        self.said: list[msgspec.Struct] = []
        self.history = History()
        self.parts = Parts(
            runtime=self.runtime,
            images=self.images,
            volumes=self.volumes,
            routes=Routes(None, None, None, self.settings, Path("/dev/null")),
            market=self.market,
            settings=self.settings,
            clock=clock,
            rng=random.Random(1),
        )
        self.deployment = Deployment(LEASE, LocalDriver(self.parts), self.history, self.emit)
        self.runtime.on_exit(self.deployment.replica_exited)

    async def emit(self, payload: msgspec.Struct, *, key: str = "") -> None:
        self.said.append(payload)

    def kinds(self) -> list[str]:
        return [type(payload).__name__ for payload in self.said]

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Deployment]:
        task = asyncio.ensure_future(self.deployment.run())
        try:
            yield self.deployment
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def until(self, true: Callable[[], bool], seconds: float = 600.0) -> None:
        """Let virtual time pass until something holds."""
        deadline = self.clock.monotonic() + seconds
        while not true():
            assert self.clock.monotonic() < deadline, "it never came"
            await self.clock.sleep(0.05)

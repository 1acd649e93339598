"""A cluster in memory, and a deployment on it, for tests in virtual time.

Controllers bring up what they are told at once; ``silent`` names services whose replicas never
answer. ``away`` makes the API server unreachable, watches included.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec

from leasehold.core.clock import Clock
from leasehold.core.service import running
from leasehold.deploy.deployment import Deployment
from leasehold.deploy.driver import History
from leasehold.deploy.kubernetes.api import Object, unreachable
from leasehold.deploy.kubernetes.cache import Cluster
from leasehold.deploy.kubernetes.driver import KubernetesDriver
from leasehold.deploy.settings import DeploySettings
from leasehold.deploy.testing import LEASE, MemoryMarket

Where = tuple[str, str]
"""Namespace and name."""


class MemoryApi:
    """What of :class:`~leasehold.deploy.kubernetes.api.Api` the driver uses."""

    server = "memory"

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.silent: set[str] = set()
        self.applied = 0
        self.held: dict[str, dict[Where, Object]] = {}
        self._away = False
        self._version = 0
        self._watches: dict[str, set[asyncio.Queue[tuple[str, Object] | None]]] = {}

    @property
    def away(self) -> bool:
        return self._away

    @away.setter
    def away(self, value: bool) -> None:
        self._away = value
        if value:
            for watches in self._watches.values():
                for queue in watches:
                    queue.put_nowait(None)

    async def apply(self, found: Object, *, manager: str = "", dry_run: bool = False) -> Object:
        self._check()
        self.applied += 1
        meta = found["metadata"]
        where = (meta.get("namespace", ""), meta["name"])
        before = self.held.get(found["kind"], {}).get(where)
        new: Object = {"metadata": {"generation": 0}}
        item = copy.deepcopy(before) if before else new
        for part in ("labels", "annotations"):
            item["metadata"].setdefault(part, {}).update(meta.get(part) or {})
        if "spec" in found and item.get("spec") != found["spec"]:
            item["metadata"]["generation"] += 1
            item["spec"] = copy.deepcopy(found["spec"])
        item["metadata"].update(name=where[1], namespace=where[0])
        item.update(kind=found["kind"], apiVersion=found["apiVersion"])
        self._put(item)
        if item["kind"] in ("Deployment", "StatefulSet"):
            self.settle(item)
        return copy.deepcopy(item)

    def settle(self, item: Object) -> None:
        """Let the controller of ``item`` do its work."""
        count = item["spec"]["replicas"]
        up = 0 if item["metadata"]["name"] in self.silent else count
        item["status"] = {
            "observedGeneration": item["metadata"]["generation"],
            "replicas": count,
            "updatedReplicas": count,
            "availableReplicas": up,
        }
        self._put(item)

    def crowd(self, item: Object, *, room: bool = False) -> None:
        """A replica of ``item`` finds no room, or now does and is not seen any more."""
        where = (item["metadata"]["namespace"], f"{item['metadata']['name']}-0")
        if room:
            self._drop("Pod", where)
            return
        meta = {**item["spec"]["template"]["metadata"], "creationTimestamp": "2026-01-01T00:00:00Z"}
        full = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
        meta.update(namespace=where[0], name=where[1])
        self._put({"kind": "Pod", "metadata": meta, "status": {"conditions": [full]}})

    async def list(
        self, kind: str, namespace: str | None = None, *, labels: dict[str, Any] | None = None
    ) -> tuple[list[Object], str]:
        self._check()
        found = self.held.get(kind, {}).values()
        return [copy.deepcopy(item) for item in found], str(self._version)

    async def watch(
        self, kind: str, namespace: str | None, version: str, *, labels: dict[str, Any] | None
    ) -> AsyncIterator[tuple[str, Object]]:
        self._check()
        queue: asyncio.Queue[tuple[str, Object] | None] = asyncio.Queue()
        watches = self._watches.setdefault(kind, set())
        watches.add(queue)
        try:
            while (event := await queue.get()) is not None:
                yield event
        finally:
            watches.discard(queue)
        self._check()

    async def get(self, kind: str, name: str, namespace: str | None = None) -> Object | None:
        self._check()
        return self.held.get(kind, {}).get((namespace or "", name))

    async def delete(
        self, kind: str, name: str, namespace: str | None = None, *, orphan: bool = False
    ) -> bool:
        self._check()
        if kind == "Namespace":
            for other in list(self.held):
                for where in [w for w in self.held[other] if w[0] == name]:
                    self._drop(other, where)
        return self._drop(kind, (namespace or "", name))

    async def logs(self, namespace: str, pod: str, **_: Any) -> AsyncIterator[tuple[str, str]]:
        self._check()
        return
        yield

    def _put(self, item: Object) -> None:
        self._version += 1
        meta = item["metadata"]
        meta["resourceVersion"] = str(self._version)
        self.held.setdefault(item["kind"], {})[meta["namespace"], meta["name"]] = item
        self._tell(item["kind"], "MODIFIED", item)

    def _drop(self, kind: str, where: Where) -> bool:
        item = self.held.get(kind, {}).pop(where, None)
        if item is None:
            return False
        self._version += 1
        self._tell(kind, "DELETED", item)
        return True

    def _tell(self, kind: str, change: str, item: Object) -> None:
        for queue in self._watches.get(kind, ()):
            queue.put_nowait((change, copy.deepcopy(item)))

    def _check(self) -> None:
        if self._away:
            raise unreachable("it is away")


class ClusterBench:
    """One deployment on a cluster in memory; ``said`` are the payloads it emitted."""

    def __init__(self, clock: Clock, history: History | None = None, **settings: Any) -> None:
        self.clock = clock
        self.api: Any = MemoryApi(clock)
        self.market = MemoryMarket()
        self.settings = DeploySettings(driver="kubernetes", **settings)
        self.history = history or History()
        self.said: list[msgspec.Struct] = []
        self.restart()

    def restart(self) -> None:
        """Another provider in place of the one before: it knows what the log says."""
        rng = random.Random(1)
        self.cluster = Cluster(self.api, "provider", clock=self.clock, rng=rng)
        self.driver = KubernetesDriver(
            self.api,
            self.cluster,
            self.settings,
            Path("/nowhere"),
            market=self.market,
            clock=self.clock,
            rng=rng,
        )
        self.deployment = Deployment(LEASE, self.driver, self.history, self.emit)

    async def emit(self, payload: msgspec.Struct, *, key: str = "") -> None:
        self.said.append(payload)

    def kinds(self) -> list[str]:
        return [type(payload).__name__ for payload in self.said]

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Deployment]:
        async with running(self.cluster):
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

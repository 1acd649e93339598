"""What the cluster holds of this provider's leases, as last heard: one watch a kind.

Each kind is listed once and then watched from there, for all leases together, so looking at a
lease asks nobody. When a watch breaks, the API server is *unreachable* until every kind has been
heard of again: what is held stays as it was, and nobody may conclude anything from it. Watches are
begun anew every so often, so a server that fell silent is noticed too.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable
from typing import Any

from leasehold.core import metrics
from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.core.logs import get_logger
from leasehold.core.retry import Backoff
from leasehold.core.service import Service
from leasehold.deploy.kubernetes.api import EVERYWHERE, Api, Object, unreachable
from leasehold.deploy.kubernetes.render import MANAGER, PREFIX

LEASED = ("Namespace", "NetworkPolicy", "Deployment", "StatefulSet", "Service", "Ingress", "Pod")
"""Kinds of which only this provider's own are watched."""

REACHABLE = metrics.gauge("leasehold_cluster_reachable", "1 while the API server is heard of")
OBJECTS = metrics.gauge("leasehold_cluster_objects", "objects held in memory", ["kind"])

log = get_logger(__name__)


class Cluster(Service):
    """``provider`` is the address whose leases' objects are watched; with nodes."""

    def __init__(
        self,
        api: Api,
        provider: str,
        *,
        clock: Clock | None = None,
        rng: random.Random | None = None,
    ) -> None:
        super().__init__("cluster", clock=clock)
        self.api = api
        self.labels = {
            "app.kubernetes.io/managed-by": MANAGER,
            f"{PREFIX}provider": provider,
        }
        self.why = "not heard of yet"
        """Why the API server is unreachable."""
        self._rng = rng or random.Random()
        self._held: dict[str, dict[str, dict[str, Object]]] = {k: {} for k in (*LEASED, "Node")}
        self._unheard = set(self._held)
        self._heard = asyncio.Event()
        self._listeners: dict[str, set[Callable[[], None]]] = {}

    async def start(self) -> None:
        for kind in self._held:
            self.spawn(self._follow(kind), name=f"watch {kind}")

    # -- asked ------------------------------------------------------------------------------------

    @property
    def reachable(self) -> bool:
        return not self._unheard

    def check(self) -> None:
        """Raises ``cluster_unreachable`` unless what is held is current."""
        if self._unheard:
            raise unreachable(self.why)

    async def heard(self, seconds: float) -> bool:
        """Wait until the API server is reachable; False when it is not within ``seconds``."""
        try:
            async with self.clock.timeout(seconds):
                await self._heard.wait()
        except TimeoutError:
            return False
        return True

    def get(self, kind: str, namespace: str, name: str) -> Object | None:
        return self._held[kind].get(namespace, {}).get(name)

    def of(self, kind: str, namespace: str = "") -> list[Object]:
        """Those of a namespace; of kinds without one, all."""
        return list(self._held[kind].get(namespace, {}).values())

    def namespaces(self) -> list[Object]:
        """Every namespace of this provider's leases."""
        return self.of("Namespace")

    def listen(self, namespace: str, news: Callable[[], None]) -> Callable[[], None]:
        """``news`` is called when something of the namespace changed ("" for what is in none), or
        when the API server was lost or came back. Call what is returned to stop it."""
        mine = self._listeners.setdefault(namespace, set())
        mine.add(news)

        def stop() -> None:
            mine.discard(news)
            if not mine and self._listeners.get(namespace) is mine:
                del self._listeners[namespace]

        return stop

    # -- following --------------------------------------------------------------------------------

    async def _follow(self, kind: str) -> None:
        backoff = Backoff(first=0.2, cap=10.0, rng=self._rng)
        labels = self.labels if kind in LEASED else None
        place = None if kind in ("Namespace", "Node") else EVERYWHERE
        failures, version = 0, ""
        while True:
            try:
                if not version:
                    found, version = await self.api.list(kind, place, labels=labels)
                    self._replace(kind, found)
                self._hear(kind)
                async for change, item in self.api.watch(kind, place, version, labels=labels):
                    failures = 0
                    version = item["metadata"]["resourceVersion"]
                    self._change(kind, change, item)
            except LeaseholdError as error:
                version = ""
                if error.kind is Kind.CONFLICT:  # What we know is too old: list again.
                    continue
                failures += 1
                self._lose(kind, error)
                await self.clock.sleep(backoff.delay(failures))

    def _hear(self, kind: str) -> None:
        if kind not in self._unheard:
            return
        self._unheard.discard(kind)
        if not self._unheard:
            log.info("cluster.reachable", server=self.api.server)
            REACHABLE.set(1)
            self.why = ""
            self._heard.set()
            self._tell(list(self._listeners))

    def _lose(self, kind: str, error: LeaseholdError) -> None:
        was = self.reachable
        self._unheard.add(kind)
        self._heard.clear()
        self.why = error.message
        if was:
            log.warning("cluster.unreachable", server=self.api.server, error=error.message)
            REACHABLE.set(0)
            self._tell(list(self._listeners))

    def _replace(self, kind: str, found: Iterable[Object]) -> None:
        before = self._held[kind]
        now: dict[str, dict[str, Object]] = {}
        for item in found:
            now.setdefault(_place(item), {})[item["metadata"]["name"]] = _slim(item)
        self._held[kind] = now
        self._count(kind)
        self._tell(before.keys() | now.keys())
        if kind == "Namespace":
            self._tell(before.get("", {}).keys() | now.get("", {}).keys())

    def _change(self, kind: str, change: str, item: Object) -> None:
        place, name = _place(item), item["metadata"]["name"]
        here = self._held[kind].setdefault(place, {})
        if change == "DELETED":
            here.pop(name, None)
            if not here:
                del self._held[kind][place]
        else:
            here[name] = _slim(item)
        self._count(kind)
        self._tell([place, name] if kind == "Namespace" else [place])

    def _count(self, kind: str) -> None:
        OBJECTS.labels(kind).set(sum(map(len, self._held[kind].values())))

    def _tell(self, places: Iterable[str]) -> None:
        for place in places:
            for news in tuple(self._listeners.get(place, ())):
                news()


def _place(item: Object) -> str:
    return str(item["metadata"].get("namespace", ""))


def _slim(item: Object) -> Object:
    """Without what nobody reads and everybody pays for."""
    item["metadata"].pop("managedFields", None)
    return item


def labels(item: Object) -> dict[str, Any]:
    return item["metadata"].get("labels") or {}


def notes(item: Object) -> dict[str, Any]:
    """Annotations."""
    return item["metadata"].get("annotations") or {}

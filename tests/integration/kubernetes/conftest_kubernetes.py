"""A cluster, and providers on it, one after the other or several at once.

The control plane is real and started once; each test has a provider of its own, and its namespaces
are removed at the end. Nodes are played (:mod:`acting_kubelet`) unless a test brings a kubelet.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
from acting_kubelet import ActingKubelet
from control_plane import ControlPlane, control_plane

from leasehold.core import logs
from leasehold.core.clock import SystemClock
from leasehold.core.service import Group, running
from leasehold.deploy.kubernetes.api import Api
from leasehold.deploy.kubernetes.service import KubernetesService
from leasehold.deploy.kubernetes.settings import KubernetesSettings
from leasehold.deploy.settings import DeploySettings
from leasehold.deploy.workload import lease_name
from leasehold.events.event import Entity, Event, NewEvent
from leasehold.events.log import ANY
from leasehold.events.sqlite import SqliteLog
from leasehold.model.events.lease import ManifestReceived
from leasehold.model.events.market import LeaseClosed
from leasehold.model.market import LeaseId
from leasehold.observe.engine import Engine


@dataclass
class FakeMarket:
    closed: list[tuple[LeaseId, int]] = field(default_factory=list)

    async def close_bid(self, lease: LeaseId, *, reason: int) -> None:
        self.closed.append((lease, reason))


@dataclass
class Provider:
    """A provider process as far as deploying goes."""

    log: SqliteLog
    deploy: KubernetesService
    lease: LeaseId

    async def put(self, group: dict[str, Any], hash: str, lease: LeaseId | None = None) -> None:
        lease = lease or self.lease
        await self.say(lease, ManifestReceived(id=lease, hash=hash, group=group))

    async def close(self, lease: LeaseId | None = None) -> None:
        lease = lease or self.lease
        await self.say(lease, LeaseClosed(id=lease, height=9))

    async def say(self, lease: LeaseId, fact: msgspec.Struct) -> None:
        await self.log.append(Entity("lease", str(lease)), ANY, [NewEvent.of(fact)])

    async def until(
        self,
        type_: str,
        hash: str | None = None,
        lease: LeaseId | None = None,
        seconds: float = 30,
        after: int = 0,
    ) -> Event:
        """The first event of this type (and hash) behind the first ``after``."""
        entity = Entity("lease", str(lease or self.lease))
        seen = 0
        try:
            async with asyncio.timeout(seconds):
                async for event in self.log.read(entity, watch=True):
                    if not isinstance(event, Event):
                        continue
                    seen += 1
                    if seen <= after or event.type != type_:
                        continue
                    if hash is None or event.payload.hash == hash:
                        return event
        except TimeoutError:
            told = "\n".join(map(str, await self.events(lease)))
            pods = self.deploy.cluster.of("Pod", lease_name(lease or self.lease))
            states = "\n".join(str((p["metadata"]["name"], p.get("status"))) for p in pods)
            text = f"no {type_} within {seconds:g} s, but:\n{told}\n{states}"
            raise AssertionError(text) from None
        raise AssertionError("the log ended")

    async def events(self, lease: LeaseId | None = None) -> list[Event]:
        entity = Entity("lease", str(lease or self.lease))
        return [e async for e in self.log.read(entity) if isinstance(e, Event)]

    async def types(self) -> list[str]:
        return [event.type for event in await self.events()]

    async def up(self, group: dict[str, Any], hash: str = "h1", seconds: float = 30) -> None:
        """Healthy, and never said to have failed."""
        await self.put(group, hash)
        await self.until("deploy.healthy", hash, seconds=seconds)
        failed = [e.payload for e in await self.events() if e.type == "deploy.failed"]
        assert not [payload for payload in failed if payload.hash == hash], failed

    @property
    def namespace(self) -> str:
        return lease_name(self.lease)

    def pods(self) -> list[str]:
        """Names of those there."""
        found = self.deploy.cluster.of("Pod", self.namespace)
        return sorted(pod["metadata"]["name"] for pod in found)


async def eventually(true: Any, seconds: float = 20.0) -> None:
    """Look every 20 ms until it holds; ``true`` may be a coroutine function."""
    for _ in range(int(seconds * 50)):
        found = true()
        if await found if asyncio.iscoroutine(found) else found:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"not within {seconds:g} s")


@dataclass
class Place:
    """A cluster for one test."""

    plane: ControlPlane
    folder: Path
    api: Api
    kubelet: ActingKubelet
    address: str
    market: FakeMarket = field(default_factory=FakeMarket)
    providers: int = 0

    @property
    def lease(self) -> LeaseId:
        return self.lease_of(100)

    def lease_of(self, dseq: int) -> LeaseId:
        return LeaseId("akash1owner", dseq, 1, 1, self.address)

    def settings(self, token: str = "admin", **changes: Any) -> DeploySettings:
        known = KubernetesSettings.__struct_fields__
        kubernetes = {
            "kubeconfig": str(self.plane.kubeconfig(token)),
            "runtime_class": "",
            "no_room_grace": 2.0,
            "unready_seconds": 1,
            "watch_seconds": 10,
            **{key: changes.pop(key) for key in list(changes) if key in known},
        }  # fmt: skip
        plain: dict[str, Any] = {
            "driver": "kubernetes",
            "start_deadline": 20.0,
            "stop_grace": 1.0,
            "monitor_period": 1.0,
            "monitor_jitter": 0.1,
            "monitor_retry": 0.3,
            "monitor_retry_jitter": 0.1,
            "start_attempts": 3,
            **changes,
        }
        return DeploySettings(kubernetes=KubernetesSettings(**kubernetes), **plain)

    @contextlib.asynccontextmanager
    async def provider(self, **changes: Any) -> AsyncIterator[Provider]:
        clock = SystemClock()
        log = SqliteLog(self.folder / "events.sqlite3", clock)
        engine = Engine(log, clock)
        deploy = KubernetesService(
            log,
            engine,
            self.folder / "deploy",
            self.address,
            self.settings(**changes),
            market=self.market,
        )
        async with running(Group([log, deploy, engine])):
            yield Provider(log, deploy, self.lease)


def service(
    name: str = "web",
    image: str = "ok:1",
    *,
    count: int = 1,
    cpu: int = 100,
    hosts: tuple[str, ...] = ("a.test",),
    **more: Any,
) -> dict[str, Any]:
    return {
        "name": name,
        "image": image,
        "count": count,
        "env": ["A=b"],
        "resources": {
            "id": 1,
            "cpu": {"units": {"val": str(cpu)}},
            "memory": {"size": {"val": str(16 << 20)}},
            "storage": [{"name": "default", "size": {"val": str(16 << 20)}}],
            "gpu": {"units": {"val": "0"}},
        },
        "expose": [
            {"port": 8080, "externalPort": 80, "proto": "TCP", "global": True,
             "hosts": list(hosts)},
        ],
        **more,
    }  # fmt: skip


def group(*services: dict[str, Any]) -> dict[str, Any]:
    return {"name": "g", "services": list(services)}


@pytest.fixture(scope="session", autouse=True)
def quiet() -> Iterator[None]:
    """What is measured is printed, and should be found between the lines."""
    logs.set_level("error")
    yield
    logs.set_level("info")


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """The control plane, started once."""
    with control_plane(tmp_path_factory.mktemp("kubernetes")) as made:
        version = msgspec.json.decode(made.ask("/version"))["gitVersion"]
        print(f"\nKubernetes {version}: API server, controllers and scheduler at {made.url}")
        yield made


@pytest.fixture
async def cluster(plane: ControlPlane, tmp_path: Path) -> AsyncIterator[Place]:
    """One played node of 8 CPUs, and a provider's address nobody else has."""
    settings = KubernetesSettings(kubeconfig=str(plane.kubeconfig("admin")))
    async with Api(settings) as api:
        name = f"node-{secrets.token_hex(3)}"
        kubelet = ActingKubelet(api, {name: 8})
        await kubelet.register()
        playing = asyncio.ensure_future(kubelet.run())
        place = Place(plane, tmp_path, api, kubelet, f"akash1provider{secrets.token_hex(3)}")
        try:
            yield place
        finally:
            labels = {"leasehold.dev/provider": place.address}
            found, _ = await api.list("Namespace", labels=labels)
            for item in found:
                await api.delete("Namespace", item["metadata"]["name"])
            playing.cancel()
            await asyncio.wait({playing})
            await api.delete("Node", name)

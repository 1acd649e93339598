"""A node to deploy on: real keeper, runtime, network and proxy, in folders and groups of its own.

The host's network is not touched (``uplink`` off) unless a test asks for :func:`own_host`, which
runs it in a network namespace that stands for the host.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from leasehold.core.clock import SystemClock
from leasehold.core.service import Group, running
from leasehold.deploy.keeper import linux
from leasehold.deploy.service import DeployService
from leasehold.deploy.settings import DeploySettings
from leasehold.events.event import Entity, Event, NewEvent
from leasehold.events.log import ANY
from leasehold.events.sqlite import SqliteLog
from leasehold.model.events.lease import ManifestReceived
from leasehold.model.events.market import LeaseClosed
from leasehold.model.market import LeaseId
from leasehold.observe.engine import Engine

MIB = 1 << 20

LEASE = LeaseId("akash1owner", 100, 1, 1, "akash1provider")


@dataclass(frozen=True)
class FakeImage:
    reference: str
    digest: str
    config: dict[str, Any]
    layers: list[Path]
    bytes: int = 0


@dataclass
class FakeImages:
    """Images that are here already: one layer with busybox, ``config`` by reference."""

    layer: Path
    configs: dict[str, dict[str, Any]] = field(default_factory=dict)
    broken: dict[str, Exception] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    async def ensure(
        self, reference: str, *, credentials: Any = None, progress: Any = None, holder: str = ""
    ) -> FakeImage:
        self.asked.append(reference)
        if reference in self.broken:
            raise self.broken[reference]
        config = {"config": self.configs.get(reference, {})}
        return FakeImage(reference, f"sha256:{reference}", config, [self.layer])

    async def release(self, holder: str, *, keep: Any = ()) -> None:
        pass


@dataclass
class FakeVolumes:
    """Directories by name."""

    root: Path
    released: list[tuple[str, int]] = field(default_factory=list)

    async def ensure(
        self, owner: str, dseq: int, service: str, volume: str, size_bytes: int
    ) -> Path:
        path = self.root / owner / str(dseq) / service / volume
        path.mkdir(parents=True, exist_ok=True)
        return path

    async def release(self, owner: str, dseq: int) -> None:
        self.released.append((owner, dseq))

    def reserved_bytes(self) -> int:
        return 0


@dataclass
class FakeMarket:
    closed: list[tuple[LeaseId, int]] = field(default_factory=list)

    async def close_bid(self, lease: LeaseId, *, reason: int) -> None:
        self.closed.append((lease, reason))


@dataclass
class Provider:
    """A provider process as far as deploying goes."""

    log: SqliteLog
    deploy: DeployService

    async def put(self, group: dict[str, Any], hash: str, lease: LeaseId = LEASE) -> None:
        await self.say(lease, ManifestReceived(id=lease, hash=hash, group=group))

    async def close(self, lease: LeaseId = LEASE) -> None:
        await self.say(lease, LeaseClosed(id=lease, height=9))

    async def say(self, lease: LeaseId, fact: msgspec.Struct) -> None:
        await self.log.append(Entity("lease", str(lease)), ANY, [NewEvent.of(fact)])

    async def until(
        self, type_: str, hash: str | None = None, lease: LeaseId = LEASE, seconds: float = 30
    ) -> Event:
        """The first event of this type (and hash)."""
        async with asyncio.timeout(seconds):
            async for event in self.log.read(Entity("lease", str(lease)), watch=True):
                if not isinstance(event, Event) or event.type != type_:
                    continue
                if hash is None or event.payload.hash == hash:
                    return event
        raise AssertionError("the log ended")

    async def events(self, lease: LeaseId = LEASE) -> list[Event]:
        found = [e async for e in self.log.read(Entity("lease", str(lease)))]
        return [e for e in found if isinstance(e, Event)]

    async def up(self, group: dict[str, Any], hash: str = "h1", lease: LeaseId = LEASE) -> None:
        await self.put(group, hash, lease)
        failed = asyncio.ensure_future(self.until("deploy.failed", hash, lease, 60))
        healthy = asyncio.ensure_future(self.until("deploy.healthy", hash, lease, 60))
        await asyncio.wait({failed, healthy}, return_when=asyncio.FIRST_COMPLETED)
        if failed.done() and not failed.cancelled():
            healthy.cancel()
            raise AssertionError(failed.result().payload)
        failed.cancel()
        healthy.result()

    async def run(self, command: str, service: str = "web", lease: LeaseId = LEASE) -> str:
        """What a shell in the replica prints."""
        running_ = await self.deploy.exec(lease, service, ["/bin/sh", "-c", command])
        try:
            chunks = [data async for _, data in running_.output()]
            await running_.wait()
        finally:
            await running_.kill()
        return b"".join(chunks).decode(errors="replace")

    async def get(self, host: str = "hello.localhost", path: str = "/") -> tuple[int, bytes]:
        """``(status, body)`` of a request through ingress."""
        return await http_get(self.deploy.ingress.port, host, path)


async def eventually(true: Callable[[], Any], seconds: float = 10.0) -> None:
    """Look every 10 ms until it holds; ``true`` may be a coroutine function."""
    for _ in range(int(seconds * 100)):
        found = true()
        if await found if asyncio.iscoroutine(found) else found:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"not within {seconds:g} s")


async def http_get(port: int, host: str, path: str = "/") -> tuple[int, bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        return int(head.split(b" ", 2)[1]), body
    finally:
        writer.close()


@dataclass
class Machine:
    """A node that several providers, one after the other, run on."""

    folder: Path
    settings: DeploySettings
    images: FakeImages
    volumes: FakeVolumes
    market: FakeMarket

    @contextlib.asynccontextmanager
    async def provider(self, **changes: Any) -> AsyncIterator[Provider]:
        clock = SystemClock()
        log = SqliteLog(self.folder / "events.sqlite3", clock)
        engine = Engine(log, clock)
        deploy = DeployService(
            log,
            engine,
            self.images,
            self.volumes,
            self.folder / "deploy",
            msgspec.structs.replace(self.settings, **changes),
            market=self.market,
        )
        async with running(Group([log, deploy, engine])):
            yield Provider(log, deploy)


def service(
    name: str = "web",
    script: str = "mkdir -p /w; echo hello > /w/index.html; exec busybox httpd -f -p 80 -h /w",
    *,
    image: str = "img",
    hosts: Sequence[str] | None = ("hello.localhost",),
    count: int = 1,
    memory: int = 64 * MIB,
    disk: int = 32 * MIB,
    volumes: Sequence[dict[str, Any]] = (),
    exposes: Sequence[dict[str, Any]] | None = None,
    env: Sequence[str] = (),
) -> dict[str, Any]:
    """A manifest service. ``volumes``: {name, mount, size, persistent, class}."""
    if exposes is None:
        exposes = [{"port": 80, "proto": "TCP", "global": True, "hosts": list(hosts or [])}]
    storage: list[dict[str, Any]] = [{"name": "default", "size": {"val": str(disk)}}]
    for v in volumes:
        attributes = [
            {"key": "persistent", "value": str(v.get("persistent", False)).lower()},
            {"key": "class", "value": v.get("class", "default")},
        ]
        storage.append(
            {"name": v["name"], "size": {"val": str(v["size"])}, "attributes": attributes}
        )
    return {
        "name": name,
        "image": image,
        "command": ["/bin/sh", "-c", script],
        "env": list(env),
        "count": count,
        "resources": {
            "id": 1,
            "cpu": {"units": {"val": "4000"}},
            "memory": {"size": {"val": str(memory)}},
            "storage": storage,
            "gpu": {"units": {"val": "0"}},
            "endpoints": [],
        },
        "expose": list(exposes),
        "params": {"storage": [{"name": v["name"], "mount": v["mount"]} for v in volumes]}
        if volumes
        else None,
    }


def group(*services: dict[str, Any]) -> dict[str, Any]:
    return {"name": "g", "services": list(services)}


@pytest.fixture(scope="session")
def busybox_layer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image layer with a shell, made once."""
    layer = tmp_path_factory.mktemp("image") / "layer"
    (layer / "bin").mkdir(parents=True)
    (layer / "tmp").mkdir(mode=0o1777)
    shutil.copy("/bin/busybox", layer / "bin/busybox")
    listed = subprocess.run(["/bin/busybox", "--list"], capture_output=True, text=True, check=True)
    for applet in listed.stdout.split():
        if applet != "busybox":
            (layer / "bin" / applet).symlink_to("busybox")
    return layer


def settings_for(cgroup: str) -> DeploySettings:
    return DeploySettings(
        cgroup_parent=cgroup,
        ingress_address="127.0.0.1",
        ingress_ports=(0,),
        uplink=False,
        stop_grace=0.5,
        restart_first=0.05,
        drain=15.0,
    )


@pytest.fixture
def machine(tmp_path: Path, busybox_layer: Path) -> Iterator[Machine]:
    if os.geteuid() != 0:
        pytest.skip("containers need root")
    made = Machine(
        tmp_path,
        settings_for(f"/leasehold-test-{secrets.token_hex(4)}"),
        FakeImages(busybox_layer),
        FakeVolumes(tmp_path / "volumes"),
        FakeMarket(),
    )
    yield made
    asyncio.run(_clear(made))


async def _clear(machine: Machine) -> None:
    """Whatever a failed test left."""
    if (machine.folder / "deploy/keeper").exists():
        async with machine.provider() as provider:
            await provider.deploy.teardown_all()


@pytest.fixture
def own_host() -> Callable[[Callable[[], Coroutine[Any, Any, None]]], None]:
    """``own_host(main)`` runs a coroutine function in a network namespace of its own."""

    def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
        failure: list[BaseException] = []

        def inside() -> None:
            try:
                linux.unshare(linux.CLONE_NEWNET)
                subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
                asyncio.run(main())
            except BaseException as error:
                failure.append(error)

        thread = threading.Thread(target=inside)
        thread.start()
        thread.join()
        if failure:
            raise failure[0]

    return run

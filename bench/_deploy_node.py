"""A node for the deploy benches: real runtime, network and ingress, images that are here already.

The benches run in network and mount namespaces of their own (peers such as podman rewrite the
host's firewall), so a bench is a child process: :func:`isolated` starts it and reads its line.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leasehold.core.clock import SystemClock
from leasehold.core.service import Group, running
from leasehold.deploy.service import DeployService
from leasehold.deploy.settings import DeploySettings
from leasehold.deploy.testing import MemoryImage, MemoryVolumes
from leasehold.events.event import Entity, Event, NewEvent
from leasehold.events.log import ANY
from leasehold.events.sqlite import SqliteLog
from leasehold.model.events.lease import ManifestReceived
from leasehold.model.events.market import LeaseClosed
from leasehold.model.market import LeaseId
from leasehold.observe.engine import Engine

MIB = 1 << 20
SCRIPT = "mkdir -p /w; echo hello > /w/index.html; exec busybox httpd -f -p 80 -h /w"


def isolated(bench: str, quick: bool) -> dict[str, Any]:
    """Run ``bench.<bench>.measure(quick)`` in a child with namespaces of its own."""
    if os.geteuid() != 0:
        raise SystemExit("this bench starts containers and needs root")
    code = (
        "import json, subprocess, sys; subprocess.run(['ip', 'link', 'set', 'lo', 'up']);"
        f"from bench import {bench} as b; json.dump(b.measure({quick}), sys.stdout)"
    )
    command = ["unshare", "-n", "-m", "--propagation", "private", sys.executable, "-c", code]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def busybox_layer(folder: Path) -> Path:
    """An image of one layer: busybox and its names."""
    layer = folder / "layer"
    (layer / "bin").mkdir(parents=True)
    (layer / "tmp").mkdir(mode=0o1777)
    shutil.copy("/bin/busybox", layer / "bin/busybox")
    for name in ("sh", "mkdir", "echo", "httpd", "yes", "head"):
        (layer / "bin" / name).symlink_to("busybox")
    return layer


class Images:
    def __init__(self, layer: Path) -> None:
        self.layer = layer

    async def ensure(
        self, reference: str, *, credentials: Any = None, progress: Any = None, holder: str = ""
    ) -> MemoryImage:
        return MemoryImage(reference, "sha256:bench", {}, [self.layer])

    async def release(self, holder: str, *, keep: Collection[str] = ()) -> None:
        pass


def lease(number: int) -> LeaseId:
    return LeaseId("bench", number, 1, 1, "provider")


def group(number: int, script: str = SCRIPT) -> dict[str, Any]:
    service = {
        "name": "web",
        "image": "bench",
        "command": ["/bin/sh", "-c", script],
        "count": 1,
        "resources": {
            "id": 1,
            "cpu": {"units": {"val": "500"}},
            "memory": {"size": {"val": str(32 * MIB)}},
            "storage": [{"name": "default", "size": {"val": str(32 * MIB)}}],
            "gpu": {"units": {"val": "0"}},
        },
        "expose": [{"port": 80, "proto": "TCP", "global": True, "hosts": [f"l{number}.localhost"]}],
    }
    return {"name": "g", "services": [service]}


@dataclass
class Node:
    log: SqliteLog
    deploy: DeployService
    folder: Path

    async def accept(self, number: int, group: dict[str, Any]) -> None:
        """The manifest of a lease arrives."""
        fact = ManifestReceived(id=lease(number), hash="h1", group=group)
        await self._append(number, NewEvent.of(fact))

    async def close(self, number: int) -> None:
        await self._append(number, NewEvent.of(LeaseClosed(id=lease(number), height=1)))

    async def _append(self, number: int, event: NewEvent) -> None:
        await self.log.append(Entity("lease", str(lease(number))), ANY, [event])

    async def until(self, number: int, type_: str) -> Event:
        async for event in self.log.read(Entity("lease", str(lease(number))), watch=True):
            if isinstance(event, Event) and event.type in (type_, "deploy.failed"):
                if event.type != type_:
                    raise RuntimeError(event.data.decode())
                return event
        raise AssertionError("unreachable")


@contextlib.asynccontextmanager
async def node(**settings: Any) -> AsyncIterator[Node]:
    """A node that leaves nothing behind."""
    folder = Path(tempfile.mkdtemp(prefix="leasehold-bench-"))
    clock = SystemClock()
    log = SqliteLog(folder / "events.sqlite3", clock)
    engine = Engine(log, clock)
    defaults = DeploySettings(
        cgroup_parent=f"/leasehold-bench-{secrets.token_hex(4)}",
        ingress_address="127.0.0.1",
        ingress_ports=(0,),
        stop_grace=0.0,
        **settings,
    )
    deploy = DeployService(
        log, engine, Images(busybox_layer(folder)), MemoryVolumes(), folder / "deploy", defaults
    )
    try:
        async with running(Group([log, deploy, engine])):
            try:
                yield Node(log, deploy, folder)
            finally:
                await deploy.teardown_all()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def first_answer(port: int, host: str, address: str = "127.0.0.1") -> None:
    """Ask until the answer is 200."""
    for _ in range(10_000):
        try:
            reader, writer = await asyncio.open_connection(address, port)
        except OSError:
            await asyncio.sleep(0.001)
            continue
        try:
            writer.write(f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            if b" 200 " in (await reader.readline()):
                return
        except OSError:
            pass
        finally:
            writer.close()
        await asyncio.sleep(0.001)
    raise TimeoutError(f"{host} never answered")

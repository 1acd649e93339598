"""Services as real containers: called, limited, replaced, restarted, gone without a trace."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from leasehold.core.errors import LeaseholdError
from leasehold.node.cgroups import box_of
from leasehold.node.containers import OciContainers
from leasehold.node.distro import Limits, PackageDistro, ServiceDistro
from leasehold.node.settings import NodeSettings
from leasehold.node.supervisor import ROOT
from leasehold.node.testing import node_in, until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="containers need root")

SETTINGS = NodeSettings(health_sec=0, deploy_attempts=1, ready_timeout_sec=20)
SERVICE = """
import os
from leasehold.node.sdk import Service
service = Service()
@service.function
def look():
    return {"pid": os.getpid(), "version": VERSION, "host": os.uname().nodename,
            "interfaces": os.listdir("/sys/class/net") if os.path.isdir("/sys/class/net") else [],
            "processes": [p for p in os.listdir("/proc") if p.isdigit()]}
@service.function
def keep(text): open("/data/kept", "w").write(text)
@service.function
def kept(): return open("/data/kept").read()
@service.function
def die(): os._exit(9)
service.serve()
"""


class HostImage:
    """The lower layer is this machine's own root, the upper one has the service."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.held: set[str] = set()

    async def release(self, holder: str, *, keep: object = ()) -> None:
        self.held.discard(holder)

    async def ensure(self, reference: str, *, holder: str) -> Any:
        self.held.add(holder)
        version = reference[-1]
        layer = self.root / f"layer-{version}"
        (layer / "opt").mkdir(parents=True, exist_ok=True)
        (layer / "run" / "leasehold").mkdir(parents=True, exist_ok=True)
        (layer / "data").mkdir(exist_ok=True)
        text = SERVICE.replace("VERSION", version)
        (layer / "opt" / "service.py").write_text(text)

        class Image:
            digest = reference.partition("@")[2]
            layers = (Path("/"), layer)
            config: dict[str, Any] = {}

        return Image()


def package(version: int) -> PackageDistro:
    service = ServiceDistro(
        name="boxed",
        image="r/boxed@sha256:" + "0" * 63 + str(version),
        run=(sys.executable, "-S", "/opt/service.py"),
        env={"PYTHONPATH": ROOT},
        limits=Limits(memory_mb=128, pids=16),
    )
    return PackageDistro(name="box", version=str(version), services=(service,))


@pytest.fixture
def boxes() -> Iterator[Path]:
    """A folder on another file system than the root: layers must not contain one another."""
    folder = Path(tempfile.mkdtemp(dir="/dev/shm"))
    yield folder
    shutil.rmtree(folder)


def in_group(name: str) -> list[str]:
    """The processes in control groups called so."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cgroup"):
        with contextlib.suppress(OSError):  # it may end while we look
            if name in path.read_text():
                found.append(path.parent.name)
    return found


async def test_a_container_service(tmp_path: Path, boxes: Path) -> None:
    images = HostImage(boxes / "layers")
    async with node_in(
        tmp_path / "node",
        package(1),
        settings=SETTINGS,
        containers=lambda supervisor: OciContainers(supervisor, boxes / "run", images),
    ) as node:
        result = node.deployer.results["box"]
        assert result.status == "ready", result.message

        async def call(function: str, *args: Any) -> dict[str, Any]:
            reply: dict[str, Any] = await node.call("boxed", function, list(args))
            return reply

        id = node.find("boxed", spell=False).id
        assert images.held == {f"node service {id}"}
        seen = await call("look")
        assert seen["version"] == 1
        assert seen["pid"] < 50
        assert len(seen["processes"]) < 5  # It sees its own processes alone.
        assert seen["interfaces"] in ([], ["lo"]) or "eth0" not in seen["interfaces"]
        await call("keep", "over the update")
        node.extra = {"box": package(2)}
        assert (await node.reload())["box"].changes == ["replaced boxed"]
        assert (await call("look"))["version"] == 2
        assert (await call("kept"))["value"] == "over the update"
        with pytest.raises(LeaseholdError, match="does not answer"):
            await call("die")

        async def back() -> bool:
            with contextlib.suppress(LeaseholdError):
                return bool((await call("look"))["version"] == 2)
            return False

        await until(back)
        assert node.list_instances(spells=False)[0]["kind"] == "container"
        # The runtime is killed and the container lives on; it goes with the service all the same.
        os.kill(node.supervisor.states[node.find("boxed", spell=False).id].pid, signal.SIGKILL)
        node.extra = {}
        await node.reload()
        assert not node.journal.instances
        assert not images.held
        assert not await node.supervisor.refresh()
        assert [p.name for p in (boxes / "run").iterdir() if p.name != "state"] == []
        assert str(boxes) not in Path("/proc/self/mounts").read_text()
        box = box_of(str(tmp_path / "node"), id)
        assert not in_group(box)
        assert not list(Path("/sys/fs/cgroup").glob(f"*{box}"))

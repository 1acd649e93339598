"""A real containerd: as a client of the mirror, and as the store itself."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from leasehold.core.errors import LeaseholdError
from leasehold.core.service import running
from leasehold.images import build, client_setup
from leasehold.images.containerd import ContainerdStore
from leasehold.images.download import Downloads
from leasehold.images.memory import MemoryOrigin
from leasehold.images.ports import ContentKind
from leasehold.images.service import Images
from leasehold.images.settings import ImagesSettings, Registry
from leasehold.model.digest import Digest

CONFIG = """
version = 2
root = "{root}/root"
state = "{root}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]
[grpc]
  address = "{root}/c.sock"
[ttrpc]
  address = "{root}/t.sock"
"""


@dataclass
class Containerd:
    root: Path
    process: subprocess.Popen[bytes]

    @property
    def socket(self) -> str:
        return str(self.root / "c.sock")

    async def ctr(self, *args: str, check: bool = True) -> str:
        process = await asyncio.create_subprocess_exec(
            "ctr", "--address", self.socket, "--namespace", "k8s.io", *args,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        out, _ = await process.communicate()
        assert not check or process.returncode == 0, out.decode()
        return out.decode()


def start(root: Path) -> subprocess.Popen[bytes]:
    with (root / "log").open("ab") as log:
        process = subprocess.Popen(
            ["containerd", "--config", str(root / "config.toml")], stdout=log, stderr=log
        )
    deadline = time.monotonic() + 20
    while subprocess.run(
        ["ctr", "--address", str(root / "c.sock"), "version"], capture_output=True
    ).returncode:
        assert process.poll() is None, (root / "log").read_text()[-2000:]
        assert time.monotonic() < deadline, "containerd did not start"
        time.sleep(0.05)
    return process


@pytest.fixture
def containerd() -> Iterator[Containerd]:
    with tempfile.TemporaryDirectory(prefix="ctd") as name:  # a socket's path must be short
        root = Path(name)
        (root / "config.toml").write_text(CONFIG.format(root=root))
        found = Containerd(root, start(root))
        yield found
        found.process.send_signal(signal.SIGCONT)
        found.process.kill()
        found.process.wait()


@pytest.mark.parametrize("strict", [False, True])
async def test_containerd_pulls_through_the_mirror(
    registry: Any, containerd: Containerd, tmp_path: Path, strict: bool
) -> None:
    """With the files ``leasehold node setup containerd`` writes.

    By tag the registry is asked past us, or with ``strict`` nobody: containerd 1.6 adds the
    registry by itself when the file names no server, so strict names the mirror as that too.
    """
    built = build.busybox({"x": os.urandom(300_000)})
    name = await build.push(built, registry.host, f"ctd/app{strict:d}", "1")
    settings = ImagesSettings(registries=(Registry(name=registry.host),), mirror_port=0)
    async with running(Images(tmp_path / "node", settings=settings, mirror=True)) as node:
        assert node.mirror_server is not None
        certs = tmp_path / "certs.d"
        client_setup.containerd(
            [registry.host], node.mirror_server.url, strict=strict, folder=certs
        )
        pull = ("images", "pull", "--hosts-dir", str(certs), "--snapshotter", "native")
        await containerd.ctr(*pull, f"{name.rpartition(':')[0]}@{built.digest}")
        for layer in built.layers:
            assert await node.store.has(layer.digest), "containerd went past the mirror"
        by_tag = await containerd.ctr(*pull, name, check=not strict)
        assert ("503 Service Unavailable" in by_tag) == strict, by_tag
        assert len(client_setup.remove_containerd(folder=certs)) == 1


async def test_containerds_store_is_a_store(containerd: Containerd, tmp_path: Path) -> None:
    settings = ImagesSettings(containerd_socket=containerd.socket)
    blob = os.urandom(5_000_000)
    origin = MemoryOrigin(blob)
    digest = Digest.of(blob)
    async with (
        running(ContainerdStore(tmp_path, settings)) as store,
        running(Downloads(store, origin, settings)) as downloads,
    ):
        assert not await store.has(digest) and await store.open(digest) is None
        await downloads.get(digest, ContentKind.BLOB, "r", "a", len(blob)).finish()
        assert await store.size(digest) == len(blob)
        assert str(digest) in await containerd.ctr("content", "ls", "-q")
        reader = await store.open(digest)
        assert reader is not None
        assert await reader.read(4_999_990, 100) == blob[-10:]
        assert await reader.read(100, 2_000_000) == blob[100:2_000_100]
        assert await store.verify(digest) is True
        assert [d async for d in store.digests()] == [digest]
        assert list((tmp_path / "tmp").iterdir()) == [], "no second copy"
        # A fresh pull is held by a lease: the garbage collector leaves it alone.
        assert "leasehold-" in await containerd.ctr("leases", "ls", "-q")
        # Writing it again is harmless; other bytes are refused.
        writer = await store.writer(digest, len(blob))
        await writer.write(0, blob)
        await writer.commit()
        bad = await store.writer(Digest.of(b"other"), 4)
        await bad.write(0, b"evil")
        with pytest.raises(LeaseholdError, match="hashes to"):
            await bad.commit()
        assert await store.delete(digest) and not await store.has(digest)
        assert not await store.delete(digest)


async def test_an_unavailable_store_is_not_a_miss(containerd: Containerd, tmp_path: Path) -> None:
    settings = ImagesSettings(containerd_socket=containerd.socket)
    async with running(ContainerdStore(tmp_path, settings)) as store:
        digest = Digest.of(b"x")
        assert not await store.has(digest)
        containerd.process.kill()
        containerd.process.wait()
        for question in (store.has(digest), store.open(digest), store.size(digest)):
            with pytest.raises(LeaseholdError) as caught:
                await question
            assert caught.value.code == "store_unavailable"
        containerd.process = start(containerd.root)
        async with asyncio.timeout(20):
            while True:
                try:
                    assert not await store.has(digest)
                    break
                except LeaseholdError:
                    await asyncio.sleep(0.1)  # grpc waits before it connects again


async def test_an_image_is_unpacked_out_of_containerds_store(
    registry: Any, containerd: Containerd, tmp_path: Path
) -> None:
    built = build.busybox()
    name = await build.push(built, registry.host, "ctd/store", "1")
    settings = ImagesSettings(store="containerd", containerd_socket=containerd.socket)
    async with running(Images(tmp_path, settings=settings)) as images:
        image = await images.ensure(name)
        assert (image.layers[0] / "bin/busybox").exists()
        assert built.layers[0].digest in await containerd.ctr("content", "ls", "-q")
        assert (await images.keeping.verify()).bad == []

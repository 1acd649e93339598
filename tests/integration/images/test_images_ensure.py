"""Images pulled from a real docker-registry, unpacked, and refused in plain words."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from leasehold.core.errors import LeaseholdError
from leasehold.core.service import running
from leasehold.images import build
from leasehold.images.service import Images, Progress
from leasehold.images.settings import ImagesSettings


@pytest.fixture
async def images(tmp_path: Path) -> AsyncIterator[Images]:
    async with running(Images(tmp_path / "images", settings=ImagesSettings())) as it:
        yield it


async def test_a_pulled_image_is_unpacked_and_runs(registry: Any, images: Images) -> None:
    built = build.busybox({"www/index.html": b"hello", "etc/.wh.group": b""}, {"Cmd": ["/bin/id"]})
    name = await build.push(built, registry.host, "ensure/bb", "1")
    seen: list[Progress] = []
    image = await images.ensure(name, progress=seen.append)
    assert image.digest == built.digest
    assert image.config["config"]["Cmd"] == ["/bin/id"]
    assert image.bytes == built.size
    assert image.sources == {"origin": built.size + len(built.manifest)}
    assert (image.layers[1] / "www/index.html").read_bytes() == b"hello"
    whiteout = (image.layers[1] / "etc/group").lstat()
    assert stat.S_ISCHR(whiteout.st_mode) and whiteout.st_rdev == 0
    said = await asyncio.to_thread(
        subprocess.run,
        ["chroot", str(image.layers[0]), "/bin/echo", "runs"],
        capture_output=True,
        check=True,
    )
    assert said.stdout == b"runs\n"
    assert seen[0].phase == "resolving" and seen[-1].phase == "ready"
    assert seen[-1].bytes == seen[-1].total == sum(len(x.blob) for x in built.layers)
    assert seen[-1].layers_done == 2

    again = await images.ensure(name)
    assert set(again.sources) == {"cache"}
    assert again.layers == image.layers


async def test_many_at_once_take_one_copy_of_each_digest(registry: Any, images: Images) -> None:
    built = build.busybox({"a": b"x" * 1_000_000}, compression="zstd")
    name = await build.push(built, registry.host, "ensure/many", "1")
    before = registry.logs.read_text().count("GET /v2/ensure/many/")
    done = await asyncio.gather(*(images.ensure(name) for _ in range(10)))
    assert len({tuple(i.layers) for i in done}) == 1
    gets = registry.logs.read_text().count('"GET /v2/ensure/many/') - before
    assert gets == 2 + len(built.layers)


async def test_what_does_not_exist_is_said(registry: Any, images: Images) -> None:
    with pytest.raises(LeaseholdError) as caught:
        await images.ensure(f"{registry.host}/ensure/nothing:1")
    assert caught.value.code == "image_not_found"
    assert "does not exist" in caught.value.message


async def test_a_dead_registry_is_said_and_known_tags_survive_it(
    own_registry: Any, tmp_path: Path
) -> None:
    process, registry = own_registry
    name = await build.push(build.busybox(), registry.host, "known", "1")
    settings = ImagesSettings(origin_attempts=1, known_tag_seconds=60)
    async with running(Images(tmp_path / "a", settings=settings)) as images:
        await images.ensure(name)
        process.kill()
        process.wait()
        assert set((await images.ensure(name)).sources) == {"cache"}
        with pytest.raises(LeaseholdError) as caught:
            await images.ensure(f"{registry.host}/known:2")
        assert caught.value.code == "registry_unreachable"
    # The memory outlives the node; without permission to use it, the tag is gone with its registry.
    async with running(Images(tmp_path / "a", settings=settings)) as images:
        assert (await images.ensure(name)).layers
    none = ImagesSettings(origin_attempts=1, known_tag_seconds=0)
    async with running(Images(tmp_path / "a", settings=none)) as images:
        with pytest.raises(LeaseholdError) as caught:
            await images.ensure(name)
        assert caught.value.code == "registry_unreachable"


async def test_skopeo_pushed_images_are_read(registry: Any, images: Images, tmp_path: Path) -> None:
    """Docker's media types, as skopeo writes them."""
    name = await build.push(build.busybox(), registry.host, "ensure/skopeo", "oci")
    target = f"{registry.host}/ensure/skopeo:docker"
    await asyncio.to_thread(
        subprocess.run,
        ["skopeo", "copy", "--quiet", "--format", "v2s2", "--src-tls-verify=false",
         "--dest-tls-verify=false", f"docker://{name}", f"docker://{target}"],
        check=True, timeout=60,
    )  # fmt: skip
    assert (await images.ensure(target)).layers


async def test_a_small_budget_does_not_take_what_is_being_put_together(
    registry: Any, tmp_path: Path
) -> None:
    """More than the whole budget: what an image needs stays until it is unpacked, then leaves."""
    layers = [build.layer({f"f{i}": os.urandom(500_000)}) for i in range(6)]
    name = await build.push(build.image(layers), registry.host, "ensure/budget", "1")
    settings = ImagesSettings(budget_bytes=100_000, headroom_percent=0)
    async with running(Images(tmp_path / "images", settings=settings)) as images:
        for _ in range(3):
            image = await images.ensure(name)
            assert (image.layers[5] / "f5").stat().st_size == 500_000
        assert images.evictor is not None
        await images.evictor.sweep()
        assert images.store.bytes <= 100_000
        assert (await images.ensure(name)).layers == image.layers, "unpacked layers are enough"
        gone = await images.keeping.gc(keep_seconds=0)
        assert gone.images == [name] and gone.layers == 6
        assert not image.layers[5].exists()

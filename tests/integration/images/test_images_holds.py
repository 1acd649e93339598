"""An image a lease runs from stays, through eviction, collection and a restart, until released."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from leasehold.app.adapters import DeployImages
from leasehold.core.service import running
from leasehold.images import build
from leasehold.images.service import Images
from leasehold.images.settings import ImagesSettings

TIGHT = ImagesSettings(budget_bytes=1, headroom_percent=0)
"""Everything that may leave does."""


async def test_a_held_image_outlives_everything_but_its_lease(
    registry: Any, tmp_path: Path
) -> None:
    used = build.busybox({"used": b"u" * 100_000})
    spare = build.busybox({"spare": b"s" * 100_000})
    used_name = await build.push(used, registry.host, "holds/used", "1")
    spare_name = await build.push(spare, registry.host, "holds/spare", "1")
    mine = [used.digest, *(layer.digest for layer in used.layers)]
    async with running(Images(tmp_path, settings=TIGHT)) as images:
        deploy = DeployImages(images)
        image = await deploy.ensure(used_name, holder="lease/1")
        await deploy.ensure(spare_name)
        collected = await images.keeping.gc(keep_seconds=0)
        assert collected.images == [spare_name]
        assert all([await images.store.has(digest) for digest in mine])
        assert not await images.store.has(spare.layers[1].digest)
        assert all(Path(layer).is_dir() for layer in image.layers)
    async with running(Images(tmp_path, settings=TIGHT)) as images:
        await images.keeping.gc(keep_seconds=0)
        assert all([await images.store.has(digest) for digest in mine]), "restarted, still held"
        deploy = DeployImages(images)
        await deploy.release("lease/1", keep={str(used.digest)})
        assert len(images.keeping.list()) == 1, "an update that keeps the image keeps the hold"
        await images.keeping.gc(keep_seconds=0)
        assert await images.store.has(used.digest)
        await deploy.release("lease/1")
        assert (await images.keeping.gc(keep_seconds=0)).images == [used_name]
        assert not any([await images.store.has(digest) for digest in mine])
        assert not any(Path(layer).exists() for layer in image.layers)

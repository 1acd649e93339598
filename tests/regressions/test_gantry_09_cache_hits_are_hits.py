"""A request that had to fetch is a miss, however it is answered in the end.

The original counted the re-open after a peer fetch, and peers' requests, as cache hits. Count a hit
wherever ``Mirror._content`` opens the store (also after a download) and this sees three.
"""

from __future__ import annotations

from pathlib import Path

import httpx

from leasehold.core.service import running
from leasehold.images import build
from leasehold.images.memory import MemoryOrigin
from leasehold.images.mirror import HITS, MISSES
from leasehold.images.service import Images
from leasehold.images.settings import ImagesSettings


async def test_one_miss_then_hits(tmp_path: Path) -> None:
    origin = MemoryOrigin()
    built = build.image([build.layer({"x": b"1" * 1_000_000})])
    origin.add(built, "1")
    node = Images(tmp_path, settings=ImagesSettings(mirror_port=0), origin=origin, mirror=True)
    async with running(node):
        assert node.mirror_server is not None
        hits, misses = HITS._value.get(), MISSES._value.get()
        async with httpx.AsyncClient(base_url=node.mirror_server.url) as client:
            path = f"/v2/a/manifests/{built.digest}?ns=r.example"
            for expected in ((0, 1), (1, 1), (2, 1)):
                assert (await client.get(path)).content == built.manifest
                assert (HITS._value.get() - hits, MISSES._value.get() - misses) == expected

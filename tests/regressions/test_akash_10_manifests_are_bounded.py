"""Defect 10: accepted manifests piled up without bound in the manager.

Seen failing without the ``del state.kept[:-keep]`` of ``state.fold_deployment``.
"""

from __future__ import annotations

from leasehold.core.clock import VirtualClock
from leasehold.manifest.testing import OWNER, changed, simple, world


def test_only_the_newest_are_kept(virtual: VirtualClock) -> None:
    async def main() -> None:
        w = world(virtual, keep_manifests=4, owner_burst=1000)
        async with w.up() as service:
            body = await w.deploy(simple())
            await w.win()
            for n in range(20):
                sent = changed(body, image=f"nginx:{n}")
                await w.update(sent)
                await service.submit(OWNER, 1, sent)
                await service.submit(OWNER, 1, sent)
            images = [h["images"]["web"] for h in await service.history(OWNER, 1)]
            assert images == ["nginx:19", "nginx:18", "nginx:17", "nginx:16"]

    virtual.run(main)

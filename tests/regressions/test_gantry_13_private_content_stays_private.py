"""That the bytes are on the node does not mean that everybody may use them.

The original served private content to the whole cluster once anybody had pulled it. Make
``Images.authorize`` return at once and the stranger below gets the image; the pass of a revoked
tenant ends within the recheck time (virtual here).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from leasehold.core.clock import VirtualClock
from leasehold.core.errors import LeaseholdError
from leasehold.core.service import running
from leasehold.images import build
from leasehold.images.memory import MemoryOrigin
from leasehold.images.ports import Credentials, FailureClass, OriginError
from leasehold.images.service import Images
from leasehold.images.settings import ImagesSettings

GOOD = Credentials("tenant", "pw")


def test_only_ones_own_credentials_open_a_private_image(
    virtual: VirtualClock, tmp_path: Path
) -> None:
    async def main() -> None:
        origin = MemoryOrigin(clock=virtual)
        built = build.image([build.layer({"x": b"secret"})])
        origin.add(built, "1")
        origin.credentials = GOOD
        pinned = f"r.example/a@{built.digest}"
        settings = ImagesSettings(access_recheck_seconds=300, access_bound_seconds=3600)
        node = Images(tmp_path, virtual, settings, origin=origin)
        async with running(node):
            assert (await node.ensure(pinned, credentials=GOOD)).layers
            for who in (None, Credentials("tenant", "guess")):
                with pytest.raises(LeaseholdError) as caught:
                    await node.ensure(pinned, credentials=who)
                assert caught.value.code == "image_access_denied"

            # The registry is down: a pass holds for its bound, and no longer.
            origin.failure = OriginError(FailureClass.TRANSIENT, "down")
            await virtual.sleep(3000)
            assert (await node.ensure(pinned, credentials=GOOD)).layers
            await virtual.sleep(700)
            with pytest.raises(LeaseholdError):
                await node.ensure(pinned, credentials=GOOD)

            # The registry is back and has revoked it: refused after the recheck time.
            origin.failure = None
            assert (await node.ensure(pinned, credentials=GOOD)).layers
            origin.credentials = Credentials("tenant", "rotated")
            assert (await node.ensure(pinned, credentials=GOOD)).layers, "within the bound"
            await virtual.sleep(301)
            with pytest.raises(LeaseholdError) as caught:
                await node.ensure(pinned, credentials=GOOD)
            assert caught.value.code == "image_access_denied"

    virtual.run(main)


def test_a_public_image_outlives_its_registry_as_long_as_its_tag(
    virtual: VirtualClock, tmp_path: Path
) -> None:
    async def main() -> None:
        origin = MemoryOrigin(clock=virtual)
        built = build.image([build.layer({"x": b"public"})])
        origin.add(built, "1")
        settings = ImagesSettings(access_bound_seconds=3600, known_tag_seconds=86_400)
        async with running(Images(tmp_path, virtual, settings, origin=origin)) as node:
            await node.ensure("r.example/a:1")
            origin.failure = OriginError(FailureClass.TRANSIENT, "down")
            await virtual.sleep(80_000)
            assert (await node.ensure("r.example/a:1")).layers
            await virtual.sleep(7_000)
            with pytest.raises(LeaseholdError):
                await node.ensure("r.example/a:1")

    virtual.run(main)

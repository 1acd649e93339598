"""The bootstrap window ends after its seconds or with a quarter of the table, whichever is first.

The original's text said so; its code wanted both, so that a node with a full table still declined
direct pulls for 30 s, and one with an empty table for ever. Write ``or`` as ``and`` (or leave
either half out) in ``ImagesNode._bootstrapping`` and one of the two moments here is refused.

Its text also said that a second request for a digest waits, where its code declined it: here both
share one download, and one pull.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from leasehold.core.clock import VirtualClock
from leasehold.core.service import running
from leasehold.images.membership import Member, Members
from leasehold.images.memory import MemoryOrigin
from leasehold.images.node import ImagesNode
from leasehold.images.ports import ContentKind
from leasehold.images.service import Images
from leasehold.model.digest import Digest
from leasehold.p2p.keys import KeyPair


def node(clock: VirtualClock, folder: Path) -> ImagesNode:
    members = Members([Member(node=f"node-{i}") for i in range(9)])
    made = ImagesNode(folder, "node-0", clock=clock, members=members, keys=KeyPair.generate())
    made._began = clock.monotonic()
    return made


def test_time_alone_or_the_table_alone(virtual: VirtualClock, tmp_path: Path) -> None:
    async def main() -> None:
        lonely, popular = node(virtual, tmp_path / "a"), node(virtual, tmp_path / "b")
        assert lonely._bootstrapping()
        assert popular._bootstrapping()
        for _ in range(2):  # a quarter of eight others
            popular.kad.table.add(KeyPair.generate().peer_id)
        assert not popular._bootstrapping(), "at once: it knows enough others"
        await virtual.sleep(29)
        assert lonely._bootstrapping()
        await virtual.sleep(2)
        assert not lonely._bootstrapping(), "it waited long enough for others"

    virtual.run(main)


async def test_a_second_request_waits_for_the_first(tmp_path: Path) -> None:
    blob = b"b" * 200_000
    origin = MemoryOrigin(blob)
    origin.limit = 1000
    digest = Digest.of(blob)
    async with running(Images(tmp_path, origin=origin)) as images:
        both = [
            asyncio.ensure_future(images.downloads.get(digest, ContentKind.BLOB, "r", "a").finish())
            for _ in range(2)
        ]
        await asyncio.sleep(0.05)
        assert not any(one.done() for one in both)
        origin.allow(1 << 62)
        await asyncio.gather(*both)
        assert origin.bytes == len(blob), "once for both"

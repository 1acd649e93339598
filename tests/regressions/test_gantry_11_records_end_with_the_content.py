"""What is not here any more is not announced any more.

In the original, records outlived their content: half of the peer fetches of a purged demo were 404.
Here every way out withdraws: eviction, and ``verify`` when it finds a bad blob; and nothing is
announced before it is committed. Drop the ``withdraw`` in ``Evictor.sweep`` or in
``Housekeeping.verify`` and this fails.
"""

from __future__ import annotations

from pathlib import Path

from leasehold.core.service import running
from leasehold.images.memory import MemoryOrigin
from leasehold.images.ports import ContentKind
from leasehold.images.service import Images
from leasehold.images.settings import ImagesSettings
from leasehold.model.digest import Digest


class Records:
    """An announcer that remembers; everybody else holds everything."""

    def __init__(self) -> None:
        self.held: set[Digest] = set()

    def announce(self, digest: Digest) -> None:
        self.held.add(digest)

    def withdraw(self, digest: Digest) -> None:
        self.held.discard(digest)

    async def holder_count(self, digest: Digest) -> int:
        return 100


async def test_every_way_out_withdraws(tmp_path: Path) -> None:
    blobs = [bytes([i]) * 60_000 for i in range(4)]
    records = Records()
    settings = ImagesSettings(budget_bytes=100_000, headroom_percent=0)
    node = Images(tmp_path, settings=settings, origin=MemoryOrigin(*blobs))
    node.downloads.announcer = records
    assert node.evictor is not None
    node.evictor.announcer = records
    async with running(node):
        for blob in blobs:
            await node.downloads.get(Digest.of(blob), ContentKind.BLOB, "r", "a").finish()
            assert Digest.of(blob) in records.held
        await node.evictor.sweep()
        assert records.held == {d async for d in node.store.digests()}
        assert len(records.held) == 1
        path = node.store.path(next(iter(records.held)))  # type: ignore[union-attr]
        path.chmod(0o644)
        path.write_bytes(b"rotten")
        await node.keeping.verify()
        assert records.held == set()

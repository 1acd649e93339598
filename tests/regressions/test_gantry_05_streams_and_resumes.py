"""Bytes are handed on as they come, and a broken transfer goes on where it was.

The original stored a whole blob before it sent the first byte to its client, began again from zero
after a break, and always asked the first listed holder first. Return ``self.done`` early from
``Download.stream`` (wait for the end before the first byte) and the first test hangs on the closed
gate; pass ``offset=0`` in ``Downloads._once`` and the second sees bytes fetched twice; drop the
``shuffle`` in ``Swarm`` and the choice from ``Swarm._pick`` and the third finds one holder only.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from leasehold.core.clock import VirtualClock
from leasehold.core.service import running
from leasehold.images.download import Download, Downloads
from leasehold.images.memory import PIECE, MemoryOrigin
from leasehold.images.peers import Swarm
from leasehold.images.ports import ContentKind, Holder
from leasehold.images.settings import ImagesSettings
from leasehold.images.store import FileStore
from leasehold.model.digest import Digest

BLOB = random.Random(5).randbytes(40 * PIECE)


async def test_the_first_bytes_are_passed_on_before_the_last_arrive(tmp_path: Path) -> None:
    origin = MemoryOrigin(BLOB)
    origin.allow(10 * PIECE)
    async with (
        running(FileStore(tmp_path)) as store,
        running(Downloads(store, origin)) as downloads,
    ):
        download = downloads.get(Digest.of(BLOB), ContentKind.BLOB, "r", "a", len(BLOB))
        got = bytearray()
        async for piece in download.stream():
            got += piece
            if len(got) >= 10 * PIECE - 1:
                assert not download.ended
                origin.allow()
        await download.finish()
        assert BLOB.startswith(got) and len(got) >= 10 * PIECE - 1


def test_a_break_goes_on_where_it_was(virtual: VirtualClock, tmp_path: Path) -> None:
    async def main() -> None:
        origin = MemoryOrigin(BLOB, clock=virtual)
        origin.breaks = {7 * PIECE, 30 * PIECE}
        async with (
            running(FileStore(tmp_path, clock=virtual)) as store,
            running(Downloads(store, origin, clock=virtual)) as downloads,
        ):
            await downloads.get(Digest.of(BLOB), ContentKind.BLOB, "r", "a", len(BLOB)).finish()
        assert [at for _, at in origin.gets] == [0, 7 * PIECE, 30 * PIECE]
        assert origin.bytes == len(BLOB), "no byte twice"

    virtual.run(main)


def test_the_first_listed_holder_is_not_always_first() -> None:
    class Fake:
        rng = random.Random(1)
        settings = ImagesSettings()

    holders = [Holder(f"n{i}", f"h:{i}") for i in range(4)]
    first = set()
    for _ in range(40):
        download = Download(Digest.of(BLOB), ContentKind.BLOB, "r", "a", len(BLOB), None)
        download.staged = object()  # type: ignore[assignment]
        fake: Any = Fake()
        swarm = Swarm(fake, download, holders)
        picked = swarm._pick(0)
        assert picked is not None
        first.add(picked.node)
    assert first == {h.node for h in holders}

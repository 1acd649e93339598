"""The store: atomic, verifying, crash-safe, inside its budget, and honest when the disk is not."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leasehold.core.clock import VirtualClock
from leasehold.core.errors import LeaseholdError
from leasehold.core.service import running
from leasehold.images.eviction import Evictor
from leasehold.images.settings import ImagesSettings
from leasehold.images.staging import CHUNK
from leasehold.images.store import FileStore
from leasehold.model.digest import Digest


async def put(store: FileStore, content: bytes) -> Digest:
    digest = Digest.of(content)
    writer = await store.writer(digest, len(content))
    await writer.write(0, content)
    await writer.commit()
    return digest


async def test_content_is_visible_only_after_commit(tmp_path: Path) -> None:
    async with running(FileStore(tmp_path)) as store:
        digest = Digest.of(b"content")
        writer = await store.writer(digest, 7)
        await writer.write(0, b"content")
        assert not await store.has(digest) and await store.open(digest) is None
        assert await writer.commit() == 7
        reader = await store.open(digest)
        assert reader is not None
        await store.delete(digest)
        assert await reader.read(0, 100) == b"content", "an open reader outlives the deletion"
        await reader.close()
        assert not await store.has(digest)


async def test_other_bytes_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    async with running(FileStore(tmp_path)) as store:
        writer = await store.writer(Digest.of(b"good"), 4)
        await writer.write(0, b"evil")
        with pytest.raises(LeaseholdError) as caught:
            await writer.commit()
        assert caught.value.code == "digest_mismatch"
        assert list((tmp_path / "tmp").iterdir()) == []
        assert not await store.has(Digest.of(b"good"))


async def test_hashed_bytes_are_never_written_again(tmp_path: Path) -> None:
    """Otherwise the hash would vouch for bytes that are no longer there."""
    async with running(FileStore(tmp_path)) as store:
        digest = Digest.of(b"good content")
        writer = await store.writer(digest, 12)
        await writer.write(0, b"good ")
        await writer.put(0, b"evil content")
        await writer.advance(12)
        await writer.commit()
        assert await store.verify(digest) is True


async def test_two_writers_of_one_digest_do_no_harm(tmp_path: Path) -> None:
    async with running(FileStore(tmp_path)) as store:
        await asyncio.gather(*(put(store, b"same") for _ in range(5)))
        assert store.bytes == 4


async def test_a_restart_keeps_content_and_clears_the_rest(tmp_path: Path) -> None:
    async with running(FileStore(tmp_path)) as store:
        old, new = await put(store, b"old"), await put(store, b"newer")
        os.utime(store.path(old), (1, 1))
        await store.writer(Digest.of(b"never finished"), 14)
        (tmp_path / "blobs/sha256/zz").mkdir()
        (tmp_path / "blobs/sha256/zz/stranger").write_bytes(b"?")
    (tmp_path / "tmp/left.partial").write_bytes(b"half")
    async with running(FileStore(tmp_path)) as store:
        assert [d async for d in store.digests()] == [old, new], "least recently used first"
        assert store.bytes == 8
        assert list((tmp_path / "tmp").iterdir()) == []
        assert not (tmp_path / "blobs/sha256/zz/stranger").exists()


async def test_a_vanished_file_is_a_miss_and_a_broken_disk_is_not(tmp_path: Path) -> None:
    async with running(FileStore(tmp_path)) as store:
        digest = await put(store, b"gone")
        store.path(digest).unlink()
        assert await store.open(digest) is None and store.bytes == 0
        digest = await put(store, b"there")
        shard = store.path(digest).parent
        moved = shard.with_name("moved")
        shard.rename(moved)
        shard.symlink_to(shard.name)  # every look-up answers ELOOP
        with pytest.raises(LeaseholdError) as caught:
            await store.has(digest)
        assert caught.value.code == "store_unavailable"


async def test_no_room_is_said_before_the_transfer(tmp_path: Path) -> None:
    async with running(FileStore(tmp_path)) as store:
        with pytest.raises(LeaseholdError) as caught:
            await store.writer(Digest.of(b"x"), 1 << 60)
        assert caught.value.code == "disk_full" and "gc" in caught.value.message


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
async def test_any_order_of_pieces_gives_the_same_content(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Chunks put in any order; the prefix is hashed as it closes, chunk digests included."""
    content = bytes(data.draw(st.integers(0, 255)) for _ in range(8)) * (CHUNK // 4) + b"tail"
    async with running(
        FileStore(tmp_path_factory.mktemp("s"), ImagesSettings(fsync=False))
    ) as store:
        digest = Digest.of(content)
        writer = await store.writer(digest, len(content))
        count = -(-len(content) // CHUNK)
        done: set[int] = set()
        for chunk in data.draw(st.permutations(range(count))):
            await writer.put(chunk * CHUNK, content[chunk * CHUNK : (chunk + 1) * CHUNK])
            done.add(chunk)
            prefix = writer.prefix // CHUNK
            while prefix in done:
                prefix += 1
            await writer.advance(min(prefix * CHUNK, len(content)))
            assert await writer.read(0, 1 << 30) == content[: writer.prefix]
        assert await writer.commit() == len(content)
        assert writer.chunks == [
            Digest.of(content[i * CHUNK : (i + 1) * CHUNK]).hex for i in range(count)
        ]


class Holders:
    """An announcer that knows how many hold what."""

    def __init__(self) -> None:
        self.counts: dict[Digest, int] = {}
        self.withdrawn: list[Digest] = []
        self.asked = 0

    def announce(self, digest: Digest) -> None: ...

    def withdraw(self, digest: Digest) -> None:
        self.withdrawn.append(digest)

    async def holder_count(self, digest: Digest) -> int:
        self.asked += 1
        if digest not in self.counts:
            raise TimeoutError
        return self.counts[digest]


def test_the_oldest_leave_unless_few_others_hold_them(
    virtual: VirtualClock, tmp_path: Path
) -> None:
    async def main() -> None:
        limits = ImagesSettings(budget_bytes=100, headroom_percent=0, min_holders=3)
        async with running(FileStore(tmp_path, limits, virtual)) as store:
            names = [await put(store, bytes([i]) * 50) for i in range(5)]
            precious, unknown, pinned, plenty, newest = names
            holders = Holders()
            holders.counts = {precious: 2, pinned: 9, plenty: 3, newest: 9}
            evictor = Evictor(store, limits, virtual, lambda: {pinned}, announcer=holders)
            swept = await evictor.sweep()
            assert {d async for d in store.digests()} == {precious, unknown, pinned}
            assert holders.withdrawn == [plenty, newest]
            assert (swept.evicted, swept.deferred) == (2, 2), "stays over budget and says so"
            asked = holders.asked
            await evictor.sweep()
            assert holders.asked == asked + 1, "counts are remembered, failures are not"
            await virtual.sleep(61)
            holders.counts[precious] = 3
            await evictor.sweep()
            assert precious in holders.withdrawn

    virtual.run(main)


async def test_a_short_disk_overrides_the_holders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = ImagesSettings(budget_bytes=10**12, min_holders=3)
    async with running(FileStore(tmp_path, limits)) as store:
        digest = await put(store, b"x" * 50)
        free: list[Any] = [0]
        monkeypatch.setattr(FileStore, "free", property(lambda _: free[0]))
        evictor = Evictor(store, limits, store.clock, set, announcer=Holders())
        assert (await evictor.sweep()).evicted == 1
        assert not await store.has(digest)

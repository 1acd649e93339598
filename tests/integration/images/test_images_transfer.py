"""Bytes between nodes: cut-through, chunk checks, bad and busy holders, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from leasehold.core.errors import LeaseholdError
from leasehold.core.service import running
from leasehold.images.memory import MemoryOrigin
from leasehold.images.peers import no_holder
from leasehold.images.ports import ContentKind, Holder, Resolution
from leasehold.images.service import Images
from leasehold.images.settings import ImagesSettings
from leasehold.images.staging import CHUNK
from leasehold.model.digest import Digest
from leasehold.p2p.keys import KeyPair

BIG = os.urandom(3 * CHUNK + 12345)


class Fleet:
    """Nodes that know one another; ``puller`` reads from the origin, holders are who has it."""

    def __init__(
        self, folder: Path, origin: MemoryOrigin, *, mirror: bool = False, **settings: Any
    ) -> None:
        self.folder, self.origin, self.mirror = folder, origin, mirror
        self.settings = ImagesSettings(
            transfer_host="127.0.0.1",
            transfer_port=0,
            mirror_port=0,
            fsync=False,
            **{"peer_stall_seconds": 3.0, **settings},
        )
        self.nodes: dict[str, Images] = {}
        self.keys: dict[str, KeyPair] = {}
        self.puller = "n0"
        self.complaint = asyncio.Event()
        self.failures: list[tuple[str, str, str]] = []
        self.holders: dict[str, Sequence[str]] = {}
        """Overrides whom a node is told to ask."""
        self.declines: list[str] = []
        """Reasons for which the direct way is declined; after the last one holders are known."""

    async def add(self, name: str, stack: contextlib.AsyncExitStack) -> Images:
        keys = self.keys[name] = KeyPair.generate()
        node = Images(
            self.folder / name,
            settings=self.settings,
            origin=self.origin,
            keys=keys,
            transfer=True,
            mirror=self.mirror,
        )
        node.cooperate(FakeResolver(self, name), None, name)
        self.nodes[name] = node
        return await stack.enter_async_context(running(node))

    def holder(self, name: str, *, complete: bool = True) -> Holder:
        server = self.nodes[name].transfer_server
        assert server is not None
        return Holder(
            name,
            f"127.0.0.1:{server.port}",
            str(self.keys[name].peer_id),
            complete,
            puller=name == self.puller,
        )

    async def get(self, name: str, content: bytes, kind: ContentKind = ContentKind.BLOB) -> Any:
        digest = Digest.of(content)
        download = self.nodes[name].downloads.get(digest, kind, "reg", "repo", len(content))
        await download.finish()
        return download

    async def received(self, name: str, content: bytes, count: int) -> None:
        """Wait until ``name`` has so many bytes of a download that was begun."""
        await asyncio.sleep(0)  # let the task that begins it run
        download = self.nodes[name].downloads.active(Digest.of(content))
        assert download is not None
        while download.received < count:
            await download.changed()

    async def failure(self, me: str, node: str, outcome: str) -> None:
        """Wait until ``me`` complains about ``node``."""
        while (me, node, outcome) not in self.failures:
            await self.complaint.wait()


class FakeResolver:
    def __init__(self, fleet: Fleet, me: str) -> None:
        self.fleet, self.me = fleet, me

    async def resolve(self, digest: Digest, *_: Any) -> Resolution:
        fleet = self.fleet
        names = fleet.holders.get(self.me)
        if names is None:
            if self.me == fleet.puller:
                return Resolution(local=True)
            names = [n for n in fleet.nodes if n != self.me and await self._has(n, digest)]
            if not names:
                return Resolution([fleet.holder(fleet.puller, complete=False)])
        if not names:
            raise no_holder()
        return Resolution([fleet.holder(n, complete=await self._has(n, digest)) for n in names])

    async def _has(self, name: str, digest: Digest) -> bool:
        return await self.fleet.nodes[name].store.has(digest)

    async def refresh(self, digest: Digest, size: int | None) -> Sequence[Holder]:
        return []

    @contextlib.asynccontextmanager
    async def direct(self, digest: Digest, kind: ContentKind) -> AsyncIterator[None]:
        if self.fleet.declines:
            why = self.fleet.declines.pop(0)
            if not self.fleet.declines:
                self.fleet.holders.pop(self.me, None)
            raise LeaseholdError("fallback_declined", "declined", got=why)
        yield

    def prefetch(self, *_: Any) -> None: ...

    def failed(self, digest: Digest, holder: Holder, outcome: str) -> None:
        self.fleet.failures.append((self.me, holder.node, outcome))
        self.fleet.complaint.set()
        self.fleet.complaint = asyncio.Event()

    def member(self, node: str) -> Holder | None:
        return self.fleet.holder(node) if node in self.fleet.nodes else None


@contextlib.asynccontextmanager
async def fleet_of(
    count: int, folder: Path, *contents: bytes, **settings: Any
) -> AsyncIterator[Fleet]:
    async with contextlib.AsyncExitStack() as stack:
        fleet = Fleet(folder, MemoryOrigin(*contents), **settings)
        for index in range(count):
            await fleet.add(f"n{index}", stack)
        yield fleet


@pytest.mark.parametrize("plaintext", [False, True])
async def test_bytes_are_passed_on_while_they_arrive(tmp_path: Path, plaintext: bool) -> None:
    async with fleet_of(4, tmp_path, BIG, plaintext=plaintext) as fleet:
        fleet.origin.allow(2 * CHUNK + 70_000)
        pulls = [asyncio.create_task(fleet.get(f"n{i}", BIG)) for i in range(4)]
        digest = Digest.of(BIG)
        await fleet.received("n3", BIG, 2 * CHUNK)
        assert not await fleet.nodes["n0"].store.has(digest), "the puller itself is not done"
        fleet.origin.allow()
        done = await asyncio.gather(*pulls)
        assert fleet.origin.bytes == len(BIG) and len(fleet.origin.gets) == 1
        assert all(set(d.sources) == {"peer:n0"} for d in done[1:])
        for node in fleet.nodes.values():
            assert await node.store.verify(digest) is True


async def test_held_elsewhere_after_all_is_no_failure(tmp_path: Path) -> None:
    async with fleet_of(2, tmp_path, BIG) as fleet:
        await fleet.get("n0", BIG)
        fleet.holders["n1"] = []
        fleet.declines = ["recheck_hit", "in_flight", "recheck_hit"]
        done = await fleet.get("n1", BIG)
        assert set(done.sources) == {"peer:n0"}
        fleet.holders["n1"], fleet.declines = [], ["rate_limited"]
        with pytest.raises(LeaseholdError) as caught:
            await fleet.get("n1", b"something else")
        assert caught.value.got == "rate_limited", "a real no is said"


async def test_a_crowd_becomes_a_tree(tmp_path: Path) -> None:
    """One body at a time: those turned away are sent to those who are being served."""
    async with fleet_of(5, tmp_path, BIG, serve_cap=1) as fleet:
        done = await asyncio.gather(*(fleet.get(f"n{i}", BIG) for i in range(5)))
        assert len(fleet.origin.gets) == 1
        givers = {source for d in done[1:] for source in d.sources}
        assert len(givers) > 1, givers
        assert any(outcome == "busy" for _, _, outcome in fleet.failures)


async def test_several_holders_share_a_large_blob(tmp_path: Path) -> None:
    async with fleet_of(4, tmp_path, BIG) as fleet:
        for name in ("n0", "n1", "n2"):
            fleet.holders[name] = []
            await fleet.get(name, BIG)
        got = await fleet.get("n3", BIG)
        assert "origin" not in got.sources and len(got.sources) > 1
        assert sum(got.sources.values()) == len(BIG)


def spoil(node: Images, content: bytes, at: int) -> None:
    path = node.store.path(Digest.of(content))
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(at)
        file.write(b"\0evil\0")


async def test_a_lying_holder_is_named_and_its_bytes_fetched_elsewhere(tmp_path: Path) -> None:
    async with fleet_of(4, tmp_path, BIG) as fleet:
        for name in ("n0", "n1", "n2"):
            fleet.holders[name] = []
            await fleet.get(name, BIG)
        spoil(fleet.nodes["n2"], BIG, CHUNK + 5)
        fleet.nodes["n2"].downloads.chunk_lists.put(Digest.of(BIG), (0, []))
        fleet.nodes["n3"].downloads.peers.rng.seed(3)  # type: ignore[union-attr]
        for _ in range(20):  # whichever holder is asked for the spoilt chunk
            fleet.failures.clear()
            got = await fleet.get("n3", BIG)
            assert await fleet.nodes["n3"].store.verify(Digest.of(BIG)) is True
            assert all(node == "n2" for _, node, what in fleet.failures if what == "corrupt")
            if ("n3", "n2", "corrupt") in fleet.failures:
                break
            await fleet.nodes["n3"].store.delete(Digest.of(BIG))
        else:
            pytest.fail("the spoilt chunk was never asked for")
        assert "origin" not in got.sources


async def test_when_only_liars_hold_it_nothing_bad_is_kept(tmp_path: Path) -> None:
    """No chunk digest helps for one chunk; the whole decides, and the origin is asked."""
    small = os.urandom(100_000)
    async with fleet_of(2, tmp_path, small) as fleet:
        await fleet.get("n0", small)
        spoil(fleet.nodes["n0"], small, 5)
        fleet.holders["n1"] = ["n0"]
        pull = asyncio.create_task(fleet.get("n1", small))
        await fleet.failure("n1", "n0", "corrupt")
        assert not await fleet.nodes["n1"].store.has(Digest.of(small))
        fleet.holders["n1"] = []
        got = await pull
        assert set(got.sources) == {"origin"}


async def test_a_client_given_bad_bytes_sees_its_transfer_broken_off(tmp_path: Path) -> None:
    """The origin itself sends other bytes: the mirror never completes the answer."""
    digest = Digest.of(BIG)
    async with fleet_of(1, tmp_path, BIG, origin_attempts=1, mirror=True) as fleet:
        fleet.origin.blobs[digest] = BIG[:-1] + bytes([BIG[-1] ^ 1])
        server = fleet.nodes["n0"].mirror_server
        assert server is not None
        async with httpx.AsyncClient() as client:
            got = 0
            with pytest.raises(httpx.RemoteProtocolError):
                async with client.stream(
                    "GET", f"{server.url}/v2/repo/blobs/{digest}?ns=reg"
                ) as response:
                    assert response.headers["content-length"] == str(len(BIG))
                    async for piece in response.aiter_raw():
                        got += len(piece)
            assert got < len(BIG)
        assert not await fleet.nodes["n0"].store.has(digest)


async def test_the_puller_dies_and_the_rest_comes_from_the_origin(tmp_path: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        fleet = Fleet(tmp_path, MemoryOrigin(BIG))
        puller = contextlib.AsyncExitStack()
        await fleet.add("n0", puller)
        await fleet.add("n1", stack)
        fleet.origin.allow(2 * CHUNK + 1)
        first = asyncio.create_task(fleet.get("n0", BIG))
        second = asyncio.create_task(fleet.get("n1", BIG))
        await fleet.received("n1", BIG, 2 * CHUNK)
        await puller.aclose()
        with pytest.raises(LeaseholdError):
            await first
        fleet.holders["n1"] = []
        fleet.origin.allow()
        got = await second
        assert got.sources == {"peer:n0": 2 * CHUNK, "origin": len(BIG) - 2 * CHUNK}
        assert fleet.origin.bytes <= 2 * len(BIG)


async def test_a_node_with_another_identity_is_refused(tmp_path: Path) -> None:
    async with fleet_of(2, tmp_path, BIG) as fleet:
        await fleet.get("n0", BIG)
        fleet.keys["n0"] = KeyPair.generate()
        fleet.holders["n1"] = ["n0"]
        pull = asyncio.create_task(fleet.get("n1", BIG))
        await fleet.failure("n1", "n0", "corrupt")
        fleet.holders["n1"] = []
        assert set((await pull).sources) == {"origin"}


async def test_the_transfer_contract(tmp_path: Path) -> None:
    """Section 9 of the original, row by row."""
    async with fleet_of(1, tmp_path, BIG, plaintext=True) as fleet:
        await fleet.get("n0", BIG)
        digest, size = Digest.of(BIG), len(BIG)
        server = fleet.nodes["n0"].transfer_server
        assert server is not None
        mirrored = {"Gantry-Mirrored": "1"}
        async with httpx.AsyncClient(base_url=server.url) as client:
            assert (await client.get("/healthz")).status_code == 200
            assert (await client.get("/v2/")).status_code == 200
            path = f"/v2/_/blobs/{digest}"
            assert (await client.post(path)).status_code == 405
            assert (await client.get(path)).status_code == 400
            for other, status in (
                ("/v2/x", 404),
                ("/v2/_/manifests/latest", 404),
                ("/v2/_/blobs/sha256:abc", 400),
                (f"/v2/_/blobs/{Digest.of(b'absent')}", 404),
            ):
                assert (await client.get(other, headers=mirrored)).status_code == status, other
            whole = await client.get(path, headers=mirrored)
            assert whole.content == BIG and whole.headers["accept-ranges"] == "bytes"
            for span, start, end in (
                ("0-0", 0, 1),
                (f"{CHUNK}-", CHUNK, size),
                ("-5", size - 5, size),
                (f"7-{size - 1}", 7, size),
            ):
                part = await client.get(path, headers={**mirrored, "Range": f"bytes={span}"})
                assert part.status_code == 206 and part.content == BIG[start:end]
                assert part.headers["content-range"] == f"bytes {start}-{end - 1}/{size}"
            for span in (f"{size}-", f"0-{size}", f"-{size + 1}", "0-1,3-4", "x", "5-1", "-0"):
                part = await client.get(path, headers={**mirrored, "Range": f"bytes={span}"})
                assert part.status_code == 416, span
                assert part.headers["content-range"] == f"bytes */{size}"
            head = await client.head(path, headers=mirrored)
            assert head.headers["content-length"] == str(size) and head.content == b""
            chunks = await client.get(f"/leasehold/v1/chunks/{digest}", headers=mirrored)
            assert chunks.json()["digests"] == [
                hashlib.sha256(BIG[at : at + CHUNK]).hexdigest() for at in range(0, size, CHUNK)
            ]
        assert fleet.origin.gets == [(digest, 0)], "nothing asked here asks elsewhere"

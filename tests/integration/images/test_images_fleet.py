"""Nodes that know one address between them become a fleet, and an image leaves its origin once."""

from __future__ import annotations

import asyncio
import stat
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from leasehold.core.errors import LeaseholdError
from leasehold.core.service import running
from leasehold.images import build, report
from leasehold.images.memory import MemoryOrigin
from leasehold.images.node import ImagesNode
from leasehold.images.ports import ContentKind
from leasehold.images.service import Images
from leasehold.images.settings import ImagesSettings
from leasehold.model.digest import Digest
from leasehold.p2p.multiaddr import Multiaddr
from leasehold.p2p.settings import P2PSettings


def node(folder: Path, name: str, origin: MemoryOrigin, seeds: list[Multiaddr]) -> ImagesNode:
    return ImagesNode(
        folder / name,
        name,
        settings=ImagesSettings(transfer_host="127.0.0.1", transfer_port=0),
        p2p=P2PSettings(listen=["/ip4/127.0.0.1/tcp/0"]),
        bootstrap=seeds,
        origin=origin,
        mirror=False,
    )


async def until(condition: Any, seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


async def test_three_nodes_and_a_seed(tmp_path: Path) -> None:
    origin = MemoryOrigin()
    built = build.busybox({"x": b"y" * 300_000})
    origin.add(built, "1")
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(running(node(tmp_path, "a", origin, [])))
        seed = Multiaddr.parse(first.member.addresses[0])
        nodes = [first]
        for name in ("b", "c"):
            made = node(tmp_path, name, origin, [seed])
            nodes.append(await stack.enter_async_context(running(made)))
        await until(lambda: all(list(n.members.view.members) == ["a", "b", "c"] for n in nodes))
        await until(lambda: all(n.not_ready() == [] for n in nodes))
        images = [await n.images.ensure("r.example/team/app:1") for n in nodes]
        assert origin.bytes == built.size + len(built.manifest), "once for all three"
        assert sum("origin" in image.sources for image in images) <= 3
        assert all(image.digest == built.digest for image in images)


async def test_what_a_node_tells_of_its_fleet(tmp_path: Path) -> None:
    """Who holds each part, what failed and cools down, what came from where: asked of one node."""
    origin = MemoryOrigin()
    built = build.busybox({"x": b"y" * 300_000})
    origin.add(built, "1")
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(running(node(tmp_path, "a", origin, [])))
        seed = Multiaddr.parse(first.member.addresses[0])
        second = await stack.enter_async_context(running(node(tmp_path, "b", origin, [seed])))
        await until(lambda: all(n.not_ready() == [] for n in (first, second)))
        await until(lambda: all(len(n.members.known) == 2 for n in (first, second)))
        await first.images.ensure("r.example/team/app:1")
        assert all(part.here for part in await report.holders(first.images, str(built.digest)))
        await second.images.ensure("r.example/team/app:1")
        async with asyncio.timeout(20):
            while True:
                found = await report.holders(first.images, str(built.digest))
                if all(part.others == ["b"] for part in found):
                    break
                await asyncio.sleep(0.02)
        assert {part.kind for part in found} == {"manifest", "config", "layer"}
        missing = Digest.of(b"never made")
        (nobody,) = await report.holders(first.images, str(missing))
        assert (nobody.here, nobody.others) == (False, [])

        wanted = first.images.downloads.get(missing, ContentKind.BLOB, "r.example", "team/app", 10)
        with pytest.raises(LeaseholdError):
            await wanted.finish()
        told = [report.fleet(n.images) for n in (first, second)]
        assert [(c.digest, c.failure) for fleet in told for c in fleet.cooling] == [
            (str(missing), "not_found")
        ]
        assert [m.node for m in told[0].members if m.here] == ["a"]
        carried = [minute for fleet in told for minute in fleet.traffic]
        assert sum(m.origin for m in carried) == origin.bytes
        assert sum(m.peers for m in carried) > 300_000


async def test_a_node_alone_says_so(tmp_path: Path) -> None:
    origin = MemoryOrigin()
    built = build.busybox({})
    origin.add(built, "1")
    async with running(Images(tmp_path / "images", origin=origin)) as images:
        await images.ensure("r.example/team/app:1")
        fleet = report.fleet(images)
        assert (fleet.node, fleet.health, fleet.members, fleet.cooling) == ("", None, [], [])
        assert sum(minute.origin for minute in fleet.traffic) == origin.bytes
        held = await report.holders(images, "r.example/team/app:1")
        assert {(part.here, tuple(part.others or ())) for part in held} == {(True, ())}


async def test_an_identity_is_kept(tmp_path: Path) -> None:
    first = node(tmp_path, "a", MemoryOrigin(), [])
    file = tmp_path / "a/identity"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert node(tmp_path, "a", MemoryOrigin(), []).keys.peer_id == first.keys.peer_id
    assert node(tmp_path, "b", MemoryOrigin(), []).keys.peer_id != first.keys.peer_id

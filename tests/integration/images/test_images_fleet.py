"""Nodes that know one address between them become a fleet, and an image leaves its origin once."""

from __future__ import annotations

import asyncio
import stat
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from leasehold.core.service import running
from leasehold.images import build
from leasehold.images.memory import MemoryOrigin
from leasehold.images.node import ImagesNode
from leasehold.images.settings import ImagesSettings
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


async def test_an_identity_is_kept(tmp_path: Path) -> None:
    first = node(tmp_path, "a", MemoryOrigin(), [])
    file = tmp_path / "a/identity"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert node(tmp_path, "a", MemoryOrigin(), []).keys.peer_id == first.keys.peer_id
    assert node(tmp_path, "b", MemoryOrigin(), []).keys.peer_id != first.keys.peer_id

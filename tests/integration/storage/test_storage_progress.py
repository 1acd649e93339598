"""Progress in bytes: counted by what works on the files, served, and drawn on a real terminal."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.integration.terminal import Terminal

from leasehold.app.running import Running, write_running
from leasehold.core.errors import LeaseholdError
from leasehold.core.service import running
from leasehold.events.sqlite import SqliteLog
from leasehold.gateway import log as log_routes
from leasehold.gateway import volumes as volume_routes
from leasehold.gateway.server import Gateway
from leasehold.gateway.settings import GatewaySettings
from leasehold.observe.engine import Engine
from leasehold.storage import archive, copying, immutable, restore
from leasehold.storage.content import ContentStore
from leasehold.storage.errors import Strong
from leasehold.storage.progress import Tally
from leasehold.storage.shadow import Author, Shadow
from leasehold.storage.volumes import Volumes

BIG = 3_000_000
"""Bytes: several blocks of every copy."""


def test_every_byte_is_counted(tmp_path: Path) -> None:
    """Whatever is announced is done in the end, for copies, archives and restores alike."""
    tree = tmp_path / "tree"
    (tree / "d").mkdir(parents=True)
    (tree / "d/big").write_bytes(os.urandom(BIG))
    (tree / "small").write_text("s")
    (tree / "link").symlink_to("small")
    content = ContentStore(tmp_path / "content")
    shadow = Shadow(tmp_path / "shadow", content)
    shadow.create()
    taken = shadow.snapshot(tree, Author("acme"), "all", 1.0)

    copied, packed, unpacked, restored, again = (Tally() for _ in range(5))
    copying.copy_tree(tree, tmp_path / "copy", copied)
    assert copied.done == copied.total == copying.PASSES * (BIG + 1)
    target = tmp_path / "a.tar.zst"
    sha256 = archive.pack(shadow, taken.commit, target, packed)
    assert packed.done == packed.total == BIG + 1
    archive.unpack_contents(target, sha256, content, unpacked)
    assert unpacked.done == unpacked.total == 2 * target.stat().st_size
    restore.restore(shadow, taken.commit, tmp_path / "back", restored)
    restore.restore(shadow, taken.commit, tmp_path / "back", again)
    assert restored.done == restored.total == again.done == again.total == BIG + 1
    assert (tmp_path / "back/d/big").read_bytes() == (tree / "d/big").read_bytes()


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    immutable.set_tree(tmp_path / "volumes", False)


@contextlib.asynccontextmanager
async def provider(root: Path) -> AsyncIterator[Volumes]:
    """Volumes behind a gateway that the command line finds by ``root``."""
    async with running(SqliteLog(root / "log.db")) as log:
        engine = Engine(log)
        volumes = Volumes(root / "volumes", log, engine)
        gateway = Gateway(
            GatewaySettings(port=0),
            operator_token="op",
            routes=[*log_routes.routes(log, engine), *volume_routes.routes(volumes)],
        )
        async with running(volumes), running(engine), running(gateway):
            (root / "operator.token").write_text("op")
            found = Running(
                pid=os.getpid(), gateway=gateway.url, ledger="", ingress="", ops="",
                provider="p", state=str(root),
            )  # fmt: skip
            write_running(root, found)
            yield volumes


async def test_a_terminal_shows_bytes_until_the_end(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Archiving is held half way: the bar says so, and goes when the archive is there."""
    go_on = threading.Event()
    counted = Tally.add

    def held(tally: Tally, count: int) -> None:
        counted(tally, count)
        if tally.what == "packing" and tally.done > BIG / 2:
            go_on.wait(30)

    monkeypatch.setattr(Tally, "add", held)
    async with provider(root) as volumes:
        place = await volumes.ensure("acme", 1, "web", "data", 1 << 30)
        (place / "big").write_bytes(os.urandom(BIG))
        await volumes.release("acme", 1)
        terminal = Terminal()
        state = ("--state", str(root))
        frozen = await terminal.run("volume", "freeze", "leases/acme/1/web/data", "--wait", *state)
        assert await frozen.wait() == 0, terminal.drawn

        packing = await terminal.run("volume", "archive", "leases/acme/1/web/data", *state)
        await terminal.until("packing 1.4 MiB")
        assert "50%" in terminal.drawn
        ((_, far),) = volumes.storage.progress.all().items()
        assert (far.what, far.total) == ("packing", BIG)
        go_on.set()
        assert await packing.wait() == 0, terminal.drawn
        await terminal.until("archived")
        assert volumes.storage.progress.all() == {}


async def test_a_change_that_fails_says_so(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> str:
        raise Strong(LeaseholdError("archive_damaged", "the disk is full of bees"))

    monkeypatch.setattr(archive, "pack", broken)
    async with provider(root) as volumes:
        await volumes.ensure("acme", 1, "web", "data", 1 << 20)
        await volumes.release("acme", 1)
        terminal = Terminal()
        state = ("--state", str(root))
        frozen = await terminal.run("volume", "freeze", "leases/acme/1/web/data", *state)
        assert await frozen.wait() == 0, terminal.drawn
        failed = await terminal.run("volume", "archive", "leases/acme/1/web/data", *state)
        async with asyncio.timeout(30):
            assert await failed.wait() == 5  # a conflict
        await terminal.until("full of bees")

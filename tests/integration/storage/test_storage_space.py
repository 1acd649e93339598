"""When the disk is full, or nearly: on a file system of a few megabytes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from leasehold.core.errors import LeaseholdError
from leasehold.core.service import running
from leasehold.events.event import Entity
from leasehold.events.sqlite import SqliteLog
from leasehold.observe.engine import Engine
from leasehold.storage import immutable
from leasehold.storage.settings import StorageSettings
from leasehold.storage.shadow import Author
from leasehold.storage.state import RepoState
from leasehold.storage.volumes import Volumes

SIZE = 8 << 20
ME = Author("acme")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own. The log is elsewhere: its full disk is another test's."""
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "none", place], check=True)
    yield place
    immutable.set_tree(place, False)
    subprocess.run(["umount", "-l", place], check=True)


@contextlib.asynccontextmanager
async def provider(disk: Path, **settings: object) -> AsyncIterator[Volumes]:
    async with running(SqliteLog(disk.parent / "log.db")) as log:
        engine = Engine(log)
        chosen = StorageSettings(**settings)  # type: ignore[arg-type]
        volumes = Volumes(disk, log, engine, settings=chosen)
        async with running(volumes), running(engine):
            yield volumes


async def until(volumes: Volumes, repo: str, test: Callable[[RepoState], object]) -> RepoState:
    async with asyncio.timeout(20):
        async for _ in volumes.log.read(Entity("repo", repo), watch=True):
            state = await volumes.repos.repos.state(repo)
            if test(state):
                return state
    raise AssertionError


async def removed(volumes: Volumes, repo: str) -> None:
    async with asyncio.timeout(20):
        async for _ in volumes.log.read(Entity("registry", "local"), watch=True):
            if repo not in (await volumes.repos.registries.state("local")).repos:
                return


async def test_a_full_disk_is_an_error_of_that_volume_and_goes_with_its_cause(disk: Path) -> None:
    async with provider(disk) as volumes:
        place = await volumes.ensure("acme", 1, "web", "data", 1 << 20)
        other = await volumes.ensure("acme", 2, "web", "data", 1 << 20)
        repo = await volumes.find("leases/acme/1/web/data")
        (place / "small").write_text("kept")
        before = await volumes.storage.snapshot(repo, ME, "before")
        (place / "big").write_bytes(os.urandom(6 << 20))  # its copy cannot be kept
        with pytest.raises(LeaseholdError) as refused:
            await volumes.storage.snapshot(repo, ME, "too much")
        assert refused.value.code == "disk_full"
        assert not list(volumes.storage.content.root.glob(".new-*")), "no debris"
        # Freezing needs the same room: tried again a few times, then stored on the volume.
        await volumes.release("acme", 1)
        state = await until(volumes, repo, lambda s: s.error)
        assert "No space left" in state.error
        assert (state.tier, state.failed, state.busy) == ("online", True, "")
        (other / "b").write_text("others go on")
        taken = await volumes.storage.snapshot(
            await volumes.find("leases/acme/2/web/data"), ME, "fine"
        )
        assert taken.files == 1
        # Nothing was lost, and with room again everything works.
        assert (await volumes.storage.history(repo))[0].commit == before.commit
        (place / "big").unlink()
        await volumes.repos.clear_error(repo)
        await volumes.release("acme", 1)
        state = await until(volumes, repo, lambda s: s.tier == "frozen")
        assert state.files == 1


async def test_under_pressure_the_oldest_frozen_volume_yields_first(disk: Path) -> None:
    async with provider(disk, keep_free_bytes=SIZE) as volumes:
        repos = []
        for dseq in (1, 2, 3):
            place = await volumes.ensure("acme", dseq, "web", "data", 1 << 20)
            (place / "a").write_bytes(os.urandom(100_000))
            repos.append(await volumes.find(f"leases/acme/{dseq}/web/data"))
        for dseq in (2, 1):  # in this order; the third is in use
            await volumes.release("acme", dseq)
            await until(volumes, repos[dseq - 1], lambda s: s.tier == "frozen")
        assert await volumes.relieve() == repos[1]
        await removed(volumes, repos[1])
        assert await volumes.relieve() == repos[0]
        assert await volumes.relieve() == "", "one at a time: its room may be enough"
        await removed(volumes, repos[0])
        assert await volumes.relieve() == "", "what is in use never yields"
        # And with enough room nothing does.
    async with provider(disk, keep_free_bytes=0) as volumes:
        await volumes.repos.begin("freeze", repos[2], author="me")
        await until(volumes, repos[2], lambda s: s.tier == "frozen")
        assert await volumes.relieve() == ""

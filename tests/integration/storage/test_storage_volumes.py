"""Volumes as a provider uses them: the real log, the real engine, real directories."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from leasehold.core.clock import SystemClock
from leasehold.core.errors import LeaseholdError
from leasehold.core.service import running
from leasehold.events.event import Entity
from leasehold.events.memory import MemoryLog
from leasehold.events.sqlite import SqliteLog
from leasehold.observe.engine import Engine
from leasehold.storage import immutable
from leasehold.storage.settings import StorageSettings
from leasehold.storage.shadow import Author
from leasehold.storage.state import RepoState
from leasehold.storage.volumes import Volumes

ME = Author("acme")


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    for folder in tmp_path.glob("*/files"):
        immutable.set_tree(folder, False)


@contextlib.asynccontextmanager
async def provider(
    root: Path, log: SqliteLog | MemoryLog | None = None, **settings: object
) -> AsyncIterator[Volumes]:
    async with contextlib.AsyncExitStack() as stack:
        if log is None:
            log = await stack.enter_async_context(running(SqliteLog(root / "log.db")))
        engine = Engine(log)
        chosen = StorageSettings(**settings)  # type: ignore[arg-type]
        volumes = Volumes(root / chosen.host, log, engine, settings=chosen)
        await stack.enter_async_context(running(volumes))
        await stack.enter_async_context(running(engine))
        yield volumes


async def until(volumes: Volumes, repo: str, test: Callable[[RepoState], object]) -> RepoState:
    """Wait for the repo's history to say so."""
    async with asyncio.timeout(20):
        async for _ in volumes.log.read(Entity("repo", repo), watch=True):
            state = await volumes.repos.repos.state(repo)
            if test(state):
                return state
    raise AssertionError


async def eventually(test: Callable[[], object]) -> None:
    """For what happens to files, of which nobody tells us."""
    async with asyncio.timeout(20):
        while not test():
            await asyncio.sleep(0.02)


async def frozen(volumes: Volumes, repo: str) -> RepoState:
    return await until(volumes, repo, lambda s: s.tier == "frozen" and not s.busy)


async def test_a_lease_gets_its_volume_back_after_a_restart(root: Path) -> None:
    async with provider(root) as volumes:
        place = await volumes.ensure("acme", 1, "web", "data", 1 << 20, uid=7, gid=8, mode=0o770)
        found = place.stat()
        assert (found.st_uid, found.st_gid, found.st_mode & 0o7777) == (7, 8, 0o770)
        (place / "kept").write_text("kept")
        other = await volumes.ensure("acme", 1, "web", "more", 1 << 20)
        assert other != place
    async with provider(root) as volumes:
        assert await volumes.ensure("acme", 1, "web", "data", 1 << 20) == place
        assert (place / "kept").read_text() == "kept"


async def test_closing_freezes_and_a_new_lease_adopts(root: Path) -> None:
    async with provider(root) as volumes:
        place = await volumes.ensure("acme", 1, "web", "data", 1 << 20)
        (place / "a").write_text("one")
        repo = await volumes.find("leases/acme/1/web/data")
        await volumes.release("acme", 1)
        state = await frozen(volumes, repo)
        assert state.files == 1
        assert state.keep_until > 7 * 86400 - 60
        history = await volumes.storage.history(repo)
        assert (history[0].author, history[0].message) == ("acme", "lease closed")
        with pytest.raises(LeaseholdError) as refused:
            await volumes.storage.mount(repo)
        assert refused.value.code == "volume_not_mountable"
        with pytest.raises(PermissionError):
            (place / "a").write_text("two")
        with pytest.raises(LeaseholdError) as refused:
            await volumes.adopt("mallory", repo, 2, "web", "data")
        assert refused.value.code == "volume_not_found"
        await volumes.adopt("acme", repo, 2, "db", "pg")
        await until(volumes, repo, lambda s: s.path == "leases/acme/2/db/pg")
        moved = await volumes.ensure("acme", 2, "db", "pg", 1 << 20)
        assert (moved / "a").read_text() == "one"
        assert not place.exists()
        (moved / "b").write_text("writable again")
        fresh = await volumes.ensure("acme", 1, "web", "data", 1 << 20)
        assert list(fresh.iterdir()) == []


async def test_snapshot_diff_and_restore(root: Path) -> None:
    async with provider(root) as volumes:
        place = await volumes.ensure("acme", 1, "web", "data", 1 << 20)
        repo = await volumes.find("leases/acme/1/web/data")
        (place / "a").write_text("one")
        first = await volumes.storage.snapshot(repo, ME, "before")
        (place / "a").write_text("two")
        (place / "b").write_text("b")
        second = await volumes.storage.snapshot(repo, ME, "after")
        changes = await volumes.storage.diff(repo, first.commit, second.commit)
        assert [(c.how, c.path) for c in changes] == [("modified", "a"), ("added", "b")]
        (place / "c").write_text("never recorded")
        await volumes.storage.restore(repo, first.commit, ME)
        assert {p.name: p.read_text() for p in place.iterdir()} == {"a": "one"}
        before = (await volumes.storage.history(repo))[1]
        await volumes.storage.restore(repo, before.commit, ME)
        assert {p.name for p in place.iterdir()} == {"a", "b", "c"}


async def test_archive_and_back(root: Path) -> None:
    async with provider(root) as volumes:
        place = await volumes.ensure("acme", 1, "web", "data", 1 << 20)
        repo = await volumes.find("leases/acme/1/web/data")
        (place / "d").mkdir()
        (place / "d" / "big").write_bytes(os.urandom(300_000))
        data = (place / "d" / "big").read_bytes()
        (place / "d" / "big").chmod(0o640)
        await volumes.release("acme", 1)
        await frozen(volumes, repo)
        await volumes.change("archive", repo, author="op")
        state = await until(volumes, repo, lambda s: s.tier == "archived")
        packed = Path(state.archive)
        assert packed.stat().st_size > 300_000
        assert list(place.iterdir()) == []
        assert await volumes.sweep() == 0  # nothing is old enough yet
        for path in volumes.storage.content.root.rglob("*"):
            if path.is_file():
                os.utime(path, (0, 0))
        assert await volumes.sweep() >= 300_000
        await volumes.change("unarchive", repo, author="op")
        await frozen(volumes, repo)
        assert (place / "d" / "big").read_bytes() == data
        assert (place / "d" / "big").stat().st_mode & 0o7777 == 0o640
        await eventually(lambda: not packed.exists())
        assert await volumes.ensure("acme", 1, "web", "data", 1 << 20) == place


async def test_a_damaged_archive_changes_nothing(root: Path) -> None:
    async with provider(root) as volumes:
        await volumes.ensure("acme", 1, "web", "data", 1 << 20)
        repo = await volumes.find("leases/acme/1/web/data")
        await volumes.release("acme", 1)
        await frozen(volumes, repo)
        await volumes.change("archive", repo, author="op")
        state = await until(volumes, repo, lambda s: s.tier == "archived")
        Path(state.archive).write_bytes(b"rot")
        await volumes.change("unarchive", repo, author="op")
        await eventually(lambda: any(t["error"] for t in volumes.engine.operators.tasks("repo")))
        (row,) = [t for t in volumes.engine.operators.tasks("repo") if t["error"]]
        assert row["error"]["code"] == "archive_damaged"
        assert (await volumes.repos.repo(repo)).tier == "archived"


async def test_purge_and_retention_delete_for_good(root: Path) -> None:
    async with provider(root, retention_s=0.3) as volumes:
        place = await volumes.ensure("acme", 1, "web", "data", 1 << 20)
        repo = await volumes.find("leases/acme/1/web/data")
        await volumes.release("acme", 1)
        await until(volumes, repo, lambda s: s.deleted)
        await eventually(lambda: not list(volumes.storage.layout.shadows.iterdir()))
        async for _ in volumes.log.read(Entity("registry", "local"), watch=True):
            if not await volumes.ls():
                break
        assert not place.exists()
        again = await volumes.ensure("acme", 1, "web", "data", 1 << 20)
        assert await volumes.find("leases/acme/1/web/data") != repo
        with pytest.raises(LeaseholdError) as refused:
            await volumes.purge("acme", await volumes.find("leases/acme/1/web/data"))
        assert refused.value.code == "volume_tier"
        assert again.exists()


async def test_a_host_path_already_taken_is_a_stored_error_of_that_volume_alone(
    root: Path,
) -> None:
    taken = root / "local" / "files" / "leases" / "acme" / "1" / "web" / "data"
    taken.mkdir(parents=True)
    (taken / "precious").write_text("mine")
    evil = root / "local" / "files" / "leases" / "acme" / "2"
    evil.symlink_to("/etc")
    async with provider(root) as volumes:
        with pytest.raises(LeaseholdError, match="move them away"):
            await volumes.ensure("acme", 1, "web", "data", 1 << 20)
        with pytest.raises(LeaseholdError, match="cannot hold a volume"):
            await volumes.ensure("acme", 2, "web", "data", 1 << 20)
        await volumes.ensure("acme", 3, "web", "data", 1 << 20)
        assert (taken / "precious").read_text() == "mine"
        repo = await volumes.find("leases/acme/1/web/data")
        (taken / "precious").rename(root / "precious")
        await volumes.repos.clear_error(repo)
        assert await volumes.ensure("acme", 1, "web", "data", 1 << 20) == taken
        for bad in ("../x", "a/b", "", "x" * 300, ".", "a\nb"):
            with pytest.raises(LeaseholdError) as refused:
                await volumes.ensure("acme", 3, "web", bad, 1 << 20)
            assert refused.value.code == "volume_path_invalid"


async def test_a_move_between_two_hosts(root: Path) -> None:
    """Two storage hosts on one log, each with its own engine: release here, acquire there."""
    log = MemoryLog(SystemClock())
    async with provider(root, log, host="one") as one, provider(root, log, host="two") as two:
        place = await one.ensure("acme", 1, "web", "data", 1 << 20)
        (place / "a").write_text("payload")
        repo = await one.find("leases/acme/1/web/data")
        await one.storage.snapshot(repo, ME, "before")
        one.in_use.clear()
        await one.move(repo, "leases/acme/1/web/data", "two")
        await until(two, repo, lambda s: s.host == "two" and s.move is None)
        await asyncio.wait_for(two.storage.wait_enabled(repo), 10)
        there = await two.storage.mount(repo)
        assert (there / "a").read_text() == "payload"
        assert "before" in [s.message for s in await two.storage.history(repo)]
        await eventually(lambda: not place.exists() and repo not in one.storage.enabled)
        with pytest.raises(LeaseholdError) as refused:
            await one.storage.mount(repo)
        assert refused.value.code == "volume_not_here"


async def test_a_move_that_takes_too_long_is_given_up(root: Path) -> None:
    """Nobody is at the new place: the deadline passes and the old place serves again."""
    async with provider(root, move_timeout_s=0.5) as volumes:
        place = await volumes.ensure("acme", 1, "web", "data", 1 << 20)
        (place / "a").write_text("payload")
        repo = await volumes.find("leases/acme/1/web/data")
        volumes.in_use.clear()
        await volumes.move(repo, "leases/acme/1/web/data", "nowhere")
        await until(volumes, repo, lambda s: s.move is not None)
        await until(volumes, repo, lambda s: s.move is None)
        await asyncio.wait_for(volumes.storage.wait_enabled(repo), 10)
        again = await volumes.ensure("acme", 1, "web", "data", 1 << 20)
        assert again == place
        assert (again / "a").read_text() == "payload"

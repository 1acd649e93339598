"""What a storage host's files are made of, and the rule that one thing is done to a repo at a time.

Everything done to a repo runs in a thread, under the repo's lock; the lock is kept until the thread
has ended even when the caller was cancelled. What is being made has a name in ``staging``; a rename
on the same file system is the moment it becomes real, or is gone.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.storage import immutable
from leasehold.storage.commands import Repos
from leasehold.storage.content import ContentStore
from leasehold.storage.errors import Marked, Weak
from leasehold.storage.paths import Layout
from leasehold.storage.progress import Progress
from leasehold.storage.shadow import Author, Shadow
from leasehold.storage.state import RepoState

THREADS = 4
"""Volumes worked on at once."""

LOCK_WAITERS = 100
"""Tasks that may wait for one repo; more are told to come back."""

SYSTEM = Author("leasehold")

T = TypeVar("T")


class HostFiles:
    """The folders below ``root``, the log's commands, and a lock for each repo."""

    def __init__(self, root: Path, repos: Repos, clock: Clock) -> None:
        self.layout = Layout(root)
        self.repos = repos
        self.clock = clock
        self.content = ContentStore(self.layout.content)
        self.progress = Progress()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="storage")
        self._locks: dict[str, asyncio.Lock] = {}
        self._waiting: dict[str, int] = {}

    async def locked(self, repo: str, work: Callable[[], T]) -> T:
        lock = self._locks.setdefault(repo, asyncio.Lock())
        if self._waiting.get(repo, 0) >= LOCK_WAITERS:
            raise LeaseholdError(
                "volume_busy",
                "too many operations wait for this volume",
                kind=Kind.RATE_LIMITED,
                retry_after=1.0,
            )
        self._waiting[repo] = self._waiting.get(repo, 0) + 1
        try:
            await lock.acquire()
        except BaseException:
            self._leave(repo)
            raise
        running = asyncio.get_running_loop().run_in_executor(self._threads, work)

        def ended(_: object) -> None:
            lock.release()
            self._leave(repo)

        running.add_done_callback(ended)
        try:
            return await asyncio.shield(running)
        except OSError as error:
            failure = _file_error(error)
        raise failure

    def _leave(self, repo: str) -> None:
        self._waiting[repo] -= 1
        if not self._waiting[repo]:
            del self._waiting[repo], self._locks[repo]

    def shadow(self, state: RepoState) -> Shadow:
        return Shadow(Path(state.shadow_path), self.content)

    def free_bytes(self) -> int:
        """Bytes the file system has left for us."""
        found = os.statvfs(self.layout.root)
        return found.f_bavail * found.f_frsize

    def prepare(self) -> None:
        """Make the folders, and finish what an earlier process was about to delete."""
        self.layout.make()
        for entry in self.layout.staging.glob("gone.*"):
            immutable.set_tree(entry, False)
            shutil.rmtree(entry)

    def close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)


def discard(path: Path, staging: Path) -> None:
    """Out of its place at once, then gone: a crash leaves it in staging, to be swept."""
    staging.mkdir(parents=True, exist_ok=True)
    name = staging / f"gone.{path.name}.{os.stat(path).st_ino}"
    immutable.set_tree(path, False)
    path.rename(name)
    shutil.rmtree(name)


def prune(folder: Path, top: Path) -> None:
    """Remove folders that became empty, up to but not including ``top``."""
    while folder != top and top in folder.parents:
        try:
            folder.rmdir()
        except OSError:
            return
        folder = folder.parent


def _file_error(error: OSError) -> Marked:
    """Marked for the activities; the error inside is what a caller is told."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        problem = LeaseholdError(
            "disk_full",
            f"no space is left for volumes: {error}",
            kind=Kind.UNAVAILABLE,
            retry_after=30.0,
        )
    else:
        problem = LeaseholdError(
            "volume_io", f"the volume's files: {error}", kind=Kind.INTERNAL, got=error.filename
        )
    problem.__cause__ = error
    return Weak(problem)

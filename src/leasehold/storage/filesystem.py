"""Volumes as directories: makes, serves, snapshots, freezes, moves and archives them.

Everything done to one repo is done one at a time, in a thread, under the repo's lock; the lock is
kept until the thread has ended even when the caller was cancelled. Each step finds out how far an
earlier, interrupted try came, and goes on from there. What is being made has a name in
``staging``; a rename on the same file system is the moment it becomes real.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.core.logs import get_logger
from leasehold.model.events import storage as facts
from leasehold.storage import archive, immutable
from leasehold.storage.commands import Repos
from leasehold.storage.content import ContentStore, sync_filesystem
from leasehold.storage.copying import copy_tree
from leasehold.storage.errors import Stored, Strong, Weak
from leasehold.storage.gitlab import Gitlab
from leasehold.storage.paths import Layout
from leasehold.storage.ports import RepoInfo
from leasehold.storage.restore import Restored, restore
from leasehold.storage.shadow import Author, Change, Shadow, Snapshot
from leasehold.storage.state import RepoState

THREADS = 4
"""Volumes worked on at once."""

SERVE_PATIENCE = 5.0
"""Seconds a question about a repo waits for it to be served."""

COMMIT_PATIENCE = 30.0
"""Seconds a thread waits for the log to take its word."""

SYSTEM = Author("leasehold")
LOCK_WAITERS = 100
"""Tasks that may wait for one repo; more are told to come back."""

log = get_logger(__name__)
T = TypeVar("T")


class FileStorage:
    """The files of one storage host, below ``root``. Implements ``Initializer`` and ``Processor``.

    ``host`` is this host's name in the registry. ``others`` are the roots of further hosts that
    this machine can reach as file systems, by name, so that volumes can be moved to and from them.
    """

    def __init__(
        self,
        root: Path,
        repos: Repos,
        clock: Clock,
        *,
        host: str = "local",
        gitlab: Gitlab | None = None,
    ) -> None:
        self.layout = Layout(root)
        self.repos = repos
        self.clock = clock
        self.host = host
        self.gitlab = gitlab
        self.content = ContentStore(self.layout.content)
        self.enabled: dict[str, RepoInfo] = {}
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="storage")
        self.ask: Callable[[str], None] = lambda _: None
        """Called for a repo that is wanted and not served: wakes whoever would serve it."""
        self._locks: dict[str, asyncio.Lock] = {}
        self._waiting: dict[str, int] = {}
        self._arrival: dict[str, set[asyncio.Event]] = {}

    # -- one at a time -------------------------------------------------------------------------

    async def _locked(self, repo: str, work: Callable[[], T]) -> T:
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
            raise _file_error(error) from error

    def _leave(self, repo: str) -> None:
        self._waiting[repo] -= 1
        if not self._waiting[repo]:
            del self._waiting[repo], self._locks[repo]

    # -- Initializer ---------------------------------------------------------------------------

    async def get_repo(self, repo: str) -> RepoInfo:
        state = await self.repos.repo(repo)
        if state.host != self.host:
            raise Strong(
                LeaseholdError(
                    "volume_elsewhere",
                    f"the volume belongs to host {state.host}",
                    kind=Kind.CONFLICT,
                    expected=self.host,
                    got=state.host,
                )
            )
        return _info(state)

    async def init_repo(self, repo: str) -> None:
        state = await self.repos.repo(repo)
        if state.error:
            raise Stored(state.error)
        if state.host != self.host or state.shadow_path:
            return
        try:
            files = self.layout.host_path(state.path)
        except LeaseholdError as error:
            raise Strong(error) from error
        shadow_path = self.layout.shadow(repo)

        def make() -> None:
            self.layout.make()
            owned = shadow_path / "leasehold-path"
            shadow = Shadow(shadow_path, self.content)
            if not owned.exists():
                if files.exists() and any(files.iterdir()):
                    raise Strong(
                        LeaseholdError(
                            "host_path_taken",
                            f"{files} exists and is not empty; move it away to use this path",
                            kind=Kind.CONFLICT,
                            got=str(files),
                        )
                    )
                shadow.create()
            files.mkdir(parents=True, exist_ok=True)
            files.chmod(state.mode)
            if (state.uid, state.gid) != (0, 0):
                os.chown(files, state.uid, state.gid)
            owned.write_text(state.path)
            shadow.snapshot(files, SYSTEM, "created", self.clock.now())
            sync_filesystem(self.layout.root)

        await self._locked(repo, make)
        await self.repos.confirm_shadow(repo, str(files), str(shadow_path))

    async def enable_gitlab(self, repo: str) -> None:
        state = await self.repos.repo(repo)
        if state.error:
            raise Stored(state.error)
        if state.gitlab_url:
            return
        if self.gitlab is None:
            raise Strong(LeaseholdError("gitlab_disabled", "no GitLab is configured here"))
        project, url = await self.gitlab.ensure_project(state.path)
        await self.repos.confirm_gitlab(repo, project, url)

    async def move_shadow(self, repo: str, workflow: str) -> None:
        state = await self.repos.repo(repo)
        if state.shadow_move != workflow:
            return
        target = self.layout.shadow(repo)
        source = Path(state.shadow_path)
        await self._locked(repo, lambda: _switch(source, target, self.layout.staging, repo))
        await self.repos.shadow_moved(repo, workflow, str(target))

    async def move_repo(self, repo: str, workflow: str) -> None:
        """Copy or rename to the new place, then commit: the log decides whether it counted."""
        move = await self.repos.moves.state(workflow)
        started = move.started
        if started is None or move.moved is not None or move.aborted:
            return
        try:
            files = self.layout.host_path(started.new_path)
        except LeaseholdError as error:
            raise Strong(error) from error
        shadow = self.layout.shadow(repo)
        old_files, old_shadow = Path(started.old_host_path), Path(started.old_shadow)
        loop = asyncio.get_running_loop()
        frozen = (await self.repos.repo(repo)).tier == "frozen"

        def bring() -> bool:
            self.layout.make()
            if frozen and old_files.exists():
                immutable.set_tree(old_files, False)  # an immutable tree cannot be renamed
            _switch(old_files, files, self.layout.staging, f"{repo}.{workflow}.files")
            _switch(old_shadow, shadow, self.layout.staging, f"{repo}.{workflow}.shadow")
            if old_shadow.parent.parent != self.layout.root:
                self._bring_contents(shadow, old_shadow.parent.parent)
            if frozen:
                immutable.set_tree(files, True)
            sync_filesystem(self.layout.root)
            # Under the lock: whoever undoes an aborted move waits until we know how it ended.
            committed = asyncio.run_coroutine_threadsafe(
                self.repos.files_moved(workflow, str(files), str(shadow)), loop
            )
            return committed.result(COMMIT_PATIENCE)

        if not await self._locked(repo, bring):
            await self.move_back(repo, workflow)

    def _bring_contents(self, shadow: Path, old_root: Path) -> None:
        source = ContentStore(old_root / "content")
        history = Shadow(shadow, self.content)
        for snapshot in history.history():
            for _, record in history.records(snapshot.commit):
                if record.type == "f" and not self.content.has(record.content):
                    with source.path(record.content).open("rb") as stream:
                        self.content.put_stream(stream)
        self.content.settle()

    async def move_back(self, repo: str, workflow: str) -> None:
        move = await self.repos.moves.state(workflow)
        started = move.started
        if started is None or not move.aborted:
            return
        files, shadow = self.layout.files / started.new_path, self.layout.shadow(repo)
        old_files, old_shadow = Path(started.old_host_path), Path(started.old_shadow)
        frozen = (await self.repos.repo(repo)).tier == "frozen"

        def undo() -> None:
            for old, new in ((old_files, files), (old_shadow, shadow)):
                if old == new or not new.exists():
                    continue
                if old.exists():
                    _discard(new, self.layout.staging)
                else:
                    old.parent.mkdir(parents=True, exist_ok=True)
                    immutable.set_tree(new, False)
                    new.rename(old)
            if frozen and old_files.exists():
                immutable.set_tree(old_files, True)
            _prune(files.parent, self.layout.files)
            sync_filesystem(self.layout.root)

        await self._locked(repo, undo)

    async def clear_old(self, repo: str, workflow: str) -> None:
        move = await self.repos.moves.state(workflow)
        started, moved = move.started, move.moved
        if started is None or moved is None:
            return
        old_files, old_shadow = Path(started.old_host_path), Path(started.old_shadow)

        def clear() -> None:
            for old, new in (
                (old_files, Path(moved.host_path)),
                (old_shadow, Path(moved.shadow_path)),
            ):
                if old != new and old.exists() and new.exists():
                    _discard(old, old_shadow.parent.parent / "staging")
            _prune(old_files.parent, old_shadow.parent.parent / "files")

        await self._locked(repo, clear)

    # -- Processor -----------------------------------------------------------------------------

    async def enable_repo(self, info: RepoInfo) -> None:
        state = await self.repos.repo(info.id)
        if state.tier != "archived" and not await asyncio.to_thread(os.path.isdir, info.host_path):
            raise Weak(
                LeaseholdError(
                    "volume_missing",
                    f"the files of the volume are not at {info.host_path}",
                    kind=Kind.INTERNAL,
                    got=info.host_path,
                )
            )
        self.enabled[info.id] = info
        for event in self._arrival.pop(info.id, ()):
            event.set()

    async def disable_repo(self, repo: str) -> None:
        self.enabled.pop(repo, None)
        await self._locked(repo, lambda: None)

    async def wait_enabled(self, repo: str) -> RepoInfo:
        """Wait until the repo is served here. After a restart repos are served on demand."""
        if repo not in self.enabled:
            self.ask(repo)
        while repo not in self.enabled:
            event = asyncio.Event()
            waiting = self._arrival.setdefault(repo, set())
            waiting.add(event)
            try:
                await event.wait()
            finally:
                waiting.discard(event)
        return self.enabled[repo]

    async def mount(self, repo: str) -> Path:
        """The directory to mount into a workload; refused unless online and served here."""
        state = await self.repos.repo(repo)
        if repo not in self.enabled:
            raise LeaseholdError(
                "volume_not_here",
                "the volume is not served on this host",
                kind=Kind.UNAVAILABLE,
                retry_after=1.0,
            )
        if state.tier != "online" or state.busy:
            raise LeaseholdError(
                "volume_not_mountable",
                f"the volume is {state.tier}"
                + (f" and {state.busy}" if state.busy else "")
                + "; unfreeze it first",
                kind=Kind.CONFLICT,
                got=state.tier,
            )
        return self.layout.host_path(state.path)

    async def freeze_repo(self, repo: str, workflow: str) -> None:
        state = await self.repos.repo(repo)
        if state.action is None or state.action.workflow != workflow:
            return
        author = Author(state.action.author or SYSTEM.name)
        why = state.action.reason or "frozen"
        files = Path(state.host_path)

        def freeze() -> Snapshot:
            taken = self._shadow(state).snapshot(files, author, why, self.clock.now())
            if not immutable.set_tree(files, True):
                log.info("volume.no_immutable_flag", path=str(files))
            return taken

        taken = await self._locked(repo, freeze)
        await self.repos.end(
            repo,
            workflow,
            facts.TierChanged(
                workflow=workflow,
                tier="frozen",
                commit=taken.commit,
                bytes=taken.bytes,
                files=taken.files,
            ),
        )

    async def unfreeze_repo(self, repo: str, workflow: str) -> None:
        state = await self.repos.repo(repo)
        if state.action is None or state.action.workflow != workflow:
            return
        await self._locked(repo, lambda: immutable.set_tree(state.host_path, False))
        await self.repos.end(repo, workflow, facts.TierChanged(workflow=workflow, tier="online"))

    async def archive_repo(self, repo: str, workflow: str) -> None:
        state = await self.repos.repo(repo)
        if state.action is None or state.action.workflow != workflow:
            return
        target = self.layout.archive(repo, workflow)
        files = Path(state.host_path)

        def pack() -> str:
            self.layout.make()
            sha256 = archive.pack(self._shadow(state), state.commit, target)
            if files.exists():
                immutable.set_tree(files, False)
                _discard(files, self.layout.staging)
            files.mkdir(exist_ok=True)  # holds the name
            return sha256

        sha256 = await self._locked(repo, pack)
        fact = facts.TierChanged(
            workflow=workflow, tier="archived", archive=str(target), archive_sha256=sha256
        )
        await self.repos.end(repo, workflow, fact)

    async def unarchive_repo(self, repo: str, workflow: str) -> None:
        state = await self.repos.repo(repo)
        if state.action is None or state.action.workflow != workflow:
            return
        files, packed = Path(state.host_path), Path(state.archive)
        working = self.layout.staging / f"{repo}.{workflow}.unarchive"

        def unpack() -> None:
            archive.unpack_contents(packed, state.archive_sha256, self.content)
            restore(self._shadow(state), state.commit, working)
            working.chmod(state.mode)
            if (state.uid, state.gid) != (0, 0):
                os.chown(working, state.uid, state.gid)
            if files.exists():
                immutable.set_tree(files, False)
                _discard(files, self.layout.staging)
            working.rename(files)
            immutable.set_tree(files, True)
            sync_filesystem(self.layout.root)

        await self._locked(repo, unpack)
        fact = facts.TierChanged(workflow=workflow, tier="frozen")
        await self.repos.end(repo, workflow, fact)
        await asyncio.to_thread(packed.unlink, missing_ok=True)

    # -- on demand -----------------------------------------------------------------------------

    def _shadow(self, state: RepoState) -> Shadow:
        return Shadow(Path(state.shadow_path), self.content)

    async def snapshot(self, repo: str, author: Author, reason: str) -> Snapshot:
        """Record the volume as it is now."""
        state = await self._served(repo, "online")
        shadow = self._shadow(state)
        files = Path(state.host_path)
        taken = await self._locked(
            repo, lambda: shadow.snapshot(files, author, reason, self.clock.now())
        )
        fact = facts.SnapshotTaken(
            commit=taken.commit,
            files=taken.files,
            bytes=taken.bytes,
            stored=taken.stored,
            reason=reason[:200],
        )
        await self.repos.snapshot_taken(repo, fact)
        return taken

    async def history(self, repo: str, limit: int = 1000) -> list[Snapshot]:
        state = await self._served(repo)
        return await self._locked(repo, lambda: self._shadow(state).history(limit))

    async def diff(self, repo: str, old: str, new: str | None = None) -> list[Change]:
        """What changed between two snapshots; ``new`` defaults to the newest."""
        state = await self._served(repo)
        shadow = self._shadow(state)
        return await self._locked(
            repo, lambda: shadow.diff(shadow.resolve(old), shadow.resolve(new))
        )

    async def restore(self, repo: str, at: str | float, author: Author) -> Restored:
        """Bring the volume back to a snapshot; what is there now is recorded first."""
        state = await self._served(repo, "online")
        shadow = self._shadow(state)
        commit = await self._locked(repo, lambda: shadow.resolve(at))
        await self.snapshot(repo, author, f"before restoring {commit[:12]}")
        done = await self._locked(repo, lambda: restore(shadow, commit, Path(state.host_path)))
        await self.snapshot(repo, author, f"restored {commit[:12]}")
        return done

    async def remove(self, repo: str, state: RepoState) -> None:
        """Delete the files, history and archive of a repo that was deleted in the log."""

        def delete() -> None:
            for path in (Path(state.host_path), Path(state.shadow_path)):
                if str(path) != "." and path.exists():
                    immutable.set_tree(path, False)
                    _discard(path, self.layout.staging)
            if state.host_path:
                _prune(Path(state.host_path).parent, self.layout.files)
            if state.archive:
                Path(state.archive).unlink(missing_ok=True)

        self.enabled.pop(repo, None)
        await self._locked(repo, delete)

    async def _served(self, repo: str, tier: str = "") -> RepoState:
        state = await self.repos.repo(repo)
        if state.host == self.host and not state.move:
            with contextlib.suppress(TimeoutError):
                async with self.clock.timeout(SERVE_PATIENCE):
                    await self.wait_enabled(repo)
        if repo not in self.enabled:
            raise LeaseholdError(
                "volume_not_here",
                "the volume is not served on this host",
                kind=Kind.UNAVAILABLE,
                retry_after=1.0,
            )
        if tier and (state.tier != tier or state.busy):
            raise LeaseholdError(
                "volume_tier",
                f"the volume is {state.tier}" + (f" and {state.busy}" if state.busy else ""),
                kind=Kind.CONFLICT,
                expected=tier,
                got=state.tier,
            )
        return state

    def prepare(self) -> None:
        """Make the folders, and finish what an earlier process was about to delete."""
        self.layout.make()
        for entry in self.layout.staging.glob("gone.*"):
            immutable.set_tree(entry, False)
            shutil.rmtree(entry)

    def close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)

    def free_bytes(self) -> int:
        """Bytes the file system has left for us."""
        found = os.statvfs(self.layout.root)
        return found.f_bavail * found.f_frsize


def _info(state: RepoState) -> RepoInfo:
    return RepoInfo(
        state.id,
        state.tail or "",
        state.path,
        state.host,
        state.host_path,
        state.shadow_path,
        state.gitlab_url,
        state.size_bytes,
        state.uid,
        state.gid,
        state.mode,
    )


def _switch(old: Path, new: Path, staging: Path, name: str) -> None:
    """Make ``new`` what ``old`` is: renamed where possible, else copied, verified, then renamed."""
    if old == new or (new.exists() and not old.exists()):
        return
    new.parent.mkdir(parents=True, exist_ok=True)
    if new.exists() and (new / ".").exists() and not _is_copy(new, staging, name):
        raise Strong(
            LeaseholdError(
                "host_path_taken", f"{new} exists already", kind=Kind.CONFLICT, got=str(new)
            )
        )
    if new.exists():
        return
    if old.stat().st_dev == new.parent.stat().st_dev:
        old.rename(new)
        return
    working = staging / name
    copy_tree(old, working)
    _mark(staging, name)
    working.rename(new)


def _mark(staging: Path, name: str) -> None:
    """Remember that a verified copy exists, so that a repeated move knows its own work."""
    marker = staging / f"{name}.copied"
    marker.write_text("")
    sync_filesystem(staging)


def _is_copy(new: Path, staging: Path, name: str) -> bool:
    return (staging / f"{name}.copied").exists()


def _discard(path: Path, staging: Path) -> None:
    """Out of its place at once, then gone: a crash leaves it in staging, to be swept."""
    staging.mkdir(parents=True, exist_ok=True)
    name = staging / f"gone.{path.name}.{os.stat(path).st_ino}"
    immutable.set_tree(path, False)
    path.rename(name)
    shutil.rmtree(name)


def _prune(folder: Path, top: Path) -> None:
    """Remove folders that became empty, up to but not including ``top``."""
    while folder != top and top in folder.parents:
        try:
            folder.rmdir()
        except OSError:
            return
        folder = folder.parent


def _file_error(error: OSError) -> Exception:
    if error.errno in (28, 122):  # ENOSPC, EDQUOT
        return Weak(
            LeaseholdError(
                "disk_full",
                f"no space is left for volumes: {error}",
                kind=Kind.UNAVAILABLE,
                retry_after=30.0,
            )
        )
    return Weak(LeaseholdError("volume_io", f"the volume's files: {error}", kind=Kind.INTERNAL))

"""Volumes as directories: makes them, serves them, snapshots and restores them on demand.

This is the whole storage host: ``host`` keeps its folders and locks, ``moves`` brings repos to
other places, ``tiers`` freezes and archives them. Each step finds out how far an earlier,
interrupted try came, and goes on from there.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.model.events import storage as facts
from leasehold.storage import immutable
from leasehold.storage.commands import Repos
from leasehold.storage.content import sync_filesystem
from leasehold.storage.errors import Marked, Stored, Strong, Weak
from leasehold.storage.gitlab import Gitlab
from leasehold.storage.host import SYSTEM, discard, prune
from leasehold.storage.moves import Moves
from leasehold.storage.ports import RepoInfo
from leasehold.storage.restore import Restored, restore
from leasehold.storage.shadow import Author, Change, Shadow, Snapshot
from leasehold.storage.state import RepoState
from leasehold.storage.tiers import Tiers
from leasehold.storage.tree import Record

SERVE_PATIENCE = 5.0
"""Seconds a question about a repo waits for it to be served."""

T = TypeVar("T")


class FileStorage(Moves, Tiers):
    """The files of one storage host, below ``root``. Implements ``Initializer`` and ``Processor``.

    ``host`` is this host's name in the registry.
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
        super().__init__(root, repos, clock)
        self.host = host
        self.gitlab = gitlab
        self.enabled: dict[str, RepoInfo] = {}
        self.ask: Callable[[str], None] = lambda _: None
        """Called for a repo that is wanted and not served: wakes whoever would serve it."""
        self._arrival: dict[str, set[asyncio.Event]] = {}

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
                            f"files of somebody else are in its place; move them away: {files}",
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

        await self.locked(repo, make)
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
        await self.locked(repo, lambda: None)

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

    # -- on demand -----------------------------------------------------------------------------

    async def _asked(self, repo: str, work: Callable[[], T]) -> T:
        """As :meth:`locked`, for somebody who waits for the answer."""
        try:
            return await self.locked(repo, work)
        except Marked as error:
            if isinstance(error.__cause__, LeaseholdError):
                raise error.__cause__ from None
            raise

    async def snapshot(self, repo: str, author: Author, reason: str) -> Snapshot:
        """Record the volume as it is now."""
        state = await self.served(repo, "online")
        shadow = self.shadow(state)
        files = Path(state.host_path)
        taken = await self._asked(
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
        state = await self.served(repo)
        return await self._asked(repo, lambda: self.shadow(state).history(limit))

    async def diff(self, repo: str, old: str, new: str | None = None) -> list[Change]:
        """What changed between two snapshots; ``new`` defaults to the newest."""
        state = await self.served(repo)
        shadow = self.shadow(state)
        return await self._asked(
            repo, lambda: shadow.diff(shadow.resolve(old), shadow.resolve(new))
        )

    async def listing(self, repo: str, at: str | None = None) -> list[tuple[str, Record]]:
        """Everything in a snapshot (default: the newest), by path; parents before children."""
        shadow = self.shadow(await self.served(repo))
        return await self._asked(repo, lambda: list(shadow.records(shadow.resolve(at))))

    async def restore(self, repo: str, at: str | float, author: Author) -> Restored:
        """Bring the volume back to a snapshot; what is there now is recorded first."""
        state = await self.served(repo, "online")
        shadow = self.shadow(state)
        commit = await self._asked(repo, lambda: shadow.resolve(at))
        await self.snapshot(repo, author, f"before restoring {commit[:12]}")

        def bring() -> Restored:
            with self.progress.of(repo, "restoring") as tally:
                return restore(shadow, commit, Path(state.host_path), tally)

        done = await self._asked(repo, bring)
        await self.snapshot(repo, author, f"restored {commit[:12]}")
        return done

    async def remove(self, repo: str, state: RepoState) -> None:
        """Delete the files, history and archive of a repo that was deleted in the log."""

        def delete() -> None:
            for path in (Path(state.host_path), Path(state.shadow_path)):
                if str(path) != "." and path.exists():
                    immutable.set_tree(path, False)
                    discard(path, self.layout.staging)
            if state.host_path:
                prune(Path(state.host_path).parent, self.layout.files)
            if state.archive:
                Path(state.archive).unlink(missing_ok=True)

        self.enabled.pop(repo, None)
        await self.locked(repo, delete)

    async def served(self, repo: str, tier: str = "") -> RepoState:
        """The state of a repo that is served here, and is in ``tier`` and idle where one is given;
        else ``volume_not_here`` or ``volume_tier``."""
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

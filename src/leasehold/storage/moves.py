"""Moving a repo: from one place to another, also across file systems, and back if it is given up.

The log decides whether a move counted: files are copied or renamed first, then the commit is
appended, under the repo's lock. Until then the old place is what counts, and an aborted move is
undone; afterwards the old place is cleared. Each step finds out how far an interrupted try came.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.storage import immutable
from leasehold.storage.content import ContentStore, sync_filesystem
from leasehold.storage.copying import copy_tree
from leasehold.storage.errors import Strong
from leasehold.storage.host import HostFiles, discard, prune
from leasehold.storage.progress import Tally
from leasehold.storage.shadow import Shadow

COMMIT_PATIENCE = 30.0
"""Seconds a thread waits for the log to take its word."""


class Moves(HostFiles):
    """The part of ``Initializer`` that moves."""

    async def move_shadow(self, repo: str, workflow: str) -> None:
        state = await self.repos.repo(repo)
        if state.shadow_move != workflow:
            return
        target = self.layout.shadow(repo)
        source = Path(state.shadow_path)
        await self.locked(repo, lambda: _switch(source, target, self.layout.staging, repo))
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
            with self.progress.of(repo, "copying") as tally:
                staging = self.layout.staging
                _switch(old_files, files, staging, f"{repo}.{workflow}.files", tally)
                _switch(old_shadow, shadow, staging, f"{repo}.{workflow}.shadow", tally)
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

        if not await self.locked(repo, bring):
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
                    discard(new, self.layout.staging)
                else:
                    old.parent.mkdir(parents=True, exist_ok=True)
                    immutable.set_tree(new, False)
                    new.rename(old)
            if frozen and old_files.exists():
                immutable.set_tree(old_files, True)
            prune(files.parent, self.layout.files)
            sync_filesystem(self.layout.root)

        await self.locked(repo, undo)

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
                    discard(old, old_shadow.parent.parent / "staging")
            prune(old_files.parent, old_shadow.parent.parent / "files")

        await self.locked(repo, clear)


def _switch(old: Path, new: Path, staging: Path, name: str, tally: Tally | None = None) -> None:
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
    copy_tree(old, working, tally)
    _mark(staging, name)
    working.rename(new)


def _mark(staging: Path, name: str) -> None:
    """Remember that a verified copy exists, so that a repeated move knows its own work."""
    marker = staging / f"{name}.copied"
    marker.write_text("")
    sync_filesystem(staging)


def _is_copy(new: Path, staging: Path, name: str) -> bool:
    return (staging / f"{name}.copied").exists()

"""The tiers of a repo: online, frozen (read-only, kept), archived (packed, its files gone).

Freezing takes a last snapshot with its author's name and makes the tree immutable without touching
its modes. Archiving packs the newest snapshot with its contents; the files go only afterwards.
Every change ends with the word in the log; doing it again does what is left of it.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from leasehold.core.logs import get_logger
from leasehold.model.events import storage as facts
from leasehold.storage import archive, immutable
from leasehold.storage.content import sync_filesystem
from leasehold.storage.host import SYSTEM, HostFiles, discard
from leasehold.storage.restore import restore
from leasehold.storage.shadow import Author, Snapshot

log = get_logger(__name__)


class Tiers(HostFiles):
    """The part of ``Processor`` that changes tiers."""

    async def freeze_repo(self, repo: str, workflow: str) -> None:
        state = await self.repos.repo(repo)
        if state.action is None or state.action.workflow != workflow:
            return
        author = Author(state.action.author or SYSTEM.name)
        why = state.action.reason or "frozen"
        files = Path(state.host_path)

        def freeze() -> Snapshot:
            taken = self.shadow(state).snapshot(files, author, why, self.clock.now())
            if not immutable.set_tree(files, True):
                log.info("volume.no_immutable_flag", path=str(files))
            return taken

        taken = await self.locked(repo, freeze)
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
        await self.locked(repo, lambda: immutable.set_tree(state.host_path, False))
        await self.repos.end(repo, workflow, facts.TierChanged(workflow=workflow, tier="online"))

    async def archive_repo(self, repo: str, workflow: str) -> None:
        state = await self.repos.repo(repo)
        if state.action is None or state.action.workflow != workflow:
            return
        target = self.layout.archive(repo, workflow)
        files = Path(state.host_path)

        def pack() -> str:
            self.layout.make()
            with self.progress.of(repo, "packing") as tally:
                sha256 = archive.pack(self.shadow(state), state.commit, target, tally)
            if files.exists():
                immutable.set_tree(files, False)
                discard(files, self.layout.staging)
            files.mkdir(exist_ok=True)  # holds the name
            return sha256

        sha256 = await self.locked(repo, pack)
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
            with self.progress.of(repo, "unpacking") as tally:
                archive.unpack_contents(packed, state.archive_sha256, self.content, tally)
                restore(self.shadow(state), state.commit, working, tally)
            working.chmod(state.mode)
            if (state.uid, state.gid) != (0, 0):
                os.chown(working, state.uid, state.gid)
            if files.exists():
                immutable.set_tree(files, False)
                discard(files, self.layout.staging)
            working.rename(files)
            immutable.set_tree(files, True)
            sync_filesystem(self.layout.root)

        await self.locked(repo, unpack)
        fact = facts.TierChanged(workflow=workflow, tier="frozen")
        await self.repos.end(repo, workflow, fact)
        await asyncio.to_thread(packed.unlink, missing_ok=True)

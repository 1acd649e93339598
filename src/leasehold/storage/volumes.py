"""Persistent volumes of leases: what the deployment side, operators and tenants talk to.

A volume of a lease is the repo at ``leases/<owner>/<dseq>/<service>/<volume>`` of the provider's
registry. Asking for one writes the request into the log and waits until the activities have made
it and this host serves it. Closing a lease freezes its volumes; they are kept for a retention time,
count as used, yield oldest first when the disk fills, and may be adopted by a new lease of the
same owner.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from leasehold.core import metrics
from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError, not_found
from leasehold.core.logs import get_logger
from leasehold.core.service import Service
from leasehold.events.event import Entity, WillBlock
from leasehold.events.log import Log
from leasehold.observe.engine import Engine
from leasehold.storage.commands import Repos
from leasehold.storage.content import ContentStore
from leasehold.storage.errors import Marked
from leasehold.storage.filesystem import FileStorage
from leasehold.storage.gitlab import Gitlab
from leasehold.storage.host import SYSTEM
from leasehold.storage.paths import is_below, volume_path
from leasehold.storage.settings import StorageSettings
from leasehold.storage.shadow import Author, Shadow
from leasehold.storage.state import RepoState
from leasehold.storage.trimming import Policy
from leasehold.storage.wiring import register

PRESSURE_EVERY = 30.0
"""Seconds between looks at the free space."""

log = get_logger(__name__)

VOLUMES = metrics.gauge("leasehold_volumes", "Volumes of this host", ["tier"])
FREE_BYTES = metrics.gauge("leasehold_volumes_free_bytes", "Bytes free where volumes are")
FROZEN_BYTES = metrics.gauge("leasehold_volumes_frozen_bytes", "Bytes held by frozen volumes")


class Volumes(Service):
    """The volumes of this host below ``root``.

    Registers its activities with ``engine``, so make it before the engine starts, and start it
    before the engine.
    """

    def __init__(
        self,
        root: Path,
        log: Log,
        engine: Engine,
        clock: Clock | None = None,
        settings: StorageSettings | None = None,
        *,
        gitlab: Gitlab | None = None,
    ) -> None:
        super().__init__("volumes", clock=clock)
        self.settings = settings or StorageSettings()
        self.log = log
        self.engine = engine
        if gitlab is None and self.settings.gitlab_url:
            gitlab = Gitlab(
                self.settings.gitlab_url, self.settings.gitlab_token, self.settings.gitlab_group
            )
        self.gitlab = gitlab
        self.repos = Repos(log, self.clock, self.settings.registry)
        self.storage = FileStorage(
            root, self.repos, self.clock, host=self.settings.host, gitlab=gitlab
        )
        self.storage.ask = self._ask
        self.in_use: dict[str, int] = {}
        """Mounts handed out and not given back, by repo; empty after a restart until the
        deployment side asks again."""
        self.observer = register(
            engine,
            self.repos,
            self.settings.host,
            self.settings.prefixes,
            self.storage,
            self.storage,
            remove=self._remove,
            may_release=self._unused,
            trim=Policy(self.settings.trim_events, self.settings.trim_keep_s),
        )

    def _ask(self, repo: str) -> None:
        if repo in self.engine.table.registrations["repo"].asleep:
            self.engine.operators.kick("repo", repo)

    def _unused(self, repo: str) -> bool:
        return not self.in_use.get(repo)

    async def _remove(self, repo: str) -> None:
        state = await self.repos.repos.state(repo)
        await self.storage.remove(repo, state)
        await self.repos.confirm_removed(repo, state.path)

    async def start(self) -> None:
        self.resources.callback(self.storage.close)
        if self.gitlab is not None:
            self.resources.push_async_callback(self.gitlab.close)
        await asyncio.to_thread(self.storage.prepare)
        self.spawn(self._yield_under_pressure(), name="pressure")
        if self.settings.snapshot_every_s:
            self.spawn(self._snapshot_regularly(), name="snapshots")
        if self.settings.sweep_every_s:
            self.spawn(self._sweep_regularly(), name="sweep")

    # -- leases --------------------------------------------------------------------------------

    async def ensure(
        self,
        owner: str,
        dseq: int,
        service: str,
        volume: str,
        size_bytes: int,
        *,
        uid: int = 0,
        gid: int = 0,
        mode: int = 0o755,
    ) -> Path:
        """The directory of a lease's volume, ready to be mounted; the same one every time.

        Made when missing, thawed when frozen. Raises the stored error of the repo when it cannot
        be made, or ``volume_not_ready`` when it takes longer than the settings allow.
        """
        path = volume_path(owner, dseq, service, volume)
        repo = await self.repos.accept(
            path,
            self.settings.host,
            size_bytes=size_bytes,
            uid=uid,
            gid=gid,
            mode=mode,
            gitlab=self.gitlab is not None,
        )
        place = await self._ready(repo)
        self.in_use[repo] = self.in_use.get(repo, 0) + 1
        return place

    async def _ready(self, repo: str) -> Path:
        try:
            async with self.clock.timeout(self.settings.ready_timeout_s):
                async for item in self.log.read(Entity("repo", repo), watch=True):
                    if not isinstance(item, WillBlock):
                        continue
                    state = await self.repos.repos.state(repo)
                    if state.error:
                        raise LeaseholdError(
                            "volume_failed",
                            f"the volume cannot be used: {state.error_full}",
                            kind=Kind.CONFLICT,
                            path=state.path,
                        )
                    if state.deleted:
                        break  # its place is free again in a moment
                    if not state.shadow_path or state.busy:
                        continue
                    if state.tier != "online":
                        thaw = "unfreeze" if state.tier == "frozen" else "unarchive"
                        await self.repos.begin(thaw, repo, author=SYSTEM.name)
                        continue
                    await self.storage.wait_enabled(repo)
                    return await self.storage.mount(repo)
        except TimeoutError:
            pass
        raise LeaseholdError(
            "volume_not_ready",
            f"the volume was not ready within {self.settings.ready_timeout_s:g} s",
            kind=Kind.UNAVAILABLE,
            retry_after=5.0,
        )

    async def release(self, owner: str, dseq: int) -> None:
        """The lease is closed and nothing of it runs any more: freeze its volumes and keep them."""
        for repo, state in await self.of(f"leases/{owner}/{dseq}"):
            self.in_use.pop(repo, None)
            if state.tier == "online" and state.shadow_path:
                await self.repos.begin(
                    "freeze",
                    repo,
                    author=owner,
                    reason="lease closed",
                    keep_for=self.settings.retention_s,
                )

    async def adopt(self, owner: str, repo: str, dseq: int, service: str, volume: str) -> str:
        """Move a frozen volume of ``owner`` to a new lease of theirs; returns the workflow."""
        state = await self.owned(owner, repo)
        if state.tier != "frozen":
            raise LeaseholdError(
                "volume_tier",
                f"only a frozen volume can be adopted, and this one is {state.tier}",
                kind=Kind.CONFLICT,
                expected="frozen",
                got=state.tier,
            )
        workflow = await self.repos.begin_move(
            repo,
            volume_path(owner, dseq, service, volume),
            self.settings.host,
            timeout=self.settings.move_timeout_s,
        )
        log.info("volume.adopted", repo=repo, old=state.path, dseq=dseq)
        return workflow

    async def purge(self, owner: str, repo: str) -> None:
        """Delete a frozen or archived volume of ``owner`` for good."""
        await self.owned(owner, repo)
        await self.repos.delete(repo, "purged")

    async def owned(self, owner: str, repo: str) -> RepoState:
        """The volume, if it belongs to a lease of ``owner``: else as if it were not there."""
        state = await self.repos.repo(repo)
        if not is_below(state.path, f"leases/{owner}"):
            raise not_found("volume", repo)
        return state

    # -- operators -----------------------------------------------------------------------------

    async def of(self, prefix: str = "") -> list[tuple[str, RepoState]]:
        """The volumes at or below a global path."""
        registry = await self.repos.registries.state(self.settings.registry)
        return [
            (repo, await self.repos.repos.state(repo))
            for repo, listed in registry.repos.items()
            if is_below(listed.path, prefix)
        ]

    async def find(self, volume: str) -> str:
        """A repo's id from its id or its path."""
        registry = await self.repos.registries.state(self.settings.registry)
        if volume in registry.repos:
            return volume
        repo = registry.by_path.get(volume)
        if repo is None:
            raise not_found("volume", volume, hint="leasehold volume ls shows them all.")
        return repo

    async def ls(self, prefix: str = "") -> list[dict[str, Any]]:
        """One row a volume, for people and ``--json``."""
        return [
            {
                "id": repo,
                "path": state.path,
                "host": state.host,
                "tier": state.tier + (" (failed)" if state.failed else ""),
                "busy": state.busy,
                "size_bytes": state.size_bytes,
                "used_bytes": state.bytes,
                "files": state.files,
                "keep_until": state.keep_until or None,
                "error": state.error,
                "served": repo in self.storage.enabled,
                "mounted": bool(self.in_use.get(repo)),
            }
            for repo, state in await self.of(prefix)
        ]

    async def change(self, action: str, repo: str, *, author: str, reason: str = "") -> str:
        """Freeze, unfreeze, archive or unarchive; returns the workflow, empty if nothing to do."""
        if action in ("freeze", "archive") and self.in_use.get(repo):
            raise LeaseholdError(
                "volume_in_use",
                "the volume is mounted into a workload; close the lease first",
                kind=Kind.CONFLICT,
            )
        return await self.repos.begin(action, repo, author=author, reason=reason)

    async def move(self, repo: str, path: str, host: str = "") -> str:
        return await self.repos.begin_move(
            repo, path, host or self.settings.host, timeout=self.settings.move_timeout_s
        )

    def reserved_bytes(self) -> int:
        """Bytes promised to volumes that are made already, for the inventory: frozen ones count."""
        return self._reserved

    _reserved = 0

    # -- in the background ---------------------------------------------------------------------

    async def relieve(self) -> str:
        """While the disk is short, the frozen volume that would go soonest anyway goes now.

        Returns the one that went, empty for none. Its contents go with the sweep that follows."""
        volumes = await self.of()
        self._reserved = sum(max(s.size_bytes, s.bytes) for _, s in volumes)
        frozen = [
            (state.frozen_at, repo)
            for repo, state in volumes
            if state.tier == "frozen" and state.keep_until and not state.busy
        ]
        for tier in ("online", "frozen", "archived"):
            VOLUMES.labels(tier).set(sum(s.tier == tier for _, s in volumes))
        FREE_BYTES.set(self.storage.free_bytes())
        FROZEN_BYTES.set(sum(s.bytes for _, s in volumes if s.tier == "frozen"))
        if any(state.deleted for _, state in volumes):
            return ""  # what is on its way out may be enough
        if not frozen or self.storage.free_bytes() >= self.settings.keep_free_bytes:
            return ""
        _, oldest = min(frozen)
        log.warning("volume.yields", repo=oldest)
        await self.repos.delete(oldest, "pressure")
        return oldest

    async def _yield_under_pressure(self) -> None:
        while True:
            try:
                yielded = await self.relieve()
                await self.clock.sleep(PRESSURE_EVERY)
                if yielded:
                    await self.sweep()
            except (LeaseholdError, OSError) as error:
                log.warning("volume.does_not_yield", error=str(error))
                await self.clock.sleep(PRESSURE_EVERY)

    async def _snapshot_regularly(self) -> None:
        while True:
            await self.clock.sleep(self.settings.snapshot_every_s)
            for repo in list(self.storage.enabled):
                try:
                    if (await self.repos.repo(repo)).tier == "online":
                        await self.storage.snapshot(repo, SYSTEM, "scheduled")
                except (LeaseholdError, Marked) as error:
                    log.warning("volume.not_snapshotted", repo=repo, error=str(error))

    async def _sweep_regularly(self) -> None:
        while True:
            await self.clock.sleep(self.settings.sweep_every_s)
            try:
                freed = await self.sweep()
                log.info("volumes.swept", bytes=freed)
            except (LeaseholdError, OSError) as error:
                log.warning("volumes.not_swept", error=str(error))

    async def sweep(self) -> int:
        """Delete contents no snapshot needs any more; returns the bytes freed."""
        began = self.clock.now()
        needed: set[str] = set()
        for _, state in await self.of():
            if state.shadow_path and state.host == self.settings.host:
                needed |= await asyncio.to_thread(_contents, state, self.storage.content)
        return await asyncio.to_thread(self.storage.content.sweep, needed, began - 3600.0)


def _contents(state: RepoState, content: ContentStore) -> set[str]:
    """What the snapshots of a volume need; an archived one has its newest in the archive."""
    shadow = Shadow(Path(state.shadow_path), content)
    needed: set[str] = set()
    for snapshot in shadow.history(limit=1_000_000):
        if state.tier == "archived" and snapshot.commit == state.commit:
            continue
        needed.update(r.content for _, r in shadow.records(snapshot.commit) if r.type == "f")
    return needed


__all__ = ["Author", "Volumes"]

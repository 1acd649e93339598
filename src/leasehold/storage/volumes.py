"""Persistent volumes of leases: what the deployment side and the tenant's API talk to.

A volume of a lease is the repo at ``leases/<owner>/<dseq>/<service>/<volume>`` of the provider's
registry. Asking for one writes the request into the log and waits until the activities have made
it and this host serves it; closing a lease freezes its volumes, which are kept for a retention
time and may be adopted by the owner's next lease.
"""

from __future__ import annotations

from pathlib import Path

from leasehold.core.clock import Clock
from leasehold.core.service import Service
from leasehold.events.log import Log
from leasehold.observe.engine import Engine
from leasehold.storage.commands import Repos
from leasehold.storage.filesystem import FileStorage
from leasehold.storage.paths import volume_path
from leasehold.storage.settings import StorageSettings


class Volumes(Service):
    """The volumes of this host below ``root``. Give it to the group before the engine starts."""

    def __init__(
        self,
        root: Path,
        log: Log,
        engine: Engine,
        clock: Clock | None = None,
        settings: StorageSettings | None = None,
    ) -> None:
        super().__init__("volumes", clock=clock)
        self.settings = settings or StorageSettings()
        self.log = log
        self.repos = Repos(log, self.clock, self.settings.registry)
        self.storage = FileStorage(root, self.repos, self.clock, host=self.settings.host)

    async def start(self) -> None:
        self.resources.callback(self.storage.close)
        self.storage.prepare()

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

        Made when missing, thawed when frozen. Raises ``volume_not_ready`` with the stored error
        of the repo when it cannot be made.
        """
        path = volume_path(owner, dseq, service, volume)
        repo = await self.repos.accept(
            path, self.settings.host, size_bytes=size_bytes, uid=uid, gid=gid, mode=mode
        )
        from leasehold.model.events import storage as facts

        await self.repos.begin_init(
            facts.RepoAccepted(
                repo=repo,
                path=path,
                host=self.settings.host,
                size_bytes=size_bytes,
                uid=uid,
                gid=gid,
                mode=mode,
            )
        )
        await self.repos.confirm_added(repo, path, self.settings.host)
        await self.storage.init_repo(repo)
        await self.storage.enable_repo(await self.storage.get_repo(repo))
        return await self.storage.mount(repo)

    async def release(self, owner: str, dseq: int) -> None:
        """The lease is closed and nothing runs any more: freeze its volumes and keep them."""
        prefix = f"leases/{owner}/{dseq}/"
        registry = await self.repos.registries.state(self.settings.registry)
        for repo in [r for r, listed in registry.repos.items() if listed.path.startswith(prefix)]:
            workflow = await self.repos.begin(
                "freeze",
                repo,
                author=owner,
                reason="lease closed",
                keep_for=self.settings.retention_s,
            )
            if workflow:
                await self.storage.freeze_repo(repo, workflow)

"""Repos without files, for tests and simulators: the real activities on pretended directories."""

from __future__ import annotations

import asyncio

from leasehold.core.clock import Clock
from leasehold.core.errors import LeaseholdError
from leasehold.events.log import Log
from leasehold.model.events import storage as facts
from leasehold.observe.engine import Engine
from leasehold.storage.commands import Repos
from leasehold.storage.errors import Strong
from leasehold.storage.ports import RepoInfo
from leasehold.storage.trimming import Policy
from leasehold.storage.wiring import register


class PretendedFiles:
    """Where each repo's files are, and who serves them; ``calls`` lists every effect.

    ``fail`` maps an effect's name to the errors its next calls raise.
    """

    def __init__(self, repos: Repos, clock: Clock, host: str, seconds: float = 0.01) -> None:
        self.repos = repos
        self.clock = clock
        self.host = host
        self.seconds = seconds
        self.calls: list[tuple[str, str]] = []
        self.enabled: dict[str, RepoInfo] = {}
        self.fail: dict[str, list[Exception]] = {}

    async def _effect(self, name: str, repo: str) -> None:
        self.calls.append((name, repo))
        await self.clock.sleep(self.seconds)
        if self.fail.get(name):
            raise self.fail[name].pop(0)

    async def get_repo(self, repo: str) -> RepoInfo:
        s = await self.repos.repo(repo)
        if s.host != self.host:
            raise Strong(LeaseholdError("volume_elsewhere", f"belongs to {s.host}"))
        return RepoInfo(repo, s.tail or "", s.path, s.host, s.host_path, s.shadow_path)

    async def init_repo(self, repo: str) -> None:
        state = await self.repos.repo(repo)
        if not state.shadow_path:
            await self._effect("init", repo)
            await self.repos.confirm_shadow(repo, f"/{self.host}/{state.path}", f"/{repo}.git")

    async def enable_gitlab(self, repo: str) -> None:
        await self._effect("gitlab", repo)
        await self.repos.confirm_gitlab(repo, 1, f"ssh://{repo}")

    async def move_repo(self, repo: str, workflow: str) -> None:
        move = await self.repos.moves.state(workflow)
        if move.started is None or move.moved is not None or move.aborted:
            return
        await self._effect("move", repo)
        path = f"/{self.host}/{move.started.new_path}"
        await self.repos.files_moved(workflow, path, f"/{repo}.git")

    async def move_back(self, repo: str, workflow: str) -> None:
        await self._effect("move_back", repo)

    async def clear_old(self, repo: str, workflow: str) -> None:
        await self._effect("clear_old", repo)

    async def move_shadow(self, repo: str, workflow: str) -> None:
        await self._effect("move_shadow", repo)
        await self.repos.shadow_moved(repo, workflow, f"/moved/{repo}.git")

    async def enable_repo(self, info: RepoInfo) -> None:
        await self._effect("enable", info.id)
        self.enabled[info.id] = info

    async def disable_repo(self, repo: str) -> None:
        await self._effect("disable", repo)
        self.enabled.pop(repo, None)

    async def _tier(self, name: str, repo: str, workflow: str, tier: str) -> None:
        await self._effect(name, repo)
        await self.repos.end(repo, workflow, facts.TierChanged(workflow=workflow, tier=tier))

    async def freeze_repo(self, repo: str, workflow: str) -> None:
        await self._tier("freeze", repo, workflow, "frozen")

    async def unfreeze_repo(self, repo: str, workflow: str) -> None:
        await self._tier("unfreeze", repo, workflow, "online")

    async def archive_repo(self, repo: str, workflow: str) -> None:
        await self._tier("archive", repo, workflow, "archived")

    async def unarchive_repo(self, repo: str, workflow: str) -> None:
        await self._tier("unarchive", repo, workflow, "frozen")


class PretendedHost:
    """An engine with all storage activities over pretended files."""

    def __init__(
        self,
        log: Log,
        clock: Clock,
        engine: Engine | None = None,
        *,
        host: str = "local",
        prefixes: tuple[str, ...] = ("",),
        seconds: float = 0.01,
        trim: Policy | None = None,
    ) -> None:
        self.log = log
        self.clock = clock
        self.engine = engine or Engine(log, clock)
        self.repos = Repos(log, clock, "local")
        self.files = PretendedFiles(self.repos, clock, host, seconds)
        self.may_release = True
        self.observer = register(
            self.engine,
            self.repos,
            host,
            prefixes,
            self.files,
            self.files,
            remove=self._remove,
            may_release=lambda _: self.may_release,
            trim=trim,
        )

    async def _remove(self, repo: str) -> None:
        state = await self.repos.repos.state(repo)
        await self.files._effect("remove", repo)
        self.files.enabled.pop(repo, None)
        await self.repos.confirm_removed(repo, state.path)

    async def make(self, count: int) -> list[str]:
        """That many repos, accepted at once."""
        paths = [f"leases/acme/{n}/web/data" for n in range(count)]
        return list(await asyncio.gather(*(self.repos.accept(p, self.files.host) for p in paths)))

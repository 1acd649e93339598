"""Puts the activities of a registry into an engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from leasehold.observe.engine import Engine
from leasehold.storage.commands import Repos
from leasehold.storage.observer import RegistryActivity, RegistryObserver
from leasehold.storage.ports import Initializer, Processor
from leasehold.storage.replicate import (
    AcquireActivity,
    MoveActivity,
    ReleaseActivity,
    RepoInit,
    RepoReplicator,
    Retention,
)
from leasehold.storage.repo_activity import Keeper, RepoActivity
from leasehold.storage.trimming import Policy, RegistryTrimming, RepoTrimming


def register(
    engine: Engine,
    repos: Repos,
    host: str,
    prefixes: Sequence[str],
    initializer: Initializer,
    processor: Processor,
    *,
    remove: Callable[[str], object],
    may_release: Callable[[str], bool],
    trim: Policy | None = None,
) -> RegistryObserver:
    """Register everything; call it before the engine starts.

    ``remove(repo)`` is awaited to delete a repo's files; ``may_release(repo)`` says whether a repo
    that is to be moved is not in use any more.
    """

    def begin(repo: str, key: str, acquire: str | None) -> None:
        engine.begin("repo", repo, key=key, option=acquire)

    observer = RegistryObserver(host, prefixes, begin)
    keeper = Keeper(engine, observer, repos, initializer, processor, remove)
    engine.register(lambda c: RegistryActivity(c, observer), kind=RegistryActivity)
    engine.register(keeper.activity, kind=RepoActivity, every=False)
    engine.register(lambda c: RepoInit(c, repos), kind=RepoInit)
    engine.register(lambda c: RepoReplicator(c, repos), kind=RepoReplicator)
    engine.register(lambda c: MoveActivity(c, repos, may_release), kind=MoveActivity)
    engine.register(lambda c: ReleaseActivity(c, repos), kind=ReleaseActivity, every=False)
    engine.register(lambda c: AcquireActivity(c, initializer), kind=AcquireActivity, every=False)
    engine.register(lambda c: Retention(c, repos), kind=Retention)
    policy = trim or Policy()
    engine.register(lambda c: RegistryTrimming(c, repos, policy), kind=RegistryTrimming)
    engine.register(lambda c: RepoTrimming(c, repos, policy), kind=RepoTrimming)
    return observer

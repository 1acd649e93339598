"""The registry activity: which repos are this host's, and an activity for each of them.

Phase 1 folds the registry without side effects and then begins an activity for each repo of ours,
and a second one for each repo that is moving here. Phase 2 takes each later event in turn. A repo
is ours when it is on our host and at or below one of our prefixes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import ClassVar

from leasehold.core.logs import get_logger
from leasehold.events.event import Event, WillBlock
from leasehold.model.events import storage as facts
from leasehold.observe.activity import Activity, Context, Outcome
from leasehold.storage.depchain import DepChainMap, Link
from leasehold.storage.paths import is_below

log = get_logger(__name__)

Begin = Callable[[str, str, str | None], None]
"""``begin(repo, key, acquire)``: start a repo activity; again with the same key is harmless."""


class RegistryObserver:
    """What the registry activity knows. ``begin`` starts repo activities.

    ``chains`` orders the activities of a repo; ``links`` are their places, by (repo, key).
    """

    def __init__(self, host: str, prefixes: Sequence[str], begin: Begin) -> None:
        self.host = host
        self.prefixes = list(prefixes)
        self.observed: set[str] = set()
        self.chains = DepChainMap()
        self.links: dict[tuple[str, str], Link] = {}
        self.successors: dict[str, str] = {}
        """Repos that had a move to us under way when we started: their first activity ends where
        the one begun for that workflow takes over."""
        self._begin = begin
        self._loading: dict[str, str | None] = {}

    def ours(self, path: str, host: str) -> bool:
        return host == self.host and any(is_below(path, prefix) for prefix in self.prefixes)

    # -- phase 1 -------------------------------------------------------------------------------

    def reset(self) -> None:
        """Begin again from the start of the history."""
        self.observed.clear()
        self._loading.clear()

    def load(self, fact: object) -> None:
        """Fold one event: repo -> the workflow that moves it here, if any."""
        match fact:
            case facts.RepoAdded():
                if self.ours(fact.path, fact.host):
                    self._loading.setdefault(fact.repo, None)
            case facts.RepoMoveAccepted():
                if self.ours(fact.path, fact.host):
                    self._loading[fact.repo] = fact.workflow
            case facts.RegistryRepoMoved():
                if self.ours(fact.path, fact.host):
                    self._loading[fact.repo] = None
                else:
                    self._loading.pop(fact.repo, None)
            case facts.RepoRemoved():
                self._loading.pop(fact.repo, None)
            case facts.RegistrySnapshot():
                if fact.first:
                    self._loading.clear()
                for line in fact.repos:
                    if self.ours(line.path, line.host):
                        self._loading[line.repo] = None

    def loaded(self) -> None:
        """Begin what the history calls for; doing it again begins nothing twice."""
        for repo, acquire in self._loading.items():
            self.observed.add(repo)
            if acquire is not None:
                self.successors[repo] = acquire
            self._start(repo, "", None)
            if acquire is not None:
                self._start(repo, acquire, acquire)
        self._loading.clear()

    # -- phase 2 -------------------------------------------------------------------------------

    def handle(self, fact: object) -> None:
        """Take one later event."""
        collected = self.chains.gc()
        if collected:
            log.debug("volumes.chains_collected", count=collected)
        match fact:
            case facts.RepoAdded():
                if self.ours(fact.path, fact.host):
                    self.observed.add(fact.repo)
                    self._start(fact.repo, "", None)
            case facts.RepoMoveAccepted():
                if self.ours(fact.path, fact.host):
                    self._start(fact.repo, fact.workflow, fact.workflow)
            case facts.RegistryRepoMoved():
                if not self.ours(fact.path, fact.host):
                    self.observed.discard(fact.repo)
                elif fact.aborted:
                    # The activity that was here has let go: somebody must take it back.
                    self.observed.add(fact.repo)
                    self._start(fact.repo, f"after:{fact.workflow}", None)
                else:
                    self.observed.add(fact.repo)
            case facts.RepoRemoved():
                self.observed.discard(fact.repo)

    def _start(self, repo: str, key: str, acquire: str | None) -> None:
        if (repo, key) not in self.links:
            self.links[repo, key] = self.chains.next(repo)
        self._begin(repo, key, acquire)

    async def process_registry_events(
        self, registry: str, tail: str | None, stream: AsyncIterator[Event | WillBlock]
    ) -> str | None:
        """Run over ``stream``, which starts after ``tail``; returns the new tail.

        With ``tail`` None it is phase 1 until the stream would block or ends, and phase 2 after
        that. A failure in phase 1 leaves nothing begun: call it again with None.
        """
        loading = tail is None
        if loading:
            self.reset()
        async for item in stream:
            if isinstance(item, WillBlock):
                if loading:
                    self.loaded()
                    loading = False
                continue
            if loading:
                self.load(item.payload)
            else:
                self.handle(item.payload)
            tail = item.id
        if loading:
            self.loaded()
        return tail


class RegistryActivity(Activity):
    """:class:`RegistryObserver` in the engine. Reads its whole registry after each start, since
    the activities it begins are only kept while the process lives."""

    name: ClassVar[str] = "registry"
    entity_kind: ClassVar[str] = "registry"
    eager: ClassVar[bool] = True

    def __init__(self, context: Context, observer: RegistryObserver) -> None:
        super().__init__(context)
        self.observer = observer
        observer.reset()

    def fold(self, event: Event) -> None:
        self.observer.load(event.payload)

    async def settle(self) -> Outcome:
        self.observer.loaded()
        return Outcome.SLEEP

    async def react(self, event: Event) -> Outcome:
        self.observer.handle(event.payload)
        return Outcome.SLEEP

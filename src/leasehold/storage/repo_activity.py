"""The repo activity: makes a repo's directory and shadow, serves it, and lets go of it.

Its first run folds the repo's history to a view and acts on the final view alone; the first rule
that applies wins (:meth:`RepoActivity._act`). Later events update the view and the rules are
applied again, which comes to the table of nog's second phase: an effect that was done is seen to
be done. Before its first effect an activity waits for whoever was before it (see ``depchain``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import msgspec

from leasehold.core.logs import get_logger
from leasehold.events.event import Event
from leasehold.model.events import storage as facts
from leasehold.observe.activity import Activity, Context, Outcome
from leasehold.observe.engine import Engine
from leasehold.storage.commands import Repos
from leasehold.storage.depchain import Link
from leasehold.storage.errors import WEAK_RETRIES, Class, classify, code_of
from leasehold.storage.observer import RegistryObserver
from leasehold.storage.ports import Initializer, Processor

log = get_logger(__name__)


class View(msgspec.Struct):
    """What the history says, as far as it matters here."""

    wants_shadow: bool = False
    has_shadow: bool = False
    pending_gitlab: bool = False
    has_error: bool = False
    host: str = ""
    move: str = ""
    shadow_move: str = ""
    moved: str = ""
    """The last move that ended, and whether it was given up."""
    aborted: bool = False
    tier: str = "online"
    action: str = ""
    workflow: str = ""
    """The storage workflow under way and its action."""
    deleted: bool = False


def fold_view(view: View, fact: object) -> None:
    match fact:
        case facts.RepoInitStarted():
            view.wants_shadow, view.host = True, fact.host
        case facts.ShadowRepoCreated():
            view.has_shadow = True
        case facts.EnableGitlabAccepted():
            view.pending_gitlab = True
        case facts.GitRepoCreated():
            view.pending_gitlab = False
        case facts.RepoErrorSet():
            view.has_error = True
        case facts.RepoErrorCleared():
            view.has_error = False
        case facts.RepoMoveStarted():
            view.move = fact.workflow
        case facts.RepoMoved():
            view.move, view.moved, view.aborted = "", fact.workflow, fact.aborted
            view.host = fact.host
        case facts.ShadowRepoMoveStarted():
            view.shadow_move = fact.workflow
        case facts.ShadowRepoMoved():
            view.shadow_move = ""
        case facts.TierBegun():
            view.action, view.workflow = fact.action, fact.workflow
        case facts.TierChanged():
            view.action, view.workflow, view.tier = "", "", fact.tier
        case facts.RepoDeleted():
            view.deleted = True
        case facts.RepoSnapshot():
            view.wants_shadow = view.has_shadow = True
            view.has_error, view.host, view.tier = bool(fact.error), fact.host, fact.tier


class Keeper:
    """What the repo activities of a host share."""

    def __init__(
        self,
        engine: Engine,
        observer: RegistryObserver,
        repos: Repos,
        initializer: Initializer,
        processor: Processor,
        remove: Callable[[str], object],
    ) -> None:
        self.engine = engine
        self.observer = observer
        self.repos = repos
        self.initializer = initializer
        self.processor = processor
        self.remove = remove

    def activity(self, context: Context) -> RepoActivity:
        return RepoActivity(context, self)


class RepoActivity(Activity):
    """One repo on one host. Its option is the workflow whose move it was begun for, if any."""

    name: ClassVar[str] = "repo"
    entity_kind: ClassVar[str] = "repo"
    limit: ClassVar[str] = "repo"

    def __init__(self, context: Context, keeper: Keeper) -> None:
        super().__init__(context)
        self.keeper = keeper
        self.repo = context.entity.id
        self.acquire: str | None = context.option
        self.view = View()

    @property
    def link(self) -> Link:
        key = self.context.activity.partition("#")[2]
        links = self.keeper.observer.links
        if (self.repo, key) not in links:
            links[self.repo, key] = self.keeper.observer.chains.next(self.repo)
        return links[self.repo, key]

    def save(self) -> bytes:
        return msgspec.msgpack.encode(self.view)

    def restore(self, state: bytes) -> None:
        self.view = msgspec.msgpack.decode(state, type=View)

    def fold(self, event: Event) -> None:
        fold_view(self.view, event.payload)

    async def settle(self) -> Outcome:
        try:
            return await self._act()
        except Exception as error:
            if not await self._handled(error):
                raise
            return Outcome.SLEEP

    async def _act(self) -> Outcome:
        """The rules, in order; the first that applies wins."""
        view, keeper = self.view, self.keeper
        if view.deleted:
            await self.link.wait(self.context)
            await self._outside(keeper.remove)
            return self._quit()
        if self.acquire is not None:
            if view.moved == self.acquire and view.aborted:
                await self.link.wait(self.context)
                return self._quit()
            if view.move == self.acquire:
                await self._take_over(self.acquire)
                return Outcome.SLEEP
            if view.moved != self.acquire and not view.move:
                return Outcome.SLEEP  # the move has not begun
        if view.move:
            await self._let_go(view.move)
            return self._quit()
        if view.moved and not view.aborted and view.moved == self._successor():
            await self.link.wait(self.context)
            return self._quit()  # the activity begun for that move serves it now
        if view.host != keeper.observer.host:
            return Outcome.SLEEP
        if view.shadow_move:
            await self._move_shadow(view.shadow_move)
            return Outcome.SLEEP
        if view.has_error:
            if view.has_shadow:
                await self._enable()
            return Outcome.SLEEP
        if (view.wants_shadow and not view.has_shadow) or view.pending_gitlab:
            await self._init()
            return Outcome.SLEEP
        if view.action:
            await self._change_tier()
            return Outcome.SLEEP
        if view.has_shadow:
            await self._enable()
        return Outcome.SLEEP

    def _successor(self) -> str:
        if self.acquire is not None or "#" in self.context.activity:
            return ""
        return self.keeper.observer.successors.get(self.repo, "")

    def _quit(self) -> Outcome:
        self.link.quit()
        return Outcome.DONE

    # -- effects -------------------------------------------------------------------------------

    async def _outside(self, call: Callable[..., object], *args: object) -> None:
        async with self.context.outside():
            await call(self.repo, *args)  # type: ignore[misc]

    async def _init(self) -> None:
        await self.link.wait(self.context)
        if self.view.wants_shadow and not self.view.has_shadow:
            await self.keeper.initializer.init_repo(self.repo)
        if self.view.pending_gitlab:
            await self._outside(self.keeper.initializer.enable_gitlab)

    async def _enable(self) -> None:
        await self.link.wait(self.context)
        initializer = self.keeper.initializer
        if self.view.moved and self.view.aborted:
            await initializer.move_back(self.repo, self.view.moved)
        await self.keeper.processor.enable_repo(await initializer.get_repo(self.repo))
        if self.view.moved and not self.view.aborted:
            await self._outside(initializer.clear_old, self.view.moved)

    async def _let_go(self, workflow: str) -> None:
        await self.link.wait(self.context)
        await self.keeper.processor.disable_repo(self.repo)
        await self._step("move-release", workflow)

    async def _take_over(self, workflow: str) -> None:
        await self.link.wait(self.context)
        await self._step("move-acquire", workflow)

    async def _step(self, name: str, workflow: str) -> None:
        """Have a workflow activity do its part, and wait for it without a slot."""
        engine = self.keeper.engine
        engine.begin(name, workflow, key=self.repo)
        over = engine.finished(name, workflow, key=self.repo)
        async with self.context.outside():
            await over.wait()

    async def _move_shadow(self, workflow: str) -> None:
        await self.link.wait(self.context)
        await self.keeper.processor.disable_repo(self.repo)
        await self._outside(self.keeper.initializer.move_shadow, workflow)

    async def _change_tier(self) -> None:
        await self.link.wait(self.context)
        processor = self.keeper.processor
        call = {
            "freeze": processor.freeze_repo,
            "unfreeze": processor.unfreeze_repo,
            "archive": processor.archive_repo,
            "unarchive": processor.unarchive_repo,
        }[self.view.action]
        await self._outside(call, self.view.workflow)

    # -- errors --------------------------------------------------------------------------------

    async def _handled(self, error: Exception) -> bool:
        """Whether ``error`` is dealt with; if not, the engine tries again."""
        kind = classify(error)
        if kind is Class.STORED:
            log.info("volume.error_stored_before", repo=self.repo, error=str(error))
            return True
        if kind is Class.STRONG or (kind is Class.WEAK and self.context.failures >= WEAK_RETRIES):
            text = str(error)
            if self.view.action:
                await self.keeper.repos.end(
                    self.repo,
                    self.view.workflow,
                    facts.TierChanged(
                        workflow=self.view.workflow, tier=self.view.tier, failed=True, reason=text
                    ),
                )
            await self.keeper.repos.set_error(self.repo, code_of(error), text)
            return True
        return False

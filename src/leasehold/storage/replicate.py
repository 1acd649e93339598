"""What follows in one history from what happened in another: the server side of the registry.

A command writes one history. These activities carry it on: a repo that was accepted gets a history
of its own and is then listed; a move goes from the registry to the repo, to its workflow, and back
the same way when it is over, done or given up. Each step looks whether it was done.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import ClassVar

from leasehold.core.logs import get_logger
from leasehold.events.event import Event
from leasehold.model.events import storage as facts
from leasehold.observe.activity import Activity, Context, Outcome, Reconciler
from leasehold.storage.commands import MoveState, Repos, fold_move
from leasehold.storage.ports import Initializer
from leasehold.storage.state import RepoState, fold_repo

log = get_logger(__name__)


class RepoInit(Reconciler):
    """Registry -> repo: starts the histories of accepted repos and moves."""

    name: ClassVar[str] = "repoinit"
    entity_kind: ClassVar[str] = "registry"

    def __init__(self, context: Context, repos: Repos) -> None:
        super().__init__(context)
        self.repos = repos
        self.accepted: dict[str, facts.RepoAccepted] = {}
        self.moves: dict[str, facts.RepoMoveAccepted] = {}

    def fold(self, event: Event) -> None:
        fact = event.payload
        match fact:
            case facts.RepoAccepted():
                self.accepted[fact.repo] = fact
            case facts.RepoAdded() | facts.RepoRemoved():
                self.accepted.pop(fact.repo, None)
            case facts.RepoMoveAccepted():
                self.moves[fact.repo] = fact
            case facts.RegistryRepoMoved():
                self.moves.pop(fact.repo, None)
            case facts.RegistrySnapshot():
                self.accepted.clear()
                self.moves.clear()

    async def settle(self) -> Outcome:
        failed: list[Exception] = []
        for accepted in list(self.accepted.values()):
            await self._each(self._init(accepted), accepted.repo, failed)
        for move in list(self.moves.values()):
            await self._each(self._move(move), move.repo, failed)
        if failed:
            raise failed[0]  # only after everything else had its turn
        return Outcome.SLEEP

    async def _each(self, step: Awaitable[None], repo: str, failed: list[Exception]) -> None:
        try:
            await step
        except Exception as error:
            log.warning("volume.not_replicated", repo=repo, error=str(error))
            failed.append(error)

    async def _init(self, accepted: facts.RepoAccepted) -> None:
        await self.repos.begin_init(accepted)
        await self.repos.confirm_added(accepted.repo, accepted.path, accepted.host)

    async def _move(self, accepted: facts.RepoMoveAccepted) -> None:
        await self.repos.start_move(accepted)
        move = await self.repos.moves.state(accepted.workflow)
        state = await self.repos.repos.state(accepted.repo)
        under_way = state.move is not None and state.move.workflow == accepted.workflow
        if not under_way and move.started is None:
            # Something else took the repo before the move could: it is off.
            await self.repos.finish_on_registry(
                accepted.repo, accepted.workflow, state.path, state.host, aborted=True
            )


class RepoReplicator(Reconciler):
    """Repo -> workflow when a move starts; repo -> registry -> workflow when it is over."""

    name: ClassVar[str] = "replicate"
    entity_kind: ClassVar[str] = "repo"

    def __init__(self, context: Context, repos: Repos) -> None:
        super().__init__(context)
        self.repos = repos
        self.move: facts.RepoMoveStarted | None = None
        self.over: facts.RepoMoved | None = None

    def fold(self, event: Event) -> None:
        fact = event.payload
        match fact:
            case facts.RepoMoveStarted():
                self.move, self.over = fact, None
            case facts.RepoMoved():
                self.move, self.over = None, fact

    async def settle(self) -> Outcome:
        repo = self.entity.id
        if self.move is not None:
            await self.repos.start_workflow(repo, self.move)
        if self.over is not None:
            over = self.over
            await self.repos.finish_on_registry(
                repo, over.workflow, over.path, over.host, aborted=over.aborted
            )
            await self.repos.commit_move(
                over.workflow, f"aborted: {over.reason}" if over.aborted else "done"
            )
        return Outcome.SLEEP


class MoveActivity(Reconciler):
    """A move's own course: the user lets go, the deadline passes, the repo is told the end."""

    name: ClassVar[str] = "move"
    entity_kind: ClassVar[str] = "workflow"

    def __init__(self, context: Context, repos: Repos, may_release: Callable[[str], bool]) -> None:
        super().__init__(context)
        self.repos = repos
        self.may_release = may_release
        self.move = MoveState(context.entity.id)

    def fold(self, event: Event) -> None:
        fold_move(self.move, event)

    async def settle(self) -> Outcome:
        move = self.move
        if move.committed:
            return Outcome.DONE
        if move.moved is not None or move.aborted:
            await self.repos.finish_on_repo(move.id, move)
        elif move.started is not None and not move.accepted:
            if self.may_release(move.started.repo):
                await self.repos.accept_release(move.id)
            else:
                await self.context.arm("ask", self.context.clock.now() + ASK_AGAIN)
        return Outcome.SLEEP

    async def fired(self, timer: str) -> Outcome:
        if timer == "deadline":
            await self.repos.abort_move(self.move.id, "it took too long")
            return Outcome.SLEEP
        return await self.settle()


ASK_AGAIN = 5.0
"""Seconds between questions whether a repo that is to be moved is still in use."""


class ReleaseActivity(Reconciler):
    """The old place's part in a move: says that it has let go, once it may."""

    name: ClassVar[str] = "move-release"
    entity_kind: ClassVar[str] = "workflow"

    def __init__(self, context: Context, repos: Repos) -> None:
        super().__init__(context)
        self.repos = repos
        self.move = MoveState(context.entity.id)

    def fold(self, event: Event) -> None:
        fold_move(self.move, event)

    async def settle(self) -> Outcome:
        if self.move.released or self.move.aborted or self.move.committed:
            return Outcome.DONE
        if self.move.accepted:
            await self.repos.release(self.move.id)
        return Outcome.SLEEP


class AcquireActivity(Reconciler):
    """The new place's part in a move: brings the files once they were released."""

    name: ClassVar[str] = "move-acquire"
    entity_kind: ClassVar[str] = "workflow"

    def __init__(self, context: Context, initializer: Initializer) -> None:
        super().__init__(context)
        self.initializer = initializer
        self.move = MoveState(context.entity.id)

    def fold(self, event: Event) -> None:
        fold_move(self.move, event)

    async def settle(self) -> Outcome:
        move = self.move
        if move.committed or move.aborted or move.moved is not None:
            return Outcome.DONE
        if move.released and move.accepted and move.started is not None:
            async with self.context.outside():
                await self.initializer.move_repo(move.started.repo, move.id)
        return Outcome.SLEEP


class Retention(Activity):
    """Deletes a volume when the time it was to be kept for is over."""

    name: ClassVar[str] = "retention"
    entity_kind: ClassVar[str] = "repo"

    def __init__(self, context: Context, repos: Repos) -> None:
        super().__init__(context)
        self.repos = repos
        self.state = RepoState(context.entity.id)
        self.armed = 0.0

    def fold(self, event: Event) -> None:
        fold_repo(self.state, event)

    async def settle(self) -> Outcome:
        state = self.state
        if state.deleted:
            return Outcome.DONE
        due = state.keep_until if state.tier in ("frozen", "archived") else 0.0
        if due != self.armed:
            await self.context.arm("keep", due or None)
            self.armed = due
        return Outcome.SLEEP

    async def fired(self, timer: str) -> Outcome:
        due = self.state.keep_until
        if self.state.tier != "online" and due and due <= self.context.clock.now():
            if self.state.busy:
                await self.context.arm("keep", self.context.clock.now() + 60.0)
            else:
                await self.repos.delete(self.entity.id, "retention")
        return Outcome.SLEEP

"""Commands on registries, repos and workflows: what may be asked for, and what is refused.

Each is idempotent, so that activities and callers may repeat it: what was done already appends
nothing. One command writes one history; what has to follow in another is an activity's work
(see ``replicate``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from leasehold.core import ids
from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError, not_found
from leasehold.events.commands import Commands, Decision
from leasehold.events.event import Event, Timer
from leasehold.events.log import Log
from leasehold.model.events import storage as facts
from leasehold.storage.paths import check_global, repo_id
from leasehold.storage.state import RegistryState, RepoState, fold_registry, fold_repo

ERROR_SHOWN = 120
"""Characters of a stored error that are shown; the full text is kept beside."""

TIERS = {
    "freeze": ("online", "frozen"),
    "unfreeze": ("frozen", "online"),
    "archive": ("frozen", "archived"),
    "unarchive": ("archived", "frozen"),
}
"""Storage workflows: from which tier to which."""

MOVE_TIMER = "move/deadline"
"""Timer on a workflow, handled by the activity ``move``."""


@dataclass(slots=True)
class MoveState:
    """A move as its workflow's events tell it."""

    id: str
    started: facts.MoveStarted | None = None
    accepted: bool = False
    released: bool = False
    moved: facts.FilesMoved | None = None
    aborted: str = ""
    committed: str = ""


def fold_move(state: MoveState, event: Event) -> MoveState:
    fact = event.payload
    match fact:
        case facts.MoveStarted():
            state.started = fact
        case facts.AppAccepted():
            state.accepted = True
        case facts.StaReleased():
            state.released = True
        case facts.FilesMoved():
            state.moved = fact
        case facts.MoveAborted():
            state.aborted = fact.reason
        case facts.WorkflowCommitted():
            state.committed = fact.outcome
    return state


class Repos:
    """The commands. ``registry`` is the name of the registry new repos are put into."""

    def __init__(self, log: Log, clock: Clock, registry: str) -> None:
        self.log = log
        self.clock = clock
        self.registry = registry
        self.registries: Commands[RegistryState] = Commands(
            log, clock, kind="registry", initial=lambda _: RegistryState(), fold=fold_registry
        )
        self.repos: Commands[RepoState] = Commands(
            log, clock, kind="repo", initial=RepoState, fold=fold_repo
        )
        self.moves: Commands[MoveState] = Commands(
            log, clock, kind="workflow", initial=MoveState, fold=fold_move
        )

    async def repo(self, repo: str) -> RepoState:
        """The state of a repo that exists, else ``volume_not_found``."""
        state = await self.repos.state(repo)
        if not state.exists:
            raise not_found("volume", repo)
        return state

    async def find(self, path: str) -> str | None:
        """The id of the repo at a global path."""
        return (await self.registries.state(self.registry)).by_path.get(path)

    async def _note(
        self, repo: str, fact: Any, unless: Callable[[RepoState], object] = lambda _: False
    ) -> None:
        await self.repos.run(repo, lambda s: None if unless(s) else Decision([fact]))

    # -- making --------------------------------------------------------------------------------

    async def accept(
        self,
        path: str,
        host: str,
        *,
        size_bytes: int = 0,
        uid: int = 0,
        gid: int = 0,
        mode: int = 0o755,
        gitlab: bool = False,
    ) -> str:
        """Ask for a repo at ``path``; returns its id, the existing one's when there is one."""
        check_global(path)
        chosen = ""

        def decide(state: RegistryState) -> Decision | None:
            nonlocal chosen
            chosen = state.by_path.get(path, "")
            if chosen:
                return None
            chosen = repo_id(self.registry, path, state.incarnations.get(path, 0))
            fact = facts.RepoAccepted(
                repo=chosen,
                path=path,
                host=host,
                size_bytes=size_bytes,
                uid=uid,
                gid=gid,
                mode=mode,
                gitlab=gitlab,
            )
            return Decision([fact])

        await self.registries.run(self.registry, decide)
        return chosen

    async def begin_init(self, accepted: facts.RepoAccepted) -> None:
        """The repo's own history starts."""
        first = facts.RepoInitStarted(
            registry=self.registry,
            path=accepted.path,
            host=accepted.host,
            size_bytes=accepted.size_bytes,
            uid=accepted.uid,
            gid=accepted.gid,
            mode=accepted.mode,
        )
        more = [facts.EnableGitlabAccepted()] if accepted.gitlab else []
        await self.repos.run(accepted.repo, lambda s: None if s.path else Decision([first, *more]))

    async def confirm_added(self, repo: str, path: str, host: str) -> None:
        await self.registries.run(
            self.registry,
            lambda s: (
                None
                if repo not in s.repos or s.repos[repo].added
                else Decision([facts.RepoAdded(repo=repo, path=path, host=host)])
            ),
        )

    async def confirm_shadow(self, repo: str, host_path: str, shadow_path: str) -> None:
        fact = facts.ShadowRepoCreated(host_path=host_path, shadow_path=shadow_path)
        await self._note(repo, fact, unless=lambda s: s.shadow_path)

    async def confirm_gitlab(self, repo: str, project: int, url: str) -> None:
        fact = facts.GitRepoCreated(project=project, url=url)
        await self._note(repo, fact, unless=lambda s: s.gitlab_url)

    # -- errors --------------------------------------------------------------------------------

    async def set_error(self, repo: str, code: str, full: str) -> None:
        """Store an error on the repo, replacing an older one; the same again is nothing."""
        full = full.encode(errors="replace").decode()
        message = shorten(full)
        fact = facts.RepoErrorSet(message=message, full=full[:10_000], code=code)
        await self._note(repo, fact, unless=lambda s: s.error == message)

    async def clear_error(self, repo: str, message: str | None = None) -> None:
        """Forget the stored error; with ``message`` only if it is exactly that one."""

        def decide(state: RepoState) -> Decision | None:
            if not state.error:
                return None
            if message is not None and message != state.error:
                raise LeaseholdError(
                    "volume_error_changed",
                    "the volume has another error by now; look again before clearing it",
                    kind=Kind.CONFLICT,
                    expected=state.error,
                    got=message,
                )
            return Decision([facts.RepoErrorCleared(message=state.error)])

        await self.repos.run(repo, decide)

    # -- tiers ---------------------------------------------------------------------------------

    async def begin(
        self, action: str, repo: str, *, author: str = "", reason: str = "", keep_for: float = 0.0
    ) -> str:
        """Start to freeze, unfreeze, archive or unarchive; returns the workflow's id.

        When the repo is in the wanted tier already nothing happens and the answer is empty; when
        the same action is under way, its workflow is the answer.
        """
        before, after = TIERS[action]
        workflow = ids.new(self.clock.now())

        def decide(state: RepoState) -> Decision | None:
            nonlocal workflow
            _must_exist(state, repo)
            if state.action is not None and state.action.action == action:
                workflow = state.action.workflow
                return None
            if state.tier == after and not state.busy:
                workflow = ""
                return None
            _must_be_idle(state, action)
            if state.tier != before:
                raise _wrong_tier(state, action, before)
            fact = facts.TierBegun(
                workflow=workflow,
                action=action,
                author=author,
                reason=reason,
                keep_until=self.clock.now() + keep_for if keep_for else 0.0,
            )
            return Decision([fact])

        await self.repos.run(repo, decide)
        return workflow

    async def end(self, repo: str, workflow: str, fact: facts.TierChanged) -> None:
        await self._note(
            repo, fact, unless=lambda s: s.action is None or s.action.workflow != workflow
        )

    async def snapshot_taken(self, repo: str, fact: facts.SnapshotTaken) -> None:
        await self._note(repo, fact, unless=lambda s: s.commit == fact.commit)

    async def delete(self, repo: str, reason: str) -> None:
        """Mark a frozen or archived repo for deletion: its files go, then its registry line."""

        def decide(state: RepoState) -> Decision | None:
            if state.deleted:
                return None
            _must_exist(state, repo)
            _must_be_idle(state, "delete")
            if state.tier == "online":
                raise _wrong_tier(state, "delete", "frozen or archived")
            return Decision([facts.RepoDeleted(reason=reason, bytes=state.bytes)])

        await self.repos.run(repo, decide)

    async def confirm_removed(self, repo: str, path: str) -> None:
        await self.registries.run(
            self.registry,
            lambda s: (
                None if repo not in s.repos else Decision([facts.RepoRemoved(repo=repo, path=path)])
            ),
        )

    # -- moves ---------------------------------------------------------------------------------

    async def begin_move(
        self, repo: str, path: str, host: str, *, timeout: float, workflow: str = ""
    ) -> str:
        """Accept a move to ``path`` on ``host``; returns the workflow's id."""
        check_global(path)
        workflow = workflow or ids.new(self.clock.now())
        state = await self.repo(repo)
        _must_be_idle(state, "move")
        if state.shadow_path == "":
            raise LeaseholdError(
                "volume_not_ready", "the volume is not initialised yet", kind=Kind.CONFLICT
            )

        def decide(registry: RegistryState) -> Decision | None:
            nonlocal workflow
            listed = registry.repos.get(repo)
            if listed is None or not listed.added:
                raise not_found("volume", repo)
            if listed.move == workflow:
                return None
            if listed.move:
                raise _busy(f"it is being moved already (workflow {listed.move})", "move")
            if registry.by_path.get(path, repo) != repo:
                raise LeaseholdError(
                    "volume_path_taken",
                    f"there is another volume at {path}",
                    kind=Kind.CONFLICT,
                    path="path",
                    got=path,
                )
            fact = facts.RepoMoveAccepted(
                repo=repo,
                workflow=workflow,
                path=path,
                host=host,
                deadline=self.clock.now() + timeout,
            )
            return Decision([fact])

        await self.registries.run(self.registry, decide)
        return workflow

    async def start_move(self, accepted: facts.RepoMoveAccepted) -> None:
        """The repo's history takes note; a storage workflow that came first refuses it."""

        def decide(state: RepoState) -> Decision | None:
            if state.move is not None or not state.exists or state.action is not None:
                return None
            if state.last_move == accepted.workflow:
                return None  # it has ended already; the registry has not heard of it yet
            fact = facts.RepoMoveStarted(
                workflow=accepted.workflow,
                old_path=state.path,
                old_host=state.host,
                old_host_path=state.host_path,
                old_shadow=state.shadow_path,
                new_path=accepted.path,
                new_host=accepted.host,
                deadline=accepted.deadline,
            )
            return Decision([fact])

        await self.repos.run(accepted.repo, decide)

    async def start_workflow(self, repo: str, started: facts.RepoMoveStarted) -> None:
        fact = facts.MoveStarted(
            registry=self.registry,
            repo=repo,
            old_path=started.old_path,
            old_host=started.old_host,
            old_host_path=started.old_host_path,
            old_shadow=started.old_shadow,
            new_path=started.new_path,
            new_host=started.new_host,
            deadline=started.deadline,
        )
        timers = [Timer(MOVE_TIMER, started.deadline)] if started.deadline else []
        await self.moves.run(
            started.workflow, lambda m: None if m.started else Decision([fact], timers=timers)
        )

    async def accept_release(self, workflow: str) -> None:
        await self._step(workflow, facts.AppAccepted(), lambda m: m.accepted or m.aborted)

    async def release(self, workflow: str) -> None:
        await self._step(workflow, facts.StaReleased(), lambda m: m.released or m.aborted)

    async def files_moved(self, workflow: str, host_path: str, shadow_path: str) -> bool:
        """The point of no return; False when the move was aborted before."""
        fact = facts.FilesMoved(host_path=host_path, shadow_path=shadow_path)
        await self._step(workflow, fact, lambda m: m.moved or m.aborted)
        return not (await self.moves.state(workflow)).aborted

    async def abort_move(self, workflow: str, reason: str) -> bool:
        """Give the move up, unless its files are at the new place: then False."""
        state = await self.moves.state(workflow)
        if state.started is None:
            raise not_found("move", workflow)
        await self._step(workflow, facts.MoveAborted(reason=reason), lambda m: m.moved or m.aborted)
        return bool((await self.moves.state(workflow)).aborted)

    async def begin_shadow_move(self, repo: str, new_shadow: str) -> str:
        """Move only the shadow; returns the workflow's id."""
        workflow = ids.new(self.clock.now())

        def decide(state: RepoState) -> Decision | None:
            _must_exist(state, repo)
            _must_be_idle(state, "move")
            fact = facts.ShadowRepoMoveStarted(workflow=workflow, new_shadow=new_shadow)
            return Decision([fact])

        await self.repos.run(repo, decide)
        return workflow

    async def shadow_moved(self, repo: str, workflow: str, shadow_path: str) -> None:
        fact = facts.ShadowRepoMoved(workflow=workflow, shadow_path=shadow_path)
        await self._note(repo, fact, unless=lambda s: s.shadow_move != workflow)

    async def finish_on_repo(self, workflow: str, move: MoveState) -> None:
        """Tell the repo where it is now."""
        started = move.started
        assert started is not None
        if move.moved is not None:
            fact = facts.RepoMoved(
                workflow=workflow,
                path=started.new_path,
                host=started.new_host,
                host_path=move.moved.host_path,
                shadow_path=move.moved.shadow_path,
            )
        else:
            fact = facts.RepoMoved(
                workflow=workflow,
                path=started.old_path,
                host=started.old_host,
                host_path=started.old_host_path,
                shadow_path=started.old_shadow,
                aborted=True,
                reason=move.aborted,
            )
        await self._note(
            started.repo, fact, unless=lambda s: s.move is None or s.move.workflow != workflow
        )

    async def finish_on_registry(
        self, repo: str, workflow: str, path: str, host: str, *, aborted: bool
    ) -> None:
        fact = facts.RegistryRepoMoved(
            repo=repo, workflow=workflow, path=path, host=host, aborted=aborted
        )
        await self.registries.run(
            self.registry,
            lambda s: (
                None if repo not in s.repos or s.repos[repo].move != workflow else Decision([fact])
            ),
        )

    async def commit_move(self, workflow: str, outcome: str) -> None:
        fact = facts.WorkflowCommitted(outcome=outcome)
        done = [Timer(MOVE_TIMER, None)]
        await self.moves.run(
            workflow, lambda m: None if m.committed else Decision([fact], timers=done)
        )

    async def _step(self, workflow: str, fact: Any, done: Callable[[MoveState], object]) -> None:
        await self.moves.run(
            workflow, lambda m: None if m.started is None or done(m) else Decision([fact])
        )


def shorten(text: str, limit: int = ERROR_SHOWN) -> str:
    """At most ``limit`` characters on one line, never half a character."""
    line = " ".join(text.split()).encode(errors="replace").decode()
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _must_exist(state: RepoState, repo: str) -> None:
    if not state.exists:
        raise not_found("volume", repo)


def _must_be_idle(state: RepoState, action: str) -> None:
    if state.busy:
        raise _busy(state.busy, action)


def _busy(why: str, action: str) -> LeaseholdError:
    return LeaseholdError(
        "volume_busy",
        f"cannot {action} the volume: {why}",
        kind=Kind.CONFLICT,
        retry_after=5.0,
    )


def _wrong_tier(state: RepoState, action: str, expected: str) -> LeaseholdError:
    return LeaseholdError(
        "volume_tier",
        f"cannot {action} a volume that is {state.tier}",
        kind=Kind.CONFLICT,
        expected=expected,
        got=state.tier,
    )

"""Registries and repos as their events tell them: pure folds, shared by commands and activities."""

from __future__ import annotations

from dataclasses import dataclass, field

from leasehold.events.event import Event
from leasehold.model.events import storage as facts


@dataclass(slots=True)
class Listed:
    """One line of a registry."""

    path: str
    host: str
    added: bool = False
    move: str = ""
    """The workflow of a move under way."""
    claims: str = ""
    """The path that move wants, taken until it is over."""


@dataclass(slots=True)
class RegistryState:
    repos: dict[str, Listed] = field(default_factory=dict)
    by_path: dict[str, str] = field(default_factory=dict)
    incarnations: dict[str, int] = field(default_factory=dict)
    """How many repos were made at a path: ids are used once."""


def fold_registry(state: RegistryState, event: Event) -> RegistryState:
    fact = event.payload
    match fact:
        case facts.RepoAccepted():
            state.repos[fact.repo] = Listed(fact.path, fact.host)
            state.by_path[fact.path] = fact.repo
            state.incarnations[fact.path] = state.incarnations.get(fact.path, 0) + 1
        case facts.RepoAdded():
            state.repos[fact.repo].added = True
        case facts.RepoMoveAccepted():
            listed = state.repos[fact.repo]
            listed.move, listed.claims = fact.workflow, fact.path
            state.by_path[fact.path] = fact.repo
        case facts.RegistryRepoMoved():
            listed = state.repos[fact.repo]
            for path in (listed.path, listed.claims):
                state.by_path.pop(path, None)
            listed.path, listed.host, listed.move, listed.claims = fact.path, fact.host, "", ""
            state.by_path[fact.path] = fact.repo
        case facts.RepoRemoved():
            state.repos.pop(fact.repo, None)
            if state.by_path.get(fact.path) == fact.repo:
                del state.by_path[fact.path]
        case facts.RegistrySnapshot():
            if fact.first:
                state.repos, state.by_path, state.incarnations = {}, {}, {}
            for line in fact.repos:
                state.repos[line.repo] = Listed(line.path, line.host, added=True)
                state.by_path[line.path] = line.repo
            state.incarnations.update(fact.incarnations)
    return state


@dataclass(slots=True)
class RepoState:
    """Where a repo is and what may be done with it."""

    id: str
    registry: str = ""
    path: str = ""
    host: str = ""
    size_bytes: int = 0
    uid: int = 0
    gid: int = 0
    mode: int = 0o755
    host_path: str = ""
    shadow_path: str = ""
    wants_gitlab: bool = False
    gitlab_url: str = ""
    error: str = ""
    """As it is shown; ``error_full`` is all of it."""
    error_full: str = ""
    move: facts.RepoMoveStarted | None = None
    last_move: str = ""
    """The workflow of the last move that ended here, so that it is not begun again."""
    shadow_move: str = ""
    tier: str = "online"
    failed: bool = False
    action: facts.TierBegun | None = None
    """The storage workflow under way."""
    keep_until: float = 0.0
    frozen_at: float = 0.0
    commit: str = ""
    archive: str = ""
    archive_sha256: str = ""
    bytes: int = 0
    files: int = 0
    deleted: bool = False
    tail: str | None = None

    @property
    def exists(self) -> bool:
        return bool(self.path) and not self.deleted

    @property
    def busy(self) -> str:
        """What occupies the repo, empty when nothing does."""
        if self.move is not None:
            return f"it is being moved to {self.move.new_path}"
        if self.action is not None:
            return f"{self.action.action} is under way"
        return ""


def fold_repo(state: RepoState, event: Event) -> RepoState:
    fact = event.payload
    state.tail = event.id
    match fact:
        case facts.RepoInitStarted():
            state.registry, state.path, state.host = fact.registry, fact.path, fact.host
            state.size_bytes, state.mode = fact.size_bytes, fact.mode
            state.uid, state.gid = fact.uid, fact.gid
        case facts.ShadowRepoCreated():
            state.host_path, state.shadow_path = fact.host_path, fact.shadow_path
        case facts.EnableGitlabAccepted():
            state.wants_gitlab = True
        case facts.GitRepoCreated():
            state.wants_gitlab, state.gitlab_url = False, fact.url
        case facts.RepoErrorSet():
            state.error, state.error_full = fact.message, fact.full or fact.message
        case facts.RepoErrorCleared():
            state.error = state.error_full = ""
        case facts.RepoMoveStarted():
            state.move = fact
        case facts.RepoMoved():
            state.move, state.last_move = None, fact.workflow
            state.path, state.host = fact.path, fact.host
            state.host_path, state.shadow_path = fact.host_path, fact.shadow_path
        case facts.ShadowRepoMoveStarted():
            state.shadow_move = fact.workflow
        case facts.ShadowRepoMoved():
            state.shadow_move, state.shadow_path = "", fact.shadow_path
        case facts.SnapshotTaken():
            state.commit, state.bytes, state.files = fact.commit, fact.bytes, fact.files
        case facts.TierBegun():
            state.action = fact
            if fact.action == "freeze":
                state.keep_until = fact.keep_until
        case facts.TierChanged():
            _change_tier(state, fact, event.at)
        case facts.RepoDeleted():
            state.deleted = True
        case facts.RepoSnapshot():
            for name in fact.__struct_fields__:
                setattr(state, name, getattr(fact, name))
    return state


def _change_tier(state: RepoState, fact: facts.TierChanged, at: float) -> None:
    state.tier, state.failed, state.action = fact.tier, fact.failed, None
    if fact.commit:
        state.commit, state.bytes, state.files = fact.commit, fact.bytes, fact.files
    if fact.tier == "frozen":
        state.frozen_at = state.frozen_at or at
    if fact.tier == "online":
        state.keep_until = state.frozen_at = 0.0
    if not fact.failed:
        state.archive, state.archive_sha256 = fact.archive, fact.archive_sha256

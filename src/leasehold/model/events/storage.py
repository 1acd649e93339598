"""What happens to registries, repos and the workflows that change them.

A *registry* lists the repos of one provider by global path; a *repo* is one volume, a directory on
a host and its shadow; a *workflow* is one change of a repo that takes several steps. A repo's id
is a UUID and used once. Paths are global: relative, ``leases/<owner>/<dseq>/<service>/<volume>``.
"""

from __future__ import annotations

import msgspec

from leasehold.model.events import payload


class _Fact(msgspec.Struct, frozen=True, kw_only=True):
    """Fields are only added, with defaults."""


# -- registry ----------------------------------------------------------------------------------


@payload("registry.repo_accepted")
class RepoAccepted(_Fact, frozen=True):
    """Somebody asked for a repo; its history does not exist yet."""

    repo: str
    path: str
    host: str
    size_bytes: int = 0
    uid: int = 0
    gid: int = 0
    mode: int = 0o755
    gitlab: bool = False


@payload("registry.repo_added")
class RepoAdded(_Fact, frozen=True):
    """The repo's history exists: whoever owns ``path`` may observe it."""

    repo: str
    path: str
    host: str


@payload("registry.repo_reinit_accepted")
class RepoReinitAccepted(_Fact, frozen=True):
    repo: str


@payload("registry.repo_move_accepted")
class RepoMoveAccepted(_Fact, frozen=True):
    """``path`` and ``host`` are the new ones."""

    repo: str
    workflow: str
    path: str
    host: str
    deadline: float = 0.0


@payload("registry.repo_moved")
class RegistryRepoMoved(_Fact, frozen=True):
    """The move is over: the repo is at ``path`` on ``host`` (where it was, when it was aborted)."""

    repo: str
    workflow: str
    path: str
    host: str
    aborted: bool = False


@payload("registry.repo_removed")
class RepoRemoved(_Fact, frozen=True):
    """The repo and its data are gone for good."""

    repo: str
    path: str


class RegistryLine(msgspec.Struct, frozen=True, kw_only=True):
    repo: str
    path: str
    host: str


@payload("registry.snapshot")
class RegistrySnapshot(_Fact, frozen=True):
    """All of the registry, in one or more parts of one append, taken while nothing is under way.

    ``first`` is the part that begins anew; what was before may have been trimmed.
    """

    first: bool
    repos: list[RegistryLine]
    incarnations: dict[str, int]


# -- repo --------------------------------------------------------------------------------------


@payload("repo.init_started")
class RepoInitStarted(_Fact, frozen=True):
    registry: str
    path: str
    host: str
    size_bytes: int = 0
    uid: int = 0
    gid: int = 0
    mode: int = 0o755


@payload("repo.shadow_created")
class ShadowRepoCreated(_Fact, frozen=True):
    """The directory and its shadow exist; both are absolute paths on the repo's host."""

    host_path: str
    shadow_path: str


@payload("repo.gitlab_accepted")
class EnableGitlabAccepted(_Fact, frozen=True):
    pass


@payload("repo.gitlab_created")
class GitRepoCreated(_Fact, frozen=True):
    project: int
    url: str


@payload("repo.error_set")
class RepoErrorSet(_Fact, frozen=True):
    """``message`` is what is shown (at most 120 characters), ``full`` what was said."""

    message: str
    full: str = ""
    code: str = ""


@payload("repo.error_cleared")
class RepoErrorCleared(_Fact, frozen=True):
    message: str


@payload("repo.move_started")
class RepoMoveStarted(_Fact, frozen=True):
    workflow: str
    old_path: str
    old_host: str
    old_host_path: str
    old_shadow: str
    new_path: str
    new_host: str
    deadline: float = 0.0


@payload("repo.moved")
class RepoMoved(_Fact, frozen=True):
    """With ``aborted`` the repo is where it was before."""

    workflow: str
    path: str
    host: str
    host_path: str
    shadow_path: str
    aborted: bool = False
    reason: str = ""


@payload("repo.shadow_move_started")
class ShadowRepoMoveStarted(_Fact, frozen=True):
    workflow: str
    new_shadow: str


@payload("repo.shadow_moved")
class ShadowRepoMoved(_Fact, frozen=True):
    workflow: str
    shadow_path: str


@payload("repo.tier_begun")
class TierBegun(_Fact, frozen=True):
    """A storage workflow took the repo: ``action`` freeze, unfreeze, archive or unarchive."""

    workflow: str
    action: str
    author: str = ""
    reason: str = ""
    keep_until: float = 0.0


@payload("repo.tier_changed")
class TierChanged(_Fact, frozen=True):
    """``tier``: online, frozen, archived, or one of them with ``failed`` and the reason."""

    workflow: str
    tier: str
    failed: bool = False
    reason: str = ""
    commit: str = ""
    archive: str = ""
    archive_sha256: str = ""
    bytes: int = 0
    files: int = 0


@payload("repo.snapshot_taken")
class SnapshotTaken(_Fact, frozen=True):
    """``commit`` of the shadow; ``stored`` bytes were new to the content store."""

    commit: str
    files: int
    bytes: int
    stored: int
    reason: str = ""


@payload("repo.deleted")
class RepoDeleted(_Fact, frozen=True):
    """``reason``: retention, purged or pressure."""

    reason: str
    bytes: int = 0


@payload("repo.snapshot")
class RepoSnapshot(_Fact, frozen=True):
    """All that is known of the repo, taken while nothing is under way; see ``RepoState``."""

    registry: str
    path: str
    host: str
    size_bytes: int
    uid: int
    gid: int
    mode: int
    host_path: str
    shadow_path: str
    gitlab_url: str
    error: str
    last_move: str
    tier: str
    failed: bool
    keep_until: float
    frozen_at: float
    commit: str
    archive: str
    archive_sha256: str
    bytes: int
    files: int


# -- workflow ----------------------------------------------------------------------------------


@payload("workflow.move_started")
class MoveStarted(_Fact, frozen=True):
    registry: str
    repo: str
    old_path: str
    old_host: str
    old_host_path: str
    old_shadow: str
    new_path: str
    new_host: str
    deadline: float = 0.0


@payload("workflow.app_accepted")
class AppAccepted(_Fact, frozen=True):
    """Whoever uses the repo agreed to let go of it."""


@payload("workflow.released")
class StaReleased(_Fact, frozen=True):
    """The old place is closed: nobody reads or writes there any more."""


@payload("workflow.files_moved")
class FilesMoved(_Fact, frozen=True):
    """The new place is complete and verified."""

    host_path: str
    shadow_path: str


@payload("workflow.aborted")
class MoveAborted(_Fact, frozen=True):
    reason: str


@payload("workflow.committed")
class WorkflowCommitted(_Fact, frozen=True):
    """Nothing is left to do; the history may be collected."""

    outcome: str = "done"

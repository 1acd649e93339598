"""What the activities need done to files, and what the file side tells them.

``Initializer`` and ``Processor`` are the two halves of nog's observer interface: making a repo and
its places, and serving it. :class:`leasehold.storage.filesystem.FileStorage` is the real one.
Every call looks before it acts, so that doing it again changes nothing.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol


class RepoInfo(NamedTuple):
    """What is needed to serve a repo. ``vid`` is the id of its newest event when it was read."""

    id: str
    vid: str
    path: str
    host: str
    host_path: str
    shadow_path: str
    gitlab_url: str = ""
    size_bytes: int = 0
    uid: int = 0
    gid: int = 0
    mode: int = 0o755


class Initializer(Protocol):
    """Makes repos. Errors carry their class: see ``storage.errors``."""

    async def get_repo(self, repo: str) -> RepoInfo:
        """Fresh data of a repo; a strong error when it is not this host's."""
        ...

    async def init_repo(self, repo: str) -> None:
        """Make the directory and the shadow and confirm both."""
        ...

    async def enable_gitlab(self, repo: str) -> None:
        """Make the GitLab project and confirm it."""
        ...

    async def move_repo(self, repo: str, workflow: str) -> None:
        """Bring a released repo to its new place and commit that (or find the move aborted)."""
        ...

    async def move_back(self, repo: str, workflow: str) -> None:
        """Undo what an aborted move left at the new place."""
        ...

    async def clear_old(self, repo: str, workflow: str) -> None:
        """Delete what a completed move left at the old place."""
        ...

    async def move_shadow(self, repo: str, workflow: str) -> None:
        """Bring the shadow to its new place and commit that."""
        ...


class Processor(Protocol):
    """Serves repos: one that is not enabled here is neither mounted nor answered for."""

    async def enable_repo(self, info: RepoInfo) -> None: ...

    async def disable_repo(self, repo: str) -> None:
        """Waits until what is being done to the repo has ended."""
        ...

    async def freeze_repo(self, repo: str, workflow: str) -> None: ...

    async def unfreeze_repo(self, repo: str, workflow: str) -> None: ...

    async def archive_repo(self, repo: str, workflow: str) -> None: ...

    async def unarchive_repo(self, repo: str, workflow: str) -> None: ...

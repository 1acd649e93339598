"""The state folder: everything a provider must not lose, and the lock that says who uses it.

::

    events.sqlite3     the log
    index.sqlite3      blocks and transactions
    provider.key       the provider's account
    operator.token     what the operator's commands prove themselves by
    images/ volumes/   content and tenants' data
    deploy/            bundles, logs and the keeper's journal
    run.json           what runs now, for other commands
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
from pathlib import Path

from leasehold.core.errors import Kind, LeaseholdError

TOKEN_BYTES = 32
"""Of randomness in the operator's token."""


class StateFolder:
    """One process at a time may use it; the lock ends with the process, however it ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None

    def open(self) -> None:
        """Create what is missing and take the lock.

        LeaseholdError ``state_unwritable`` or ``state_in_use`` (naming the process that has it).
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o711)
            lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise LeaseholdError(
                "state_unwritable",
                f"cannot use the state folder {self.path}: {error.strerror}; "
                "choose another with --state",
                kind=Kind.UNAVAILABLE,
                path="state",
                got=self.path,
            ) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(lock, 32, 0).decode(errors="replace").strip()
            os.close(lock)
            if error.errno != errno.EWOULDBLOCK:
                raise
            raise LeaseholdError(
                "state_in_use",
                f"a provider (pid {holder or 'unknown'}) already runs from {self.path}; "
                "stop it, or choose another folder with --state",
                kind=Kind.CONFLICT,
                path="state",
                got=self.path,
            ) from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
        self._lock = lock

    def close(self) -> None:
        (self.path / "run.json").unlink(missing_ok=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def operator_token(self) -> str:
        """The operator's token, made at the first start; readable by this user only."""
        file = self.path / "operator.token"
        try:
            return file.read_text().strip()
        except FileNotFoundError:
            token = secrets.token_urlsafe(TOKEN_BYTES)
            new = file.with_suffix(".new")
            descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w") as out:
                out.write(token + "\n")
                out.flush()
                os.fsync(descriptor)
            new.rename(file)
            return token

    def __truediv__(self, name: str) -> Path:
        return self.path / name

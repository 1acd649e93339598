"""Who may use an image, and what its tag meant last.

**Private images stay private.** That the bytes are here proves nothing: a lease may use a digest
only if *its own* credentials (or none) passed a check at the registry within ``recheck`` seconds.
While the registry does not answer, a pass no older than ``bound`` seconds still holds, because
unknown is not refused; credentials the registry refuses lose their pass at once.

**Known tags survive a dead registry**: what a tag resolved to is remembered, and used within the
age the operator sets, only while the registry cannot be asked.

Both memories are files, so a restart of the node during an outage changes nothing. Credentials are
kept as a keyed hash; the key never leaves the file (mode 0600).
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
from pathlib import Path
from typing import TypeVar

import msgspec

from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.images.ports import Credentials
from leasehold.model.digest import Digest
from leasehold.model.reference import Reference

ENTRIES = 10_000
"""Passes and tags remembered; the oldest leave."""


T = TypeVar("T")


class _Memory(msgspec.Struct):
    key: str
    passes: dict[str, float] = {}
    tags: dict[str, tuple[str, float]] = {}


class Access:
    """The two memories, on ``path``. Ages are seconds by the wall clock (they outlive a boot)."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self.path = path
        self.clock = clock
        self._memory = _Memory(secrets.token_hex(32))
        self._dirty = False

    def load(self) -> None:
        """Read the file; an unreadable one is begun anew (everybody is asked again)."""
        with contextlib.suppress(OSError, msgspec.DecodeError):
            self._memory = msgspec.json.decode(self.path.read_bytes(), type=_Memory)

    def save(self) -> None:
        """Write what changed; call it often, it is cheap when nothing did."""
        if not self._dirty:
            return
        temporary = self.path.with_suffix(".tmp")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(fd, "wb") as file:
            file.write(msgspec.json.encode(self._memory))
        os.replace(temporary, self.path)
        self._dirty = False

    def passed(self, reference: Reference, digest: Digest, who: Credentials | None) -> float:
        """Seconds since ``who`` was last allowed ``digest``; infinite when never."""
        at = self._memory.passes.get(self._key(reference, digest, who))
        if at is None:
            return float("inf")
        age = self.clock.now() - at
        return age if age >= 0 else float("inf")  # a pass from the future proves nothing

    def allow(self, reference: Reference, digest: Digest, who: Credentials | None) -> None:
        """The registry let ``who`` see ``digest`` now."""
        self._put(self._memory.passes, self._key(reference, digest, who), self.clock.now())

    def refuse(self, reference: Reference, digest: Digest, who: Credentials | None) -> None:
        """The registry refused; whatever was known is gone."""
        self._dirty |= self._memory.passes.pop(self._key(reference, digest, who), None) is not None

    def learn_tag(self, reference: Reference, digest: Digest, who: Credentials | None) -> None:
        """``reference`` resolved to ``digest`` now."""
        self._put(
            self._memory.tags, self._key(reference, None, who), (str(digest), self.clock.now())
        )

    def known_tag(
        self, reference: Reference, who: Credentials | None, max_age: float
    ) -> Digest | None:
        """What the tag meant for ``who``, if that is no older than ``max_age`` seconds."""
        found = self._memory.tags.get(self._key(reference, None, who))
        if found is None or not 0 <= self.clock.now() - found[1] <= max_age:
            return None
        return Digest.parse(found[0])

    def _put(self, memory: dict[str, T], key: str, value: T) -> None:
        memory.pop(key, None)
        memory[key] = value
        while len(memory) > ENTRIES:
            del memory[next(iter(memory))]
        self._dirty = True

    def _key(self, reference: Reference, digest: Digest | None, who: Credentials | None) -> str:
        secret = "" if who is None else f"{who.username}\0{who.password}\0{who.header}"
        target = digest or reference.tag or ""
        text = f"{reference.name}\0{target}\0{secret}".encode()
        return hmac.new(self._memory.key.encode(), text, hashlib.sha256).hexdigest()


def denied(reference: Reference, why: str) -> LeaseholdError:
    """The answer to a lease whose right to an image is not proven."""
    return LeaseholdError(
        "image_access_denied",
        f"{reference} cannot be used: {why}; give the deployment credentials for its registry",
        kind=Kind.FORBIDDEN,
        got=str(reference),
    )

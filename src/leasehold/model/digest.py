"""Content digests: ``sha256:`` and 64 lower-case hex characters, nothing else.

One algorithm on purpose: the coordination protocol, the provider records and the store all key on
sha256, and a second spelling of the same content would be a second copy of it.
"""

from __future__ import annotations

import hashlib
import re

from leasehold.core.errors import Kind, LeaseholdError

PATTERN = re.compile(r"sha256:[0-9a-f]{64}")


class Digest(str):
    """A checked digest; still a ``str``. Structs that go to JSON hold ``str(digest)``."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Digest:
        """``text`` as a digest, or ``LeaseholdError`` code ``digest_malformed``."""
        if not PATTERN.fullmatch(text):
            raise LeaseholdError(
                "digest_malformed",
                f"{text[:80]!r} is no content digest; write sha256: and 64 lower-case hex digits",
                kind=Kind.MALFORMED,
                expected="sha256:<64 lower-case hex>",
                got=text[:80],
            )
        return cls(text)

    @classmethod
    def of(cls, content: bytes) -> Digest:
        """The digest of ``content``."""
        return cls("sha256:" + hashlib.sha256(content).hexdigest())

    @classmethod
    def from_hex(cls, hexdigest: str) -> Digest:
        return cls.parse("sha256:" + hexdigest)

    @property
    def hex(self) -> str:
        """The 64 hex characters."""
        return self[7:]

    @property
    def short(self) -> str:
        """The first 12 hex characters, for people."""
        return self[7:19]

    def __str__(self) -> str:
        return self[:]


def is_digest(text: str) -> bool:
    """True when :meth:`Digest.parse` would accept ``text``."""
    return PATTERN.fullmatch(text) is not None

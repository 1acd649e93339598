"""Image references: ``[registry[:port]/]repository[:tag][@sha256:...]``.

The first path component is a registry when it holds a dot or a colon or is ``localhost``; without
one the image lives on Docker Hub, where one-word names are short for ``library/<name>``. A
reference with neither tag nor digest means ``latest``; with both, the digest decides.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.model.digest import Digest

DEFAULT_REGISTRY = "docker.io"
DEFAULT_TAG = "latest"
MAX_LENGTH = 512
"""Characters a reference may have: 255 of repository, 128 of tag, 71 of digest and the host."""

_HOST = re.compile(r"(?:\[[0-9a-fA-F:.]+\]|[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?)(?::\d{1,5})?")
_REPOSITORY = re.compile(
    r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*"
)
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True, slots=True)
class Reference:
    """Where an image is. ``registry`` is ``host[:port]``; ``tag`` is set unless ``digest`` is.

    In JSON and events a reference is its text, ``str(reference)``.
    """

    registry: str
    repository: str
    tag: str | None = None
    digest: Digest | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """``text`` as a reference, or ``LeaseholdError`` code ``reference_malformed``."""
        text = text.strip()
        if not text or len(text) > MAX_LENGTH:
            raise _malformed(text, f"it must have 1 to {MAX_LENGTH} characters")
        rest, at, tail = text.partition("@")
        digest = Digest.parse(tail) if at else None
        head, slash, path = rest.partition("/")
        if slash and ("." in head or ":" in head or head == "localhost" or head != head.lower()):
            registry = head
        else:
            registry, path = DEFAULT_REGISTRY, rest
        tag: str | None = None
        colon = path.rfind(":")
        if colon > path.rfind("/"):
            path, tag = path[:colon], path[colon + 1 :]
            if not _TAG.fullmatch(tag):
                raise _malformed(text, f"{tag!r} is no tag (letters, digits, '_', '.', '-')")
        if registry in ("index.docker.io", "registry-1.docker.io"):
            registry = DEFAULT_REGISTRY
        if registry == DEFAULT_REGISTRY and "/" not in path:
            path = f"library/{path}"
        if not is_host(registry):
            raise _malformed(text, f"{registry!r} is no registry host")
        if not is_repository(path):
            raise _malformed(
                text, f"{path!r} is no repository name (lower-case letters, digits, '.', '_', '-')"
            )
        return cls(registry, path, tag or (None if digest else DEFAULT_TAG), digest)

    @property
    def name(self) -> str:
        """``registry/repository``."""
        return f"{self.registry}/{self.repository}"

    @property
    def target(self) -> str:
        """What is asked of the registry: the digest if there is one, else the tag."""
        return self.digest or self.tag or DEFAULT_TAG

    def at(self, digest: Digest) -> Reference:
        """The same image pinned to ``digest``."""
        return Reference(self.registry, self.repository, self.tag, digest)

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.name}{tag}" + (f"@{self.digest}" if self.digest else "")


def is_host(text: str) -> bool:
    """True for ``host``, ``host:port`` and ``[v6]:port``."""
    return len(text) <= 255 and _HOST.fullmatch(text) is not None


def is_repository(text: str) -> bool:
    """True for a repository name of the distribution specification (at most 255 characters)."""
    return len(text) <= 255 and _REPOSITORY.fullmatch(text) is not None


def _malformed(text: str, why: str) -> LeaseholdError:
    return LeaseholdError(
        "reference_malformed",
        f"{text[:120]!r} is no image reference: {why}",
        kind=Kind.MALFORMED,
        expected="[registry[:port]/]repository[:tag][@sha256:...]",
        got=text[:120],
    )

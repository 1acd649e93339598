"""A registry in memory: the ``Origin`` port for tests and simulators.

It counts what it gives (``gets``, ``bytes``), gives no byte beyond ``limit`` until :meth:`allow`
raises it, waits ``pause`` seconds before each piece, breaks off at the offsets in ``breaks``, and
lets in only ``credentials`` when that is set.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from leasehold.core.clock import Clock, SystemClock
from leasehold.images import oci
from leasehold.images.build import Built
from leasehold.images.ports import ContentKind, Credentials, FailureClass, OriginError
from leasehold.model.digest import Digest

PIECE = 64 * 1024
"""Bytes of one piece, as a socket gives them."""


class MemoryContent:
    """An answer; see ``ports.OriginContent``."""

    def __init__(self, origin: MemoryOrigin, digest: Digest, offset: int) -> None:
        content = origin.blobs[digest]
        self.digest: Digest | None = digest
        self.size: int | None = len(content)
        self.media_type = oci.media_type_of(content)
        self.offset = offset
        self._origin = origin
        self._content = content

    async def chunks(self) -> AsyncIterator[bytes]:
        at = self.offset
        while at < len(self._content):
            await self._origin._allowed(at)
            piece = self._content[at : at + PIECE]
            self._origin.bytes += len(piece)
            at += len(piece)
            yield piece


class MemoryOrigin:
    """See the module."""

    def __init__(self, *contents: bytes, clock: Clock | None = None) -> None:
        self.clock = clock or SystemClock()
        self.blobs = {Digest.of(content): content for content in contents}
        self.tags: dict[str, Digest] = {}
        self.credentials: Credentials | None = None
        self.failure: OriginError | None = None
        """Raised instead of any answer while it is set."""
        self.limit = 1 << 62
        self.pause = 0.0
        self.breaks: set[int] = set()
        self.bytes = 0
        self.heads = 0
        self.gets: list[tuple[str, int]] = []
        """(target, offset) of every fetch."""
        self._news = asyncio.Event()

    def add(self, built: Built, tag: str) -> None:
        """Serve an image under ``tag``, in whatever repository."""
        for content in (built.manifest, built.config, *(item.blob for item in built.layers)):
            self.blobs[Digest.of(content)] = content
        self.tags[tag] = built.digest

    def allow(self, limit: int = 1 << 62) -> None:
        """Give bytes up to ``limit``."""
        self.limit = limit
        self._news.set()
        self._news = asyncio.Event()

    async def head(
        self,
        kind: ContentKind,
        registry: str,
        repository: str,
        target: str,
        credentials: Credentials | None = None,
    ) -> MemoryContent:
        self.heads += 1
        return MemoryContent(self, self._find(target, credentials), 0)

    @contextlib.asynccontextmanager
    async def fetch(
        self,
        kind: ContentKind,
        registry: str,
        repository: str,
        target: str,
        credentials: Credentials | None = None,
        offset: int = 0,
    ) -> AsyncIterator[MemoryContent]:
        self.gets.append((str(target), offset))
        yield MemoryContent(self, self._find(target, credentials), offset)

    def _find(self, target: str, credentials: Credentials | None) -> Digest:
        if self.failure is not None:
            raise self.failure
        if self.credentials is not None and credentials != self.credentials:
            raise OriginError(FailureClass.AUTH, "the registry wants other credentials")
        digest = self.tags.get(target, Digest(target))
        if digest not in self.blobs:
            raise OriginError(
                FailureClass.NOT_FOUND, f"{target} does not exist", code="image_not_found"
            )
        return digest

    async def _allowed(self, at: int) -> None:
        while at >= self.limit:
            await self._news.wait()
        if self.pause:
            await self.clock.sleep(self.pause)
        if at in self.breaks:
            self.breaks.discard(at)
            raise OriginError(FailureClass.TRANSIENT, "the registry broke off")

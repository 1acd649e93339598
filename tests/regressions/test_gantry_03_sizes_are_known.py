"""A layer's size travels from its manifest to whoever waits for it.

The original passed size 0, so every layer got 30 s however large, and configs were timed as layers.
Call ``downloads.get`` without the size in ``Assembly.have`` and the resolver is told None.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from leasehold.core.service import running
from leasehold.images import build
from leasehold.images.inflight import stall_limit
from leasehold.images.memory import MemoryOrigin
from leasehold.images.peers import no_holder
from leasehold.images.ports import ContentKind, Holder, Resolution
from leasehold.images.service import Images
from leasehold.model.digest import Digest

GIB = 1 << 30


class Listening:
    """A resolver that only notes what it is asked."""

    def __init__(self) -> None:
        self.asked: dict[str, tuple[ContentKind, int | None]] = {}

    async def resolve(
        self, digest: Digest, kind: ContentKind, registry: str, repository: str,
        size: int | None, authorization: str = "",
    ) -> Resolution:  # fmt: skip
        self.asked[str(digest)] = (kind, size)
        raise no_holder()

    async def refresh(self, *_: Any) -> Sequence[Holder]:
        return []

    @contextlib.asynccontextmanager
    async def direct(self, *_: Any) -> AsyncIterator[None]:
        yield

    def prefetch(self, *_: Any) -> None: ...

    def failed(self, *_: Any) -> None: ...

    def member(self, node: str) -> None: ...


def test_limits_grow_with_the_size() -> None:
    assert stall_limit(ContentKind.MANIFEST, None) == 5
    assert stall_limit(ContentKind.CONFIG, 1000) == 5
    assert stall_limit(ContentKind.BLOB, None) == 30
    assert stall_limit(ContentKind.BLOB, 10 * GIB) == 3 * (10 * GIB // (50 << 20))


async def test_the_resolver_is_told_kind_and_size(tmp_path: Path) -> None:
    origin, resolver = MemoryOrigin(), Listening()
    built = build.image([build.layer({"x": b"1" * 5000})])
    origin.add(built, "1")
    node = Images(tmp_path, origin=origin)
    node.cooperate(resolver, None, "me")
    async with running(node):
        await node.ensure("r.example/a:1")
    layer = built.layers[0]
    assert resolver.asked[str(layer.digest)] == (ContentKind.BLOB, len(layer.blob))
    config = str(Digest.of(built.config))
    assert resolver.asked[config] == (ContentKind.CONFIG, len(built.config))

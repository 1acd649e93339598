"""Only silence ends a transfer, never its length.

The original gave a peer 10 s for a whole body and the registry 5 min for a whole blob. Here a blob
comes in pieces 20 s apart from its registry (67 min in all), and 9 s apart from a peer. Put the
``clock.timeout`` of ``PeerClient.patiently`` around a whole body instead of each read (in
``Answer.chunks``) and the second test falls back on the origin.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from leasehold.core.clock import Clock, VirtualClock
from leasehold.core.service import running
from leasehold.images.download import Downloads
from leasehold.images.memory import PIECE, MemoryOrigin
from leasehold.images.peerclient import Answer, PeerClient
from leasehold.images.peers import Peers
from leasehold.images.ports import ContentKind, Holder, Resolution
from leasehold.images.settings import ImagesSettings
from leasehold.images.store import FileStore
from leasehold.model.digest import Digest

BLOB = bytes(range(256)) * (200 * PIECE // 256)


@contextlib.asynccontextmanager
async def node(folder: Path, clock: Clock, origin: MemoryOrigin) -> AsyncIterator[Downloads]:
    settings = ImagesSettings(fsync=False)
    async with running(FileStore(folder, settings, clock)) as store:
        async with running(Downloads(store, origin, settings, clock)) as downloads:
            yield downloads


def test_a_slow_registry_is_waited_for(virtual: VirtualClock, tmp_path: Path) -> None:
    async def main() -> None:
        origin = MemoryOrigin(BLOB, clock=virtual)
        origin.pause = 20.0
        async with node(tmp_path, virtual, origin) as downloads:
            began = virtual.monotonic()
            await downloads.get(Digest.of(BLOB), ContentKind.BLOB, "r", "a", len(BLOB)).finish()
            assert virtual.monotonic() - began >= 3600
            assert len(origin.gets) == 1

    virtual.run(main)


class SlowReader:
    """A peer's connection: a piece every ``pause`` seconds, silence from ``silent_after`` on."""

    def __init__(self, clock: Clock, data: bytes, pause: float, silent_after: int) -> None:
        self.clock, self.data, self.pause, self.silent_after = clock, data, pause, silent_after
        self.at = 0

    async def read(self, size: int) -> bytes:
        await self.clock.sleep(self.pause if self.at < self.silent_after else 1e9)
        piece = self.data[self.at : self.at + min(size, PIECE * 8)]
        self.at += len(piece)
        return piece


class SlowClient(PeerClient):
    silent: dict[str, int] = {}

    @contextlib.asynccontextmanager
    async def request(
        self, holder: Holder, path: str, *, method: str = "GET", span: Any = None
    ) -> AsyncIterator[Answer]:
        start, end = span or (0, len(BLOB))
        if "/chunks/" in path:
            yield Answer(404, {}, self)
            return
        answer = Answer(206 if span else 200, {"content-length": str(end - start)}, self)
        reader = SlowReader(self.clock, BLOB[start:end], 9.0, self.silent.get(holder.node, 1 << 60))
        answer._reader = reader  # type: ignore[assignment]
        yield answer


class Told:
    """A resolver that knows two holders."""

    def __init__(self) -> None:
        self.failures: list[tuple[str, str]] = []

    async def resolve(self, *_: Any) -> Resolution:
        return Resolution([Holder("a", "a:1"), Holder("b", "b:1")])

    async def refresh(self, *_: Any) -> Sequence[Holder]:
        return []

    def failed(self, digest: Digest, holder: Holder, outcome: str) -> None:
        self.failures.append((holder.node, outcome))

    def member(self, node: str) -> None: ...

    def prefetch(self, *_: Any) -> None: ...

    def direct(self, *_: Any) -> Any:
        raise AssertionError("there is no need for the registry")


def fetch_from_peers(
    virtual: VirtualClock, folder: Path, silent: dict[str, int]
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    told = Told()

    async def main() -> dict[str, int]:
        async with node(folder, virtual, MemoryOrigin(clock=virtual)) as downloads:
            settings = ImagesSettings(plaintext=True, stripe_holders=1)
            client = SlowClient(settings, virtual, "me")
            client.silent = silent
            downloads.peers = Peers(told, client, settings, virtual)  # type: ignore[arg-type]
            download = downloads.get(Digest.of(BLOB), ContentKind.BLOB, "r", "a", len(BLOB))
            await download.finish()
            assert virtual.monotonic() > 60
            return download.sources

    return virtual.run(main), told.failures


def test_a_slow_peer_is_waited_for(virtual: VirtualClock, tmp_path: Path) -> None:
    sources, failures = fetch_from_peers(virtual, tmp_path, {})
    assert sum(sources.values()) == len(BLOB) and failures == []


def test_a_silent_peer_is_left_for_another(virtual: VirtualClock, tmp_path: Path) -> None:
    sources, failures = fetch_from_peers(virtual, tmp_path, {"a": PIECE, "b": 1 << 60})
    assert failures in ([("a", "stall")], []), "whoever was silent, and only for silence"
    assert sum(sources.values()) == len(BLOB)

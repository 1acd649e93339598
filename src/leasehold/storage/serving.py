"""Serves the volumes of this host by gRPC: what they are, snapshots, and what is in those.

Only repos that are enabled here are answered for. Listing and reading are of snapshots, not of the
live files: nothing a workload does meanwhile (a link to elsewhere, a file cut short) can mislead
them.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc

from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError, not_found
from leasehold.events.rpc_serving import RpcServer
from leasehold.events.settings import Reach
from leasehold.storage import volume_pb2 as pb
from leasehold.storage.content import content_missing
from leasehold.storage.shadow import Author
from leasehold.storage.state import RepoState
from leasehold.storage.tree import Record
from leasehold.storage.volumes import Volumes

SERVICE = "leasehold.volume.v1.Volume"
UNARY: dict[str, tuple[Any, Any]] = {
    "Stat": (pb.StatRequest, pb.StatResponse),
    "Snapshot": (pb.SnapshotRequest, pb.SnapshotResponse),
}
STREAMS: dict[str, tuple[Any, Any]] = {
    "List": (pb.ListRequest, pb.Entry),
    "Read": (pb.ReadRequest, pb.Chunk),
}

BLOCK = 256 << 10
"""Bytes of content in one message."""


class VolumeServer(RpcServer):
    """``tokens`` are those of the event log's observers."""

    def __init__(
        self,
        volumes: Volumes,
        tokens: Mapping[str, Reach],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        credentials: grpc.ServerCredentials | None = None,
        clock: Clock | None = None,
    ) -> None:
        super().__init__(
            "volume server", tokens, host, port, credentials, clock, setting="storage.port"
        )
        self.volumes = volumes
        self.storage = volumes.storage
        self.add(SERVICE, UNARY, STREAMS)

    async def _repo(self, repo: str, reach: Reach) -> RepoState:
        """A repo that is reached and served here; one out of reach is as if it were not there."""
        state = await self.volumes.repos.repo(repo)
        if not reach.volume(state.registry, state.path):
            raise not_found("volume", repo)
        return await self.storage.served(repo)

    async def _stat(self, request: pb.StatRequest, reach: Reach) -> pb.StatResponse:
        state = await self._repo(request.repo, reach)
        return pb.StatResponse(
            path=state.path,
            host=state.host,
            tier=state.tier,
            busy=state.busy,
            commit=state.commit,
            files=state.files,
            bytes=state.bytes,
            size_bytes=state.size_bytes,
        )

    async def _snapshot(self, request: pb.SnapshotRequest, reach: Reach) -> pb.SnapshotResponse:
        await self._repo(request.repo, reach)
        author = Author(request.author or "observer")
        taken = await self.storage.snapshot(request.repo, author, request.reason or "on demand")
        return pb.SnapshotResponse(
            commit=taken.commit, files=taken.files, bytes=taken.bytes, stored=taken.stored
        )

    async def _list(self, request: pb.ListRequest, reach: Reach) -> AsyncIterator[pb.Entry]:
        for path, record in await self._records(request.repo, request.at, request.path, reach):
            yield pb.Entry(
                path=os.fsencode(path),
                type=record.type,
                mode=record.mode,
                size=record.size,
                mtime_ns=record.mtime,
                content=os.fsencode(record.content),
            )

    async def _read(self, request: pb.ReadRequest, reach: Reach) -> AsyncIterator[pb.Chunk]:
        found = await self._records(request.repo, request.at, request.path, reach)
        wanted = os.fsdecode(request.path)
        record = next((r for path, r in found if path == wanted and r.type == "f"), None)
        if record is None:
            raise not_found("file", wanted)
        file = self.storage.content.path(record.content)
        try:
            fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise content_missing(record.content) from None
        try:
            offset = request.offset
            while block := await asyncio.to_thread(os.pread, fd, BLOCK, offset):
                yield pb.Chunk(data=block)
                offset += len(block)
        except OSError as error:
            raise LeaseholdError(
                "volume_io", f"the content cannot be read: {error}", kind=Kind.INTERNAL
            ) from error
        finally:
            os.close(fd)

    async def _records(
        self, repo: str, at: str, below: bytes, reach: Reach
    ) -> list[tuple[str, Record]]:
        await self._repo(repo, reach)
        top = os.fsdecode(below).strip("/")
        found = await self.storage.listing(repo, at or None)
        if not top:
            return found
        return [(p, r) for p, r in found if p == top or p.startswith(f"{top}/")]

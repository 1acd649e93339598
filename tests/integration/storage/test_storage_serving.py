"""The volumes of a host over real gRPC: what they are, snapshots, and what is in those."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from leasehold.core.errors import LeaseholdError
from leasehold.core.service import running
from leasehold.events import rpc
from leasehold.events.event import Entity
from leasehold.events.settings import Reach
from leasehold.events.sqlite import SqliteLog
from leasehold.observe.engine import Engine
from leasehold.storage import immutable
from leasehold.storage import volume_pb2 as pb
from leasehold.storage.serving import SERVICE, STREAMS, UNARY, VolumeServer
from leasehold.storage.volumes import Volumes

TOKENS = {
    "acme's": Reach(registries=("local",), prefixes=("leases/acme",)),
    "other's": Reach(registries=("local",), prefixes=("leases/ac",)),
}


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    immutable.set_tree(tmp_path / "volumes", False)


class Remote:
    """Calls as a client in any language makes them."""

    def __init__(self, channel: grpc.aio.Channel, token: str) -> None:
        self.channel = channel
        self.metadata = (("authorization", f"Bearer {token}"),)

    async def ask(self, name: str, request: Any) -> Any:
        request_type, response = UNARY[name]
        call = self.channel.unary_unary(
            f"/{SERVICE}/{name}", request_type.SerializeToString, response.FromString
        )
        return await self._plain(call(request, metadata=self.metadata))

    async def all(self, name: str, request: Any) -> list[Any]:
        request_type, response = STREAMS[name]
        call = self.channel.unary_stream(
            f"/{SERVICE}/{name}", request_type.SerializeToString, response.FromString
        )

        async def collect(stream: AsyncIterator[Any]) -> list[Any]:
            return [message async for message in stream]

        return await self._plain(collect(call(request, metadata=self.metadata)))

    async def _plain(self, answer: Awaitable[Any]) -> Any:
        try:
            return await answer
        except grpc.aio.AioRpcError as failure:
            raise rpc.error_of(failure) from None


async def refused(ask: Callable[[], Awaitable[object]]) -> str:
    with pytest.raises(LeaseholdError) as error:
        await ask()
    return error.value.code


async def test_what_is_enabled_here_is_answered_for(root: Path) -> None:
    async with running(SqliteLog(root / "log.db")) as log:
        engine = Engine(log)
        volumes = Volumes(root / "volumes", log, engine)
        async with (
            running(volumes),
            running(engine),
            running(VolumeServer(volumes, TOKENS)) as server,
            grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
        ):
            place = await volumes.ensure("acme", 1, "web", "data", 1 << 20)
            repo = await volumes.find("leases/acme/1/web/data")
            big = os.urandom(700_000)
            (place / "d").mkdir()
            (place / "d" / "big").write_bytes(big)
            (place / b"d\xff".decode(errors="surrogateescape")).write_text("odd")
            (place / "link").symlink_to("/etc/passwd")
            remote, other = Remote(channel, "acme's"), Remote(channel, "other's")

            first = await remote.ask("Snapshot", pb.SnapshotRequest(repo=repo, author="me"))
            assert first.stored == 700_003
            said = await remote.ask("Stat", pb.StatRequest(repo=repo))
            assert (said.path, said.tier) == ("leases/acme/1/web/data", "online")
            assert said.commit == first.commit

            (place / "d" / "big").write_text("changed since")
            listed = await remote.all("List", pb.ListRequest(repo=repo))
            assert {(e.path, e.type) for e in listed} == {
                (b"d", "d"),
                (b"d/big", "f"),
                (b"d\xff", "f"),
                (b"link", "l"),
            }
            below = await remote.all("List", pb.ListRequest(repo=repo, path=b"d"))
            assert [e.path for e in below] == [b"d", b"d/big"]
            read = pb.ReadRequest(repo=repo, at=first.commit[:10], path=b"d/big")
            assert b"".join(c.data for c in await remote.all("Read", read)) == big
            read = pb.ReadRequest(repo=repo, path=b"d/big", offset=699_990)
            assert b"".join(c.data for c in await remote.all("Read", read)) == big[699_990:]
            # A link is never followed, and nothing above the volume is reached.
            for path in (b"link", b"../../../etc/passwd", b"d", b"nope"):
                code = await refused(
                    lambda p=path: remote.all("Read", pb.ReadRequest(repo=repo, path=p))  # type: ignore[misc]
                )
                assert code == "file_not_found"

            stat = pb.StatRequest(repo=repo)
            assert await refused(lambda: other.ask("Stat", stat)) == "volume_not_found"
            stranger = Remote(channel, "nobody's")
            assert await refused(lambda: stranger.ask("Stat", stat)) == "log_token_unknown"
            nothing = pb.StatRequest(repo="nope")
            assert await refused(lambda: remote.ask("Stat", nothing)) == "volume_not_found"

            # Frozen it is still answered for, but takes no more snapshots; elsewhere it is not.
            await volumes.release("acme", 1)
            async for _ in log.read(Entity("repo", repo), watch=True):
                if (await volumes.repos.repo(repo)).tier == "frozen":
                    break
            assert (await remote.ask("Stat", stat)).tier == "frozen"
            again = pb.SnapshotRequest(repo=repo)
            assert await refused(lambda: remote.ask("Snapshot", again)) == "volume_tier"
            await engine.shutdown()  # nothing enables it again
            await volumes.storage.disable_repo(repo)
            volumes.storage.ask = lambda _: None
            volumes.storage.host = "another"
            assert await refused(lambda: remote.ask("Stat", stat)) == "volume_not_here"

"""The log over real gRPC: the suite, an engine in the far end, and what tokens reach."""

from __future__ import annotations

from pathlib import Path

import pytest

from leasehold.core.clock import SystemClock
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.core.service import running
from leasehold.events.conformance import CASES, Case, history, new, soon
from leasehold.events.event import Entity, Event, NewEvent, Subscribed
from leasehold.events.memory import MemoryLog
from leasehold.events.rpc_client import RemoteLog
from leasehold.events.rpc_server import LogServer
from leasehold.events.settings import Reach
from leasehold.events.sqlite import SqliteLog
from leasehold.model.events import storage as facts
from leasehold.storage.testing import PretendedHost

ALL = {"t": Reach(everything=True)}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_remote(case: Case, tmp_path: Path) -> None:
    async with (
        running(SqliteLog(tmp_path / "log.db")) as log,
        running(LogServer(log, ALL)) as server,
        running(RemoteLog(f"127.0.0.1:{server.port}", "t")) as remote,
    ):
        await case(remote)


async def test_an_engine_works_over_the_stream(tmp_path: Path) -> None:
    async with (
        running(SqliteLog(tmp_path / "log.db")) as log,
        running(LogServer(log, {"t": Reach(registries=("local",), prefixes=("",))})) as server,
        running(RemoteLog(f"127.0.0.1:{server.port}", "t")) as remote,
    ):
        host = PretendedHost(remote, SystemClock(), seconds=0.0)
        async with running(host.engine):
            repos = await host.make(20)
            async for _ in remote.read(Entity("registry", "local"), watch=True):
                state = await host.repos.registries.state("local")
                if all(r.added for r in state.repos.values()) and len(state.repos) == 20:
                    break
            for repo in repos:
                async for _ in remote.read(Entity("repo", repo), watch=True):
                    if (await host.repos.repos.state(repo)).shadow_path:
                        break


async def test_a_token_reaches_only_its_registries_and_prefixes() -> None:
    log = MemoryLog()
    tokens = {"one": Reach(registries=("one",), prefixes=("leases/a", "lease:a")), "all": ALL["t"]}

    def begins(registry: str, path: str) -> NewEvent:
        return NewEvent.of(facts.RepoInitStarted(registry=registry, path=path, host="h"))

    await log.append(Entity("repo", "mine"), None, [begins("one", "leases/a/x")])
    await log.append(Entity("repo", "sibling"), None, [begins("one", "leases/ab")])
    await log.append(Entity("repo", "foreign"), None, [begins("two", "leases/a/x")])
    await log.append(Entity("lease", "a/1"), None, [new("1")])
    await log.append(Entity("lease", "b/1"), None, [new("1")])
    async with (
        running(LogServer(log, tokens)) as server,
        running(RemoteLog(f"127.0.0.1:{server.port}", "one")) as remote,
        running(RemoteLog(f"127.0.0.1:{server.port}", "wrong")) as stranger,
    ):
        assert len(await history(remote, Entity("repo", "mine"))) == 1
        assert len(await history(remote, Entity("lease", "a/1"))) == 1
        for kind, id in [("repo", "sibling"), ("repo", "foreign"), ("lease", "b/1")]:
            with pytest.raises(LeaseholdError) as refused:
                await history(remote, Entity(kind, id))
            assert (refused.value.code, refused.value.kind) == ("log_out_of_reach", Kind.FORBIDDEN)
            with pytest.raises(LeaseholdError):
                await remote.append(Entity(kind, id), "*", [new("x")])
        assert [e.id for e, _ in await remote.entities("repo")] == ["mine"]
        with pytest.raises(LeaseholdError) as refused:
            await remote.append(Entity("repo", "new"), None, [begins("two", "leases/a/y")])
        assert refused.value.kind is Kind.FORBIDDEN
        with pytest.raises(LeaseholdError) as refused:
            await stranger.head(Entity("lease", "a/1"))
        assert refused.value.kind is Kind.UNAUTHENTICATED
        # Ownership is only known with the first event: until then the stream is empty.
        stream = remote.read(Entity("repo", "later"), watch=True)
        await soon(anext(stream))
        await log.append(Entity("repo", "later"), None, [begins("two", "x")])
        with pytest.raises(LeaseholdError):
            await soon(anext(stream))
        signals = remote.signals()
        assert isinstance(await soon(anext(signals)), Subscribed)
        await log.append(Entity("lease", "b/1"), "*", [new("2")])
        await log.append(Entity("lease", "a/1"), "*", [new("2")])
        signal = await soon(anext(signals))
        assert not isinstance(signal, Event)
        assert signal[0] == Entity("lease", "a/1")

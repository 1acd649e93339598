"""Histories stay short, and nothing that counts is forgotten with their beginnings."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from leasehold.core.clock import VirtualClock
from leasehold.core.service import running
from leasehold.events.event import Entity
from leasehold.events.memory import MemoryLog
from leasehold.storage.content import ContentStore
from leasehold.storage.testing import PretendedHost
from leasehold.storage.trimming import Policy

TRIM = Policy(events=20, keep_s=3600.0)


async def length(log: MemoryLog, kind: str, id: str) -> int:
    return len([e async for e in log.read(Entity(kind, id))])


def test_a_volume_frozen_a_thousand_times_has_a_short_history() -> None:
    clock = VirtualClock()

    async def main() -> None:
        log = MemoryLog(clock)
        host = PretendedHost(log, clock, seconds=0.0, trim=TRIM)
        async with running(host.engine):
            (repo,) = await host.make(1)
            await clock.sleep(5)
            for n in range(1001):
                await host.repos.begin("freeze" if n % 2 == 0 else "unfreeze", repo, author="me")
                await clock.sleep(60)
            await clock.sleep(7200)
            assert await length(log, "repo", repo) < 200
        before = await host.repos.repo(repo)
        assert before.tier == "frozen"
        # Everybody who begins anew begins at the snapshot, and knows the same.
        again = PretendedHost(log, clock, seconds=0.0, trim=TRIM)
        async with running(again.engine):
            await clock.sleep(60)
            assert (await again.repos.repo(repo)) == before
            again.engine.operators.kick("repo", repo)
            await clock.sleep(1)
            assert again.files.enabled[repo].path == before.path
            await again.repos.begin("unfreeze", repo, author="me")
            await clock.sleep(60)
            assert (await again.repos.repo(repo)).tier == "online"
        # And whoever had read up to something that is gone since.
        assert (await host.repos.repo(repo)).tier == "online"

    clock.run(main)


def test_a_registry_of_many_short_lived_volumes_stays_as_long_as_its_list() -> None:
    clock = VirtualClock()

    async def main() -> None:
        log = MemoryLog(clock)
        host = PretendedHost(log, clock, seconds=0.0, trim=TRIM)
        async with running(host.engine):
            kept = await host.make(5)
            await clock.sleep(5)
            for n in range(100):
                repo = await host.repos.accept("leases/acme/passing/web/data", "local")
                await clock.sleep(5)
                await host.repos.begin("freeze", repo, author="me")
                await clock.sleep(5)
                await host.repos.delete(repo, "purged")
                await clock.sleep(5 + 60 * (n % 7))
            await clock.sleep(7200)
            assert await length(log, "registry", "local") < 100
            before = msgspec.to_builtins(await host.repos.registries.state("local"))
        again = PretendedHost(log, clock, seconds=0.0, trim=TRIM)
        async with running(again.engine):
            await clock.sleep(60)
            assert msgspec.to_builtins(await again.repos.registries.state("local")) == before
            assert again.observer.observed == set(kept)
            # An id is used once, also after its first use was forgotten.
            repo = await again.repos.accept("leases/acme/passing/web/data", "local")
            await clock.sleep(5)
            assert repo in again.files.enabled

    clock.run(main)


def test_a_sweep_leaves_what_was_put_again_meanwhile(tmp_path: Path) -> None:
    """With ``has`` only looking whether the file exists, the second snapshot loses its content."""
    store = ContentStore(tmp_path / "content")
    kept, gone = tmp_path / "kept", tmp_path / "gone"
    kept.write_bytes(b"kept")
    gone.write_bytes(b"gone")

    def put(file: Path) -> str:
        with file.open("rb") as stream:
            return store.put_stream(stream)

    names = [put(kept), put(gone)]
    for name in names:
        os.utime(store.path(name), (0, 0))
    put(kept)  # a snapshot that needs an old object, after the needed ones were counted
    assert store.sweep(set(), older_than=1000.0) == len(b"gone")
    assert [store.path(name).exists() for name in names] == [True, False]

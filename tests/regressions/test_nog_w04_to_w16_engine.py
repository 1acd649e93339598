"""The smaller weaknesses, each against the real engine in virtual time.

Each test names its weakness and says how it fails with the cure undone.
W15 (dead code) has no behaviour to test: there is no cron engine and no unused constant here.
"""

from __future__ import annotations

import pytest

from leasehold.core import metrics
from leasehold.core.clock import VirtualClock
from leasehold.core.errors import LeaseholdError
from leasehold.core.service import running
from leasehold.events.event import Entity, NewEvent
from leasehold.events.log import ANY
from leasehold.events.memory import MemoryLog
from leasehold.storage.commands import shorten
from leasehold.storage.errors import WEAK_RETRIES, Strong, Weak
from leasehold.storage.testing import PretendedHost


def test_w4_a_restart_reads_only_what_changed() -> None:
    """With ``RepoActivity.save`` returning None all 200 repos are read and enabled again."""
    clock = VirtualClock()

    async def main() -> None:
        log = MemoryLog(clock)
        host = PretendedHost(log, clock)
        async with running(host.engine):
            repos = await host.make(200)
            await clock.sleep(60)
        await host.repos.begin("freeze", repos[7], author="me")
        again = PretendedHost(log, clock)
        async with running(again.engine):
            await clock.sleep(60)
            touched = {repo for _, repo in again.files.calls}
            assert touched == {repos[7]}
            assert (await again.repos.repo(repos[7])).tier == "frozen"

    clock.run(main)


def test_w5_retries_are_not_a_herd() -> None:
    """With a fixed wait of 20 s in ``Runs._failed`` all fifty try again at the same moment."""
    clock = VirtualClock()

    async def main() -> None:
        host = PretendedHost(MemoryLog(clock), clock, seconds=0.0)
        host.files.fail["init"] = [LeaseholdError("not_now", "not today")] * 200
        tried: list[float] = []
        effect = host.files._effect

        async def noted(name: str, repo: str) -> None:
            if name == "init":
                tried.append(clock.monotonic())
            await effect(name, repo)

        host.files._effect = noted  # type: ignore[method-assign]
        async with running(host.engine):
            await host.make(50)
            await clock.sleep(3600)
            assert len(host.files.enabled) == 50
        assert len(set(tried[50:])) > 150
        assert sorted(tried)[100] - tried[0] < 1.0, "first tries come soon after each other"

    clock.run(main)


def test_w5_news_end_the_wait() -> None:
    """With ``Table.wake`` leaving alone what waits to try again, the repo stays online."""
    clock = VirtualClock()

    async def main() -> None:
        log = MemoryLog(clock)
        host = PretendedHost(log, clock)
        host.files.fail["init"] = [RuntimeError("not today")] * 12
        async with running(host.engine):
            await host.make(1)
            await clock.sleep(3600)
            assert not host.files.fail["init"]
            assert len(host.files.enabled) == 1
            # Now a failure at the far end of the back-off, and news in the middle of the wait.
            host.files.fail["freeze"] = [RuntimeError("busy")] * 30
            (repo,) = host.files.enabled
            await host.repos.begin("freeze", repo, author="me")
            await clock.sleep(300)
            (row,) = [t for t in host.engine.operators.tasks("repo") if t["failures"]]
            assert row["state"] == "retrying"
            host.files.fail["freeze"].clear()
            await log.append(
                Entity("repo", repo), ANY, [NewEvent("n", "repo.error_cleared", b'{"message":""}')]
            )
            await clock.sleep(0.1)
            assert (await host.repos.repo(repo)).tier == "frozen"

    clock.run(main)


def test_w6_a_weak_error_is_tried_again_five_times_and_success_starts_over() -> None:
    """One retry more in ``RepoActivity._handled`` and the last freeze does not end in an error.

    Failures that are not forgotten, neither by ``Runs._run`` nor by a sleep, and the second freeze
    gives up at its first failure.
    """
    clock = VirtualClock()

    async def main() -> None:
        log = MemoryLog(clock)
        host = PretendedHost(log, clock)
        async with running(host.engine):
            (repo,) = await host.make(1)
            await clock.sleep(5)
            for _ in range(3):
                host.files.fail["freeze"] = [Weak("disk")] * WEAK_RETRIES
                await host.repos.begin("freeze", repo, author="me")
                await clock.sleep(600)
                assert (await host.repos.repo(repo)).tier == "frozen"
                await host.repos.begin("unfreeze", repo, author="me")
                await clock.sleep(10)
            host.files.fail["freeze"] = [Weak("disk")] * (WEAK_RETRIES + 1)
            await host.repos.begin("freeze", repo, author="me")
            await clock.sleep(600)
            state = await host.repos.repo(repo)
            assert (state.error, state.failed, state.busy) == ("disk", True, "")

    clock.run(main)


def test_w7_a_second_error_replaces_the_first_and_is_cut_between_characters() -> None:
    """``Repos.set_error`` refusing while an error is set, the first one stays for ever; cutting the
    message by bytes, 60 of the 120 characters are gone.
    """
    clock = VirtualClock()

    async def main() -> None:
        log = MemoryLog(clock)
        host = PretendedHost(log, clock)
        host.files.fail["init"] = [Strong("ü" * 500)]
        async with running(host.engine):
            (repo,) = await host.make(1)
            await clock.sleep(5)
            assert (await host.repos.repo(repo)).error == "ü" * 119 + "…"
            await host.repos.set_error(repo, "second", "another \ud800 problem")
            assert (await host.repos.repo(repo)).error == "another ? problem"
            with pytest.raises(LeaseholdError, match="another error"):
                await host.repos.clear_error(repo, "ü" * 119 + "…")
            await host.repos.clear_error(repo)
            await clock.sleep(5)
            assert repo in host.files.enabled

    clock.run(main)
    assert len(shorten("x" * 121)) == 120


def test_w12_hundreds_of_freezes_leave_nothing_open() -> None:
    """With the workflow activities ending asleep instead of done, 300 moves stay in the table."""
    clock = VirtualClock()

    async def main() -> None:
        log = MemoryLog(clock)
        host = PretendedHost(log, clock)
        async with running(host.engine):
            repos = await host.make(300)
            await clock.sleep(60)
            for repo in repos:
                await host.repos.begin("freeze", repo, author="me")
            await clock.sleep(60)
            for n, repo in enumerate(repos):
                await host.repos.begin_move(repo, f"m/{n}", "local", timeout=60)
            await clock.sleep(120)
            counts = {row["activity"]: row for row in host.engine.operators.counts()}
            for name in ("move", "move-release", "move-acquire"):
                row = counts[name]
                assert sum(v for k, v in row.items() if isinstance(v, int) and k != "finished") == 0
            left = {timer.name for timer in await log.due_timers(float("inf"))}
            assert left <= {"trim-registry/trim"}

    clock.run(main)


def test_w13_waiting_for_a_release_takes_no_slot() -> None:
    """With ``Context.outside`` a no-op the ten slots are gone, and the freeze waits for ever."""
    clock = VirtualClock()

    async def main() -> None:
        log = MemoryLog(clock)
        host = PretendedHost(log, clock)
        async with running(host.engine):
            repos = await host.make(60)
            await clock.sleep(60)
            host.may_release = False
            for n, repo in enumerate(repos[:50]):
                await host.repos.begin_move(repo, f"m/{n}", "local", timeout=600)
            await clock.sleep(30)
            assert host.engine.table.lanes["repo"].free == 10
            await host.repos.begin("freeze", repos[55], author="me")
            await clock.sleep(1)
            assert (await host.repos.repo(repos[55])).tier == "frozen"
            await clock.sleep(700)  # nobody let go: the moves are given up and served as before
            for repo in repos[:50]:
                state = await host.repos.repo(repo)
                assert state.path.startswith("leases/")
                assert state.busy == ""
                assert repo in host.files.enabled

    clock.run(main)


def test_w14_the_engine_can_be_looked_into() -> None:
    """Any of these metrics renamed or taken out fails it."""
    clock = VirtualClock()

    async def main() -> None:
        host = PretendedHost(MemoryLog(clock), clock)
        async with running(host.engine):
            (repo,) = await host.make(1)
            await clock.sleep(5)
            assert host.engine.operators.inspect("repo", repo)["state"] == "sleeping"
            names = {m.name for m in metrics.REGISTRY.collect()}
            assert {
                "leasehold_observe_ready",
                "leasehold_observe_wake_to_run_seconds",
                "leasehold_observe_run_seconds",
                "leasehold_observe_retries",
                "leasehold_observe_slot_wait_seconds",
            } <= names

    clock.run(main)


async def test_w16_an_append_to_a_closed_log_is_refused_at_once() -> None:
    """A closed log that goes on as if it were open answers, and nobody ever reads it."""
    log = MemoryLog()
    await log.close()
    with pytest.raises(LeaseholdError) as refused:
        await log.append(Entity("k", "a"), None, [NewEvent("1", "t", b"{}")])
    assert refused.value.code == "not_running"

"""W8: a move from a foreign prefix, seen first while loading, begins activities for no repo.
W9: a restart between the repo's and the registry's end of a move leaves two live activities.

For W8 make ``RegistryObserver.load`` drop the repo id of a move it has no entry for: nothing is
acquired. For W9 take the rule with ``_successor`` out of ``RepoActivity._act``: the first activity
stays, and the second is still "running" at the end, waiting for it.
"""

from __future__ import annotations

from leasehold.core.clock import VirtualClock
from leasehold.core.service import running
from leasehold.events.memory import MemoryLog
from leasehold.storage.testing import PretendedHost


def test_w8_an_acquisition_from_a_foreign_prefix_survives_a_restart() -> None:
    clock = VirtualClock()

    async def main() -> None:
        log = MemoryLog(clock)
        old = PretendedHost(log, clock, host="old", prefixes=("leases",))
        async with running(old.engine):
            (repo,) = await old.make(1)
            await clock.sleep(5)
            await old.repos.begin_move(repo, "elsewhere/x", "new", timeout=3600)
            await clock.sleep(5)
            # Only now, with the move under way, does the new place start, and then once more.
            for _ in range(2):
                new = PretendedHost(log, clock, host="new", prefixes=("elsewhere",), seconds=3.0)
                async with running(new.engine):
                    await clock.sleep(1)
            new = PretendedHost(log, clock, host="new", prefixes=("elsewhere",))
            async with running(new.engine):
                await clock.sleep(60)
                assert new.files.enabled[repo].path == "elsewhere/x"
                assert repo not in old.files.enabled
                assert (await new.repos.repo(repo)).busy == ""

    clock.run(main)


def test_w9_after_a_restart_in_the_middle_of_the_end_one_activity_serves() -> None:
    clock = VirtualClock()

    async def main() -> None:
        log = MemoryLog(clock)
        host = PretendedHost(log, clock)
        async with running(host.engine):
            (repo,) = await host.make(1)
            await clock.sleep(5)
        # The move goes as far as the repo's own end, and not to the registry.
        repos = host.repos
        workflow = await repos.begin_move(repo, "moved/x", "local", timeout=0)
        registry = await repos.registries.state("local")
        assert registry.repos[repo].move == workflow
        from leasehold.model.events import storage as facts

        await repos.start_move(
            facts.RepoMoveAccepted(repo=repo, workflow=workflow, path="moved/x", host="local")
        )
        started = (await repos.repo(repo)).move
        assert started is not None
        await repos.start_workflow(repo, started)
        await repos.accept_release(workflow)
        await repos.release(workflow)
        await repos.files_moved(workflow, "/local/moved/x", f"/{repo}.git")
        await repos.finish_on_repo(workflow, await repos.moves.state(workflow))

        again = PretendedHost(log, clock)
        async with running(again.engine):
            await clock.sleep(60)
            assert again.files.enabled[repo].path == "moved/x"
            assert (await again.repos.registries.state("local")).repos[repo].move == ""
            (row,) = [r for r in again.engine.operators.counts() if r["activity"] == "repo"]
            states = {k: row[k] for k in row.keys() - {"activity", "kind", "limit", "finished"}}
            assert (states, row["finished"]) == ({"sleeping": 1}, 1)
            assert again.engine.table.lanes["repo"].free == 10
            # And it can still be moved on.
            await again.repos.begin_move(repo, "moved/y", "local", timeout=600)
            await clock.sleep(60)
            assert again.files.enabled[repo].path == "moved/y"

    clock.run(main)

"""A move that has ended on the repo is not begun again while the registry has not heard of it.

Found by ``python -m sim observe --seed 3``. Without ``last_move`` in ``RepoState`` the repo's
history gets a second ``repo.move_started`` of a workflow that is over, and is busy for ever.
"""

from __future__ import annotations

from leasehold.core.clock import VirtualClock
from leasehold.events.memory import MemoryLog
from leasehold.model.events import storage as facts
from leasehold.storage.commands import Repos


def test_a_move_that_has_ended_is_not_begun_again() -> None:
    clock = VirtualClock()

    async def main() -> None:
        repos = Repos(MemoryLog(clock), clock, "local")
        path = "leases/acme/1/web/data"
        repo = await repos.accept(path, "local")
        await repos.begin_init(facts.RepoAccepted(repo=repo, path=path, host="local"))
        await repos.confirm_added(repo, path, "local")
        await repos.confirm_shadow(repo, "/files", "/shadow")
        workflow = await repos.begin_move(repo, "moved/x", "local", timeout=60)
        accepted = facts.RepoMoveAccepted(
            repo=repo, workflow=workflow, path="moved/x", host="local"
        )
        await repos.start_move(accepted)
        started = (await repos.repo(repo)).move
        assert started is not None
        await repos.start_workflow(repo, started)
        assert await repos.abort_move(workflow, "changed our minds")
        await repos.finish_on_repo(workflow, await repos.moves.state(workflow))
        await repos.start_move(accepted)
        assert (await repos.repo(repo)).busy == ""

    clock.run(main)

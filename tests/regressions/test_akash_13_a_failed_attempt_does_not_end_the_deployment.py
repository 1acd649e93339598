"""An attempt that failed while a newer manifest waited ended the deployment's manager, and with it
the reservation and the host names of a workload that was still running.

Seen failing with the row ``(_S.PENDING, _I.FAILED)`` of ``machine.TABLE`` leading to
``(_S.TEARDOWN_ACTIVE, _A.TEARDOWN)``: the running replica is removed.
"""

from __future__ import annotations

from leasehold.core.clock import VirtualClock
from leasehold.core.errors import LeaseholdError
from leasehold.deploy.machine import Action, Input, State, step
from leasehold.deploy.testing import Bench, service, workload


def test_the_newer_manifest_is_tried_and_what_ran_goes_on(virtual: VirtualClock) -> None:
    async def main() -> None:
        bench = Bench(virtual, start_deadline=5.0)
        async with bench.running() as deployment:
            deployment.want(workload("h1"))
            await bench.until(lambda: "WorkloadHealthy" in bench.kinds())
            before = set(bench.runtime.running)
            bench.runtime.silent.add("extra")
            deployment.want(workload("h2", service("extra"), service()))
            await bench.clock.sleep(1)
            deployment.want(workload("h3", service("broken"), service()))
            bench.runtime.refuse["broken"] = LeaseholdError("runtime_failed", "cannot start")
            await bench.clock.sleep(1)
            assert deployment.state is State.PENDING
            await bench.until(lambda: bench.kinds().count("DeployFailed") == 2)
            await bench.until(lambda: deployment.state is State.COMPLETE)
            assert set(bench.runtime.running) == before
            deployment.want(workload("h4", service(env=["A=b"])))
            await bench.until(lambda: bench.kinds().count("WorkloadHealthy") == 2)

    virtual.run(main)


def test_the_row() -> None:
    assert step(State.PENDING, Input.FAILED) == (State.ACTIVE, Action.DEPLOY)

"""A PUT was answered 200 and then nothing ran: a missing reservation, a renamed service or a
failing deploy were written to the provider's own log only.

Now every outcome is an event on the lease and part of its status; services may be added, dropped
and renamed; and a lease needs no reservation to be found to be deployed.

Seen failing with the body of ``Deployment._say_failed`` reduced to ``self.error = error``: the
first test waits for an event that never comes. With ``self.error = error`` removed as well the
status says nothing either.
"""

from __future__ import annotations

from leasehold.core.clock import VirtualClock
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.deploy.testing import Bench, service, workload
from leasehold.model.events.lease import DeployFailed


def test_a_deploy_error_is_told(virtual: VirtualClock) -> None:
    async def main() -> None:
        bench = Bench(virtual)
        bench.images.errors["img"] = [
            LeaseholdError("image_not_found", "no such image", kind=Kind.NOT_FOUND)
        ]
        async with bench.running() as deployment:
            deployment.want(workload("h1"))
            await bench.until(lambda: bool(bench.said), 5)
            (said,) = bench.said
            assert isinstance(said, DeployFailed)
            assert (said.code, said.message, said.final) == (
                "image_not_found",
                "no such image",
                True,
            )
            assert deployment.error is not None
            assert deployment.error.to_dict()["code"] == "image_not_found"

    virtual.run(main)


def test_services_may_be_renamed(virtual: VirtualClock) -> None:
    async def main() -> None:
        bench = Bench(virtual)
        async with bench.running() as deployment:
            deployment.want(workload("h1", service("old"), service("same")))
            await bench.until(lambda: "WorkloadHealthy" in bench.kinds())
            deployment.want(workload("h2", service("new"), service("same")))
            await bench.until(lambda: bench.kinds().count("WorkloadHealthy") == 2)
            await bench.until(lambda: deployment.state.value == "deploy-complete")
        assert sorted(r.service for r in bench.runtime.running.values()) == ["new", "same"]

    virtual.run(main)

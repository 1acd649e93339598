"""An API server that did not answer counted as an unhealthy workload: a ten-minute outage closed
every lease of a provider.

Seen failing with ``self._unknown(str(error))`` in ``Monitor._check`` replaced by
``await self._unhealthy(str(error))``: within ten minutes of virtual time the bid is closed.
"""

from __future__ import annotations

from leasehold.core.clock import VirtualClock
from leasehold.deploy.testing import Bench, workload


def test_an_outage_of_the_runtime_closes_nothing(virtual: VirtualClock) -> None:
    async def main() -> None:
        bench = Bench(virtual)
        async with bench.running() as deployment:
            deployment.want(workload("h1"))
            await bench.until(lambda: "WorkloadHealthy" in bench.kinds())
            said = len(bench.said)
            bench.runtime.away = True
            await bench.clock.sleep(3 * 3600)
            assert deployment.health.healthy is None, "status says unknown"
            assert "does not answer" in deployment.health.reason
            assert deployment.health.unhealthy_checks == 0
            assert bench.market.tries == 0
            bench.runtime.away = False
            await bench.until(lambda: deployment.health.healthy is True, 30)
            assert len(bench.said) == said, "nothing had changed, so nothing is said"
            assert bench.runtime.starts == 1

    virtual.run(main)


def test_an_outage_does_not_wipe_out_what_was_counted(virtual: VirtualClock) -> None:
    async def main() -> None:
        bench = Bench(virtual)
        async with bench.running() as deployment:
            deployment.want(workload("h1"))
            await bench.until(lambda: "WorkloadHealthy" in bench.kinds())
            bench.runtime.silent.add("web")
            await bench.until(lambda: deployment.health.unhealthy_checks == 5)
            bench.runtime.away = True
            await bench.clock.sleep(600)
            assert deployment.health.unhealthy_checks == 5

    virtual.run(main)

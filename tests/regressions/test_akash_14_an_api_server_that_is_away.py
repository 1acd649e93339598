"""An API server that did not answer counted as unhealthy workloads: after ten minutes without it, a
provider on Kubernetes closed every lease it had.

Seen failing with ``self.unknown(self.cluster.why)`` in ``ClusterWatch._look`` replaced by
``await self.unhealthy(self.cluster.why)``: the bid is closed within the outage.
"""

from __future__ import annotations

from leasehold.core.clock import VirtualClock
from leasehold.deploy.kubernetes.testing import ClusterBench
from leasehold.deploy.testing import workload


def test_ten_minutes_without_the_api_server_close_nothing(virtual: VirtualClock) -> None:
    async def main() -> None:
        bench = ClusterBench(virtual)
        async with bench.running() as deployment:
            deployment.want(workload("h1"))
            await bench.until(lambda: deployment.health.healthy is True)
            said, applied = len(bench.said), bench.api.applied
            bench.api.away = True
            await bench.until(lambda: deployment.health.healthy is None, 1)
            assert "cannot be reached" in deployment.health.reason
            await bench.clock.sleep(600)
            assert deployment.health.healthy is None
            assert deployment.health.unhealthy_checks == 0
            assert bench.market.tries == 0
            bench.api.away = False
            await bench.until(lambda: deployment.health.healthy is True, 30)
            assert len(bench.said) == said, "nothing had changed, so nothing is said"
            assert bench.api.applied == applied, "and nothing is applied"

    virtual.run(main)

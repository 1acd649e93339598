"""A workload that would not stay up had its bid closed by one attempt; when that failed, the
monitor idled and the lease stayed open and unhealthy for good.

Seen failing with a ``return`` at the top of ``Monitor._give_up`` once it was called before
(``if self.health.unhealthy_checks > self.settings.monitor_attempts + 1: return``): the market
refuses once and is never asked again.
"""

from __future__ import annotations

from leasehold.core.clock import VirtualClock
from leasehold.deploy.testing import LEASE, Bench, workload


def test_the_close_is_repeated_until_the_market_takes_it(virtual: VirtualClock) -> None:
    async def main() -> None:
        bench = Bench(virtual, monitor_attempts=3)
        bench.market.failures = 7
        async with bench.running() as deployment:
            deployment.want(workload("h1"))
            await bench.until(lambda: "WorkloadHealthy" in bench.kinds())
            bench.runtime.silent.add("web")
            await bench.until(lambda: bool(bench.market.closed), 3600)
        assert bench.market.tries == 8
        assert bench.market.closed == [(LEASE, 10000)]

    virtual.run(main)

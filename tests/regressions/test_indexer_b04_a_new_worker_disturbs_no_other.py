"""B4: without a forwarding proxy every new worker knocked all others of its network offline.

Seen failing: with the comparison of addresses in ``Registry.ping`` replaced by one of the (equal)
peer IPs, the first worker is removed when the second one pings.
"""

from __future__ import annotations

from leasehold.core.clock import VirtualClock
from leasehold.dispatch.registry import WorkerState
from leasehold.dispatch.testing import cluster


def test_workers_behind_one_ip_live_together_and_a_restart_replaces_only_itself(
    virtual: VirtualClock,
) -> None:
    async def main() -> None:
        async with cluster({}, workers=3, clock=virtual) as c:
            registry = c.manager.registry
            before = {w.id: w.session for w in registry.workers.values()}
            assert len(before) == 3
            await c.start("w4")
            for id_, session in before.items():
                assert registry.get(id_).session is session
                assert registry.get(id_).state is WorkerState.ONLINE
            # Same address, new id: the process was restarted; only its old record goes.
            old = c.workers["w2"].id
            await c.net.kill("w2")
            restarted = await c.start("w2")
            assert old not in registry.workers
            assert restarted.id in registry.workers
            assert len(registry.workers) == 4

    virtual.run(main)

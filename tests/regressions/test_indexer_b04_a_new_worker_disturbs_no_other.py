"""B4: without a forwarding proxy every new worker knocked all others of its network offline.

Seen failing: with ``other.address`` and ``address`` in the comparison of ``Registry.ping`` replaced
by the (equal) peer IPs, the second worker is refused because of the first; with the check of
``ONLINE`` removed from ``Registry._replace``, a stranger ends a living worker's stream.
"""

from __future__ import annotations

import pytest

from leasehold.core.clock import VirtualClock
from leasehold.core.errors import LeaseholdError
from leasehold.dispatch.registry import ClientPing, Connectivity, WorkerState
from leasehold.dispatch.testing import CHAIN, NETWORK, cluster


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
            # Nobody pushes a living worker aside by its address or its id.
            first = c.workers["w1"].id
            for id_, address in (("stranger", "w1"), (first, "elsewhere")):
                ping = ClientPing(id_, NETWORK, CHAIN, Connectivity("0.0.1", "memory", address))
                with pytest.raises(LeaseholdError) as refused:
                    registry.ping(ping, "127.0.0.1")
                assert refused.value.code == "worker_is_online"
                assert registry.get(first).session is before[first]
            # Same address, new id: the process was restarted; only its old record goes.
            old = c.workers["w2"].id
            await c.net.kill("w2")
            await virtual.sleep(0.1)
            restarted = await c.start("w2")
            assert old not in registry.workers
            assert restarted.id in registry.workers
            assert len(registry.workers) == 4

    virtual.run(main)

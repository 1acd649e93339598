"""B6: a worker that pings but cannot be dialled added a ring entry and a leaked dial per ping.

Seen failing: with ``Registry._keep`` starting a task whatever ``worker.keeper`` is, the number of
dials under way grows with every ping.
"""

from __future__ import annotations

from leasehold.core.clock import VirtualClock
from leasehold.dispatch.registry import ClientPing, Connectivity, WorkerState
from leasehold.dispatch.testing import CHAIN, NETWORK, MemoryNetwork, cluster
from leasehold.dispatch.transport import LinkClosed


def test_pings_without_a_listener(virtual: VirtualClock) -> None:
    async def main() -> None:
        async with cluster({}, workers=0, clock=virtual) as c:
            dialling = 0
            most = 0

            async def nobody(_self: object, address: str) -> None:
                nonlocal dialling, most
                dialling += 1
                most = max(most, dialling)
                try:
                    await virtual.sleep(3.0)
                finally:
                    dialling -= 1
                raise LinkClosed("nobody there")

            dialer = c.manager.registry._dialers["memory"]
            type(dialer).dial = nobody  # type: ignore[method-assign, assignment]
            ping = ClientPing("ghost", NETWORK, CHAIN, Connectivity("0.0.1", "memory", "ghost"))
            for _ in range(100):
                worker = c.manager.registry.ping(ping, "127.0.0.1")
                await virtual.sleep(0.2)
            assert most == 1
            assert len(c.manager.registry.workers) == 1
            assert worker.state is WorkerState.ERROR
            assert not c.manager.pool(worker.pool).members
            await virtual.sleep(200.0)  # no pings any more: the record goes
            assert not c.manager.registry.workers
            assert dialling == 0

    kept = MemoryNetwork().dialer()
    original = type(kept).dial
    try:
        virtual.run(main)
    finally:
        type(kept).dial = original  # type: ignore[method-assign]

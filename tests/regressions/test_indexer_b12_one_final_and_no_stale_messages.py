"""B12: range errors gave two finals, and a new stream began with messages of an older one.

Seen failing: with ``if not final:`` removed before the closing ``END`` in the worker's ``_run``,
every task has two finals; with ``_responses`` shared by all streams, the second manager gets the
first one's.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from leasehold.core.clock import VirtualClock
from leasehold.dispatch.testing import MemoryNetwork, cluster
from leasehold.dispatch.wire import PING, Request
from leasehold.dispatch.worker import Job, Reply


async def fails(job: Job) -> AsyncIterator[Reply]:
    yield Reply("Part", b"1")
    raise RuntimeError("broken")


async def partly(job: Job) -> AsyncIterator[Reply]:
    yield Reply("Heights", b"{}", final=True, error="height 7 is missing")


def test_by_hand(virtual: VirtualClock) -> None:
    async def main() -> None:
        handlers = {"Fails": fails, "Partly": partly}
        async with cluster(handlers, clock=virtual) as c:
            seen = []
            for stream in range(2):
                # A manager of the base protocol, by hand, on a stream of its own each time.
                link = await MemoryNetwork.dialer(c.net, frozenset()).dial("w1")
                for kind in ("Fails", "Partly", "Unknown"):
                    await link.send(Request(f"{stream}-{kind}", kind))
                if stream == 0:
                    await virtual.sleep(1.0)
                    await link.close()  # without having read anything
                    continue
                await link.send(Request("ping", PING))
                while len(seen) < 5:
                    response = await link.receive()
                    assert response is not None
                    seen.append(response)
                await virtual.sleep(1.0)
                assert not link._link.up._items
                await link.close()
            assert {r.id.partition("-")[0] for r in seen} == {"1", "ping"}
            finals = sorted(r.id for r in seen if r.final)
            assert finals == ["1-Fails", "1-Partly", "1-Unknown", "ping"]
            errors = {r.id: r.error for r in seen if r.error}
            assert "broken" in errors["1-Fails"]
            assert errors["1-Partly"] == "height 7 is missing"
            assert "unknown task type" in errors["1-Unknown"]

    virtual.run(main)

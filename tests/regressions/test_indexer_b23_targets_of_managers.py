"""B23: a manager over ``http`` crashed the process, networks of one manager mixed, and a target
left with the first of its workers.

Seen failing: with the branch for ``ws`` in ``Targets._workers`` taken for every manager, the
question over HTTP fails; with ``online`` keeping only the state of the last worker of a network,
the target leaves too early.
"""

from __future__ import annotations

from typing import Any

import httpx

from leasehold.core.clock import SystemClock
from leasehold.schedule.rpc import RpcClient
from leasehold.schedule.targets import Destination, Targets


def listed(*states: tuple[str, int]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for i, (network, state) in enumerate(states):
        group = out.setdefault(network, {"workers": {}})
        group["workers"][str(i)] = {
            "state": state, "chain_id": "c", "connection": [{"version": "0.0.1"}],
        }  # fmt: skip
    return out


async def test_http_and_two_networks() -> None:
    answer = listed(("a", 1), ("a", 1), ("b", 1), ("b", 5))

    def respond(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=answer)

    clock = SystemClock()
    async with httpx.AsyncClient(transport=httpx.MockTransport(respond)) as client:
        targets = Targets(
            [Destination(address="manager:8085", conn_type="http")],
            clock=clock,
            client=client,
            rpc=lambda address: RpcClient(address, clock),
        )
        await targets.discover()
        assert sorted(key[0] for key in targets.known()) == ["a", "b"]
        answer = listed(("a", 1), ("a", 5), ("b", 5), ("b", 2))
        await targets.discover()
        assert [key[0] for key in targets.known()] == ["a"]

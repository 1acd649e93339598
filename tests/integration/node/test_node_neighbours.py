"""Two nodes that copy registry records from one another, over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import msgspec
import pytest
from litestar import Litestar
from litestar.datastructures import State

from leasehold.core.clock import SystemClock
from leasehold.core.errors import LeaseholdError
from leasehold.core.service import running
from leasehold.core.web import HttpServer
from leasehold.gateway.auth import Authenticator
from leasehold.gateway.errors import HANDLERS
from leasehold.gateway.services import routes
from leasehold.node import gate
from leasehold.node.neighbours import HttpNeighbours, Question
from leasehold.node.service import Node
from leasehold.node.settings import NodeSettings, SystemServices
from leasehold.node.testing import node_in, until

REGISTRY = SystemServices(enable=("registry",))


@asynccontextmanager
async def reachable(root: Path, *urls: str) -> AsyncIterator[tuple[Node, str]]:
    """A node with a registry that offers something, and the URL of its gateway."""
    settings = NodeSettings(health_sec=0, neighbours=urls)
    offers = {"managers": f"http://{root.name}"}
    async with node_in(
        root, settings=settings, system_services=REGISTRY, offers=lambda: offers
    ) as node:
        app = Litestar(
            list(routes(lambda: node)),
            state=State({"auth": Authenticator(tokens=None, operator_token="x")}),
            exception_handlers=HANDLERS,
        )
        async with running(HttpServer(app, host="127.0.0.1", port=0)) as server:
            yield node, server.url


async def test_records_of_a_neighbour_are_copied(tmp_path: Path) -> None:
    async with (
        reachable(tmp_path / "far") as (far, url),
        reachable(tmp_path / "near", url, "http://127.0.0.1:1") as (near, _),
    ):

        async def copied() -> bool:
            found = await near.call("registry", "find", ["managers"])
            by_peer = {record["peer"]: record["value"] for record in found["records"]}
            return by_peer == {
                near.principals.host: "http://near",
                far.principals.host: "http://far",
            }

        await until(copied)


async def test_who_asks_and_who_answers_is_proven(tmp_path: Path) -> None:
    async with (
        reachable(tmp_path / "far") as (far, url),
        reachable(tmp_path / "near", url) as (near, _),
        httpx.AsyncClient() as client,
    ):
        there = near.neighbours
        assert isinstance(there, HttpNeighbours)
        assert await there.peers() == [far.principals.host]
        with pytest.raises(LeaseholdError, match=r"may not call registry.merge"):
            await there.call(far.principals.host, "registry", "merge", [[], 0])

        async def post(question: object, **changed: str) -> int:
            body = msgspec.json.encode(question)
            headers = {**gate.sign(near.key, body, SystemClock().now()), **changed}
            return (
                await client.post(f"{url}/v1/neighbour", content=body, headers=headers)
            ).status_code

        good = Question(far.principals.host, "registry", "snapshot", [0])
        assert await post(good) == 200
        assert await post(good, **{gate.SIGNATURE: "AAAA"}) == 401
        assert await post(Question("somebody else", "registry", "snapshot", [0])) == 403
        assert await post({"nothing": 1}) == 400
        far.gate.enforce = True  # From now on nobody is trusted.
        assert await post(good) == 403
        far.key = near.key  # An answer by another node than the one that was asked.
        far.gate.enforce = False
        with pytest.raises(LeaseholdError, match="another node now"):
            await there.call(far.principals.host, "registry", "snapshot", [0])

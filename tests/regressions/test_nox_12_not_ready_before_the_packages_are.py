"""Defect 12: health said yes before the packages were in place.

Seen failing with ``Node.ready`` returning True once the node runs.
"""

from __future__ import annotations

from pathlib import Path

from litestar.testing import AsyncTestClient

from leasehold.core.service import running
from leasehold.gateway.auth import Authenticator
from leasehold.gateway.services import routes
from leasehold.node.distro import PackageDistro
from leasehold.node.service import Node
from leasehold.node.settings import NodeSettings
from leasehold.node.testing import NOTHING_BUNDLED, deployed, end_keeper, python_service


async def test_status_tells_when_everything_is_deployed(tmp_path: Path) -> None:
    from litestar import Litestar
    from litestar.datastructures import State

    go = tmp_path / "go"
    wait = f"import os, time\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)"
    package = PackageDistro(name="p", services=(python_service("svc", wait),))
    node = Node(
        tmp_path / "node",
        packages=[package],
        system_services=NOTHING_BUNDLED,
        settings=NodeSettings(health_sec=0),
    )
    auth = Authenticator(tokens=None, operator_token="secret")
    app = Litestar(list(routes(lambda: node)), state=State({"auth": auth}))
    headers = {"Authorization": "Bearer secret"}
    try:
        async with AsyncTestClient(app) as client, running(node):
            before = (await client.get("/v1/node/status", headers=headers)).json()
            assert before["ready"] is False
            go.touch()
            await deployed(node)
            after = (await client.get("/v1/node/status", headers=headers)).json()
            assert after["ready"] is True
            assert (await client.get("/versions")).json()["node"]
            assert (await client.get("/v1/node/status")).status_code in (401, 403, 500)
    finally:
        await end_keeper(tmp_path / "node")

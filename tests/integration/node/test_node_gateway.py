"""The node's routes as an operator's tool meets them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from litestar import Litestar
from litestar.datastructures import State

from leasehold.gateway.auth import Authenticator
from leasehold.gateway.errors import HANDLERS
from leasehold.gateway.services import routes
from leasehold.node.distro import PackageDistro, SpellDistro
from leasehold.node.service import Node
from leasehold.node.spells.trigger import ClockConfig, TriggerConfig
from leasehold.node.testing import node_in, python_service, until

SPELL = SpellDistro(
    name="tick",
    script="print('hi')\nkv.set_u32('n', 1)",
    kv={"c": 1},
    trigger=TriggerConfig(ClockConfig(1, 0, 3600)),
)
PACKAGE = PackageDistro(
    name="p",
    version="1.2.3",
    services=(
        python_service(
            "svc",
            "@service.function\ndef add(a, b):\n    print('adding', flush=True)\n    return a + b",
        ),
    ),
    spells=(SPELL,),
)


def client_of(node: Node | None) -> httpx.AsyncClient:
    """A client in the event loop of the node."""
    auth = Authenticator(tokens=None, operator_token="secret")
    app = Litestar(
        list(routes(lambda: node)),
        state=State({"auth": auth}),
        exception_handlers=HANDLERS,
    )
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://node")  # type: ignore[arg-type]


async def test_every_route(tmp_path: Path) -> None:
    async with node_in(tmp_path, PACKAGE) as node, client_of(node) as client:

        async def ask(method: str, path: str, body: Any = None, status: int = 200) -> Any:
            response = await client.request(
                method,
                f"/v1/node/{path}",
                json=body,
                headers={"Authorization": "Bearer secret"},
            )
            assert response.status_code == status, (path, response.text)
            return response.json()

        tick = node.find("tick", spell=True).id
        await until(lambda: not node.spells.is_running(tick))
        assert (await client.get("/versions")).json()["p"] == "1.2.3"
        assert (await ask("GET", "status"))["ready"] is True
        [package] = await ask("GET", "packages")
        assert (package["name"], package["installed"], package["status"]) == ("p", "1.2.3", "ready")
        assert await ask("GET", "plan") == []
        assert (await ask("POST", "reload"))[0]["status"] == "unchanged"
        [service] = await ask("GET", "services")
        assert (service["name"], service["state"]) == ("svc", "running")
        assert (await ask("GET", "services/svc"))["functions"] == {"add": "(a, b)"}
        call = {"function": "add", "args": [1, 2]}
        assert (await ask("POST", "services/svc/call", call))["value"] == 3

        async def logged() -> bool:
            return bool((await ask("GET", "services/svc/logs?lines=1"))["lines"] == ["adding"])

        await until(logged)
        assert (await ask("POST", "services/svc/restart"))["restarts"] == 1
        call["args"] = {"a": 1, "b": 4}
        assert (await ask("POST", "services/svc/call", call))["value"] == 5
        [spell] = await ask("GET", "spells")
        assert (spell["name"], spell["state"]) == ("tick", "armed")
        shown = await ask("GET", "spells/tick")
        assert (shown["runs"][0]["outcome"], shown["script"]) == ("ok", SPELL.script)
        assert (await ask("POST", "spells/tick/run"))["logs"] == ["hi"]
        assert len(await ask("GET", "spells/tick/logs")) == 2
        assert await ask("GET", "spells/tick/errors") == []
        assert (await ask("GET", "spells/tick/kv"))["c"]["config"] is True
        assert (await ask("PUT", "spells/tick/kv/h_x", {"value": "y"}))["success"]
        assert (await ask("POST", "spells/tick/mailbox", {"message": "m"}))["success"]
        assert (await ask("GET", "spells/tick/mailbox"))[0]["message"] == "m"
        await ask("PUT", "spells/tick/trigger", {"clock": {"start_sec": 1, "period_sec": 9}})
        assert (await ask("GET", "spells/tick"))["trigger"]["clock"]["period_sec"] == 9
        # Refusals: each says what is wrong, nothing is changed.
        await ask("GET", "services/nobody", status=404)
        await ask("GET", "spells/tick/nothing", status=404)
        await ask("POST", "services/svc/call", {"function": "nope"}, status=404)
        await ask("POST", "services/svc/call", {"function": "add", "args": [1]}, status=422)
        await ask("PUT", "spells/tick/kv/plain", {"value": "y"}, status=409)
        await ask("PUT", "spells/tick/trigger", {"clock": {"start": 1}}, status=422)
        assert (await ask("POST", "reload"))[0]["changes"] == ["updated tick"]


@pytest.mark.parametrize("path", ["/v1/node/status", "/v1/node/services", "/versions"])
async def test_without_token_or_node(path: str) -> None:
    async with client_of(None) as client:
        response = await client.get(path)
        assert response.status_code == (503 if path == "/versions" else 401)
        response = await client.get(path, headers={"Authorization": "Bearer secret"})
        assert response.status_code == 503

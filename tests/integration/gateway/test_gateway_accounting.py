"""Requests are counted by route, and what changes something or is refused is in the audit log."""

from __future__ import annotations

import time
from typing import Any

import httpx
import pytest
import websockets

from leasehold.core.clock import SystemClock
from leasehold.core.metrics import REGISTRY
from leasehold.core.service import running
from leasehold.gateway import accounting, inside
from leasehold.gateway.server import Gateway
from leasehold.gateway.settings import GatewaySettings
from leasehold.manifest import testing
from leasehold.market.accounts import Key, sign_token

TENANT = Key.generate()


class Keys:
    async def public_key(self, address: str) -> dict[str, str] | None:
        return TENANT.public.jwk() if address == TENANT.address else None


no_workloads: Any = None


def counted(method: str, route: str, status: int) -> float:
    labels = {"method": method, "route": route, "status": str(status)}
    return REGISTRY.get_sample_value("leasehold_gateway_requests_total", labels) or 0.0


async def test_requests_are_counted_and_changes_audited(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines: list[dict[str, Any]] = []
    monkeypatch.setattr(accounting.log, "info", lambda event, **f: lines.append(f), raising=False)
    w = testing.world(SystemClock())
    async with w.up() as service:
        gateway = Gateway(
            GatewaySettings(port=0),
            manifest=service,
            keys=Keys(),
            operator_token="o" * 40,
            routes=inside.routes(service, no_workloads),
        )
        async with running(gateway), httpx.AsyncClient(base_url=gateway.url) as http:
            body = await w.deploy(testing.simple(), owner=TENANT.address)
            await w.win(owner=TENANT.address)
            mine = {"Authorization": f"Bearer {sign_token(TENANT, time.time())}"}
            operator = {"Authorization": "Bearer " + "o" * 40}
            route = "/deployment/{dseq}/manifest"
            before = counted("PUT", route, 200), counted("PUT", route, 401)
            await http.put("/deployment/1/manifest", content=body, headers=mine)
            await http.put("/deployment/1/manifest", content=body)
            await http.get("/version")
            await http.get(f"/v1/deployments/{TENANT.address}/1/manifests")
            await http.request("PROPFIND", "/nothing/" + "x" * 500)
            assert (counted("PUT", route, 200), counted("PUT", route, 401)) == (
                before[0] + 1,
                before[1] + 1,
            )
            assert counted("other", "none", 404) or counted("other", "none", 405)
            with pytest.raises(websockets.InvalidStatus):
                url = f"{gateway.url.replace('http', 'ws')}/v1/leases/{TENANT.address}/1/1/1/shell"
                async with websockets.connect(url, additional_headers=operator):
                    pass
    audited = [(line["who"], line["what"], line["status"]) for line in lines]
    assert audited[:3] == [
        (TENANT.address, "PUT /deployment/1/manifest", 200),
        ("nobody", "PUT /deployment/1/manifest", 401),
        ("nobody", f"GET /v1/deployments/{TENANT.address}/1/manifests", 401),
    ]
    assert audited[3][1] == "PROPFIND /nothing/" + "x" * (200 - len("/nothing/"))
    assert audited[4][:2] == (
        "operator",
        f"stream /v1/leases/{TENANT.address}/1/1/1/shell",
    )
    assert REGISTRY.get_sample_value("leasehold_gateway_streams") == 0

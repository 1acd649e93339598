"""Defect 18: an expired token was answered 400; a gRPC client could crash the server with one.

There is no gRPC face here. Seen failing with ``Kind.MALFORMED`` for ``token_expired`` in
``gateway/jwt.py``.
"""

from __future__ import annotations

import time

import httpx

from leasehold.core.clock import SystemClock
from leasehold.core.service import running
from leasehold.gateway.server import Gateway
from leasehold.gateway.settings import GatewaySettings
from leasehold.manifest.testing import world
from leasehold.market.accounts import Key, sign_token

TENANT = Key.generate()


class Keys:
    async def public_key(self, address: str) -> dict[str, str] | None:
        return TENANT.public.jwk()


async def test_expired_is_unauthorized_and_says_so() -> None:
    async with world(SystemClock()).up() as service:
        gateway = Gateway(GatewaySettings(port=0), manifest=service, keys=Keys())
        async with running(gateway), httpx.AsyncClient(base_url=gateway.url) as http:
            token = sign_token(TENANT, time.time() - 1000, lifetime=10)
            answer = await http.get(
                "/lease/1/1/1/status", headers={"Authorization": f"Bearer {token}"}
            )
            assert answer.status_code == 401
            assert answer.json()["code"] == "token_expired"
            assert answer.headers["www-authenticate"] == "Bearer"
            for header in ("Bearer", "Basic abc", "", "x"):
                answer = await http.get("/lease/1/1/1/status", headers={"Authorization": header})
                assert answer.status_code in (400, 401)

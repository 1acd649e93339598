"""Defect 19: service lists and migrate scopes were parsed and ignored, and so were groups for PUT.

Seen failing when ``Principal.services`` returns None for granular entries, when the migrate routes
do not call ``require``, and when ``_permit`` always returns True.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx

from leasehold.core.clock import SystemClock
from leasehold.core.service import running
from leasehold.gateway.server import Gateway
from leasehold.gateway.settings import GatewaySettings
from leasehold.manifest.testing import PROVIDER, two_groups, world
from leasehold.market.accounts import Key, sign_token

TENANT = Key.generate()


class Keys:
    async def public_key(self, address: str) -> dict[str, str] | None:
        return TENANT.public.jwk()


def granular(**entry: Any) -> dict[str, str]:
    deployment = {"dseq": 1, **entry}
    token = sign_token(
        TENANT,
        time.time(),
        access="granular",
        permissions=[{"provider": PROVIDER, "access": "granular", "deployments": [deployment]}],
    )
    return {"Authorization": f"Bearer {token}"}


@contextlib.asynccontextmanager
async def provider() -> AsyncIterator[tuple[bytes, httpx.AsyncClient]]:
    w = world(SystemClock())
    async with w.up() as service:
        gateway = Gateway(GatewaySettings(port=0), manifest=service, keys=Keys())
        async with running(gateway), httpx.AsyncClient(base_url=gateway.url) as http:
            body = await w.deploy(two_groups(), owner=TENANT.address)
            await w.win(gseq=1, owner=TENANT.address)
            await w.win(gseq=2, owner=TENANT.address)
            yield body, http


async def test_services_groups_and_migrate_scopes_count() -> None:
    async with provider() as (body, http):

        async def put(headers: dict[str, str]) -> int:
            sent = await http.put("/deployment/1/manifest", content=body, headers=headers)
            return sent.status_code

        assert await put(granular(scope=["send-manifest"], gseq=1)) == 403
        assert await put(granular(scope=["send-manifest"], services=["web"])) == 403
        assert await put(granular(scope=["send-manifest"])) == 200

        async def service(name: str, headers: dict[str, str]) -> int:
            return (
                await http.get(f"/lease/1/1/1/service/{name}/status", headers=headers)
            ).status_code

        assert await service("web", granular(scope=["status"], services=["db"])) == 401
        assert await service("web", granular(scope=["status"], services=["web"])) == 404
        assert await service("web", granular(scope=["logs"])) == 401

        async def migrate(kind: str, names: str, headers: dict[str, str]) -> int:
            form = {names: ["x"], "destination_dseq": 1, "destination_gseq": 1}
            return (await http.post(f"/{kind}/migrate", json=form, headers=headers)).status_code

        for kind, names, scope in (
            ("hostname", "hostnames_to_migrate", "hostname-migrate"),
            ("endpoint", "endpoints_to_migrate", "ip-migrate"),
        ):
            assert await migrate(kind, names, granular(scope=["status"])) == 401
            assert await migrate(kind, names, granular(scope=[scope], gseq=2)) == 401
            # Permitted; the name is not in the manifest.
            assert await migrate(kind, names, granular(scope=[scope], gseq=1)) == 400

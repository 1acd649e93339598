"""Defect 20: migrating one endpoint re-pointed all of the destination's.

Seen failing when ``gateway/migrate.py`` passes every known endpoint to the port.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import httpx

from leasehold.core.clock import SystemClock
from leasehold.core.service import running
from leasehold.gateway.server import Gateway
from leasehold.gateway.settings import GatewaySettings
from leasehold.manifest.testing import world
from leasehold.market.accounts import Key, sign_token
from leasehold.model.market import LeaseId

TENANT = Key.generate()
TWO_ADDRESSES = """
version: "2.0"
services:
  web:
    image: nginx
    expose:
      - {port: 80, to: [{global: true, ip: one}]}
      - {port: 81, to: [{global: true, ip: two}]}
profiles:
  compute:
    web: {resources: {cpu: {units: 100m}, memory: {size: 64Mi}, storage: {size: 64Mi}}}
  placement:
    here: {pricing: {web: {denom: uakt, amount: 5}}}
deployment:
  web:
    here: {profile: web, count: 1}
endpoints:
  one: {kind: ip}
  two: {kind: ip}
"""


class Keys:
    async def public_key(self, address: str) -> dict[str, str] | None:
        return TENANT.public.jwk()


class Addresses:
    moved: list[tuple[LeaseId, list[str]]] = []

    async def transfer(self, lease: LeaseId, names: Sequence[str]) -> list[str]:
        self.moved.append((lease, list(names)))
        return list(names)


async def test_only_what_was_named_moves() -> None:
    w, addresses = world(SystemClock()), Addresses()
    async with w.up() as service:
        gateway = Gateway(
            GatewaySettings(port=0), manifest=service, keys=Keys(), addresses=addresses
        )
        async with running(gateway), httpx.AsyncClient(base_url=gateway.url) as http:
            body = await w.deploy(TWO_ADDRESSES, owner=TENANT.address)
            lease = await w.win(owner=TENANT.address)
            await service.submit(TENANT.address, 1, body)
            answer = await http.post(
                "/endpoint/migrate",
                json={
                    "endpoints_to_migrate": ["two"],
                    "destination_dseq": 1,
                    "destination_gseq": 1,
                },
                headers={"Authorization": f"Bearer {sign_token(TENANT, time.time())}"},
            )
            assert answer.json() == {"transferred": ["two"]}
            assert addresses.moved == [(lease, ["two"])]

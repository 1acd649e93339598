"""Schemathesis against the served OpenAPI: whatever is sent, no 5xx and answers as described."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance

from leasehold.core.clock import SystemClock
from leasehold.core.service import running
from leasehold.gateway.server import Gateway
from leasehold.gateway.settings import GatewaySettings
from leasehold.manifest import testing
from leasehold.market.accounts import Key, sign_token

TENANT = Key.generate()
TOKEN = sign_token(TENANT, time.time(), lifetime=3600)


class Keys:
    async def public_key(self, address: str) -> dict[str, str] | None:
        return TENANT.public.jwk() if address == TENANT.address else None


class Provider:
    """A provider with an accepted manifest, on an event loop of its own thread."""

    def __init__(self) -> None:
        self.ready = threading.Event()
        self.url = ""
        self.thread = threading.Thread(target=lambda: asyncio.run(self.main()), daemon=True)

    async def main(self) -> None:
        self.loop, self.stop = asyncio.get_running_loop(), asyncio.Event()
        w = testing.world(SystemClock(), owner_rate=1e6, owner_burst=10**6, submit_budget_s=2.0)
        async with w.up() as service:
            body = await w.deploy(testing.simple(), owner=TENANT.address)
            await w.win(owner=TENANT.address)
            await service.submit(TENANT.address, 1, body)
            gateway = Gateway(
                GatewaySettings(port=0, wait_max_s=0.1), manifest=service, keys=Keys()
            )
            async with running(gateway):
                self.url = gateway.url
                self.ready.set()
                await self.stop.wait()


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    provider = Provider()
    provider.thread.start()
    assert provider.ready.wait(30)
    yield provider
    provider.loop.call_soon_threadsafe(provider.stop.set)
    provider.thread.join(30)


def test_no_request_breaks_it(provider: Provider) -> None:
    api = schemathesis.openapi.from_url(f"{provider.url}/schema/openapi.json")
    operations = [found.ok() for found in api.get_all_operations()]
    assert len(operations) >= 10
    for operation in operations:

        @given(case=operation.as_strategy())
        @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
        def sent(case: schemathesis.Case) -> None:
            for headers in ({"Authorization": f"Bearer {TOKEN}"}, {}):
                case.call_and_validate(
                    headers=headers,
                    checks=[not_a_server_error, response_schema_conformance],
                    timeout=30,
                )

        sent()

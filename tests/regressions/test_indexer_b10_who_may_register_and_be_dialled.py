"""B10: anyone could register a worker, and a ping made the manager dial any address.

Seen failing: with the loop over ``found`` in ``security.resolve`` returning its first address
unchecked, the manager dials 192.0.2.1; without ``check_token`` the stranger's ping is taken.
"""

from __future__ import annotations

import httpx
import pytest

from leasehold.core.errors import LeaseholdError
from leasehold.dispatch.http import ManagerApp
from leasehold.dispatch.security import parse_networks, resolve
from leasehold.dispatch.testing import cluster


@pytest.mark.parametrize("address", ["192.0.2.1:80", "169.254.169.254:80", "[2001:db8::1]:9"])
async def test_addresses_outside_the_allowed_networks_are_not_dialled(address: str) -> None:
    allowed = parse_networks(["127.0.0.0/8", "::1/128"])
    with pytest.raises(LeaseholdError) as refused:
        await resolve(address, allowed)
    assert refused.value.code == "dial_refused"


async def test_the_address_that_was_checked_is_the_one_that_is_dialled() -> None:
    allowed = parse_networks(["127.0.0.0/8", "::1/128"])
    assert await resolve("localhost:7", allowed) in ("127.0.0.1:7", "[::1]:7")


@pytest.mark.parametrize("address", ["", "host", "host:", "host:0", "host:65536", "host:x", ":"])
async def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(LeaseholdError):
        await resolve(address, parse_networks(["127.0.0.0/8"]))


async def test_pings_and_websockets_need_the_token() -> None:
    async with cluster({}, workers=0, token="right") as c:
        transport = httpx.ASGITransport(ManagerApp(c.manager, methods={}))
        async with httpx.AsyncClient(transport=transport, base_url="http://manager") as client:
            body = {"id": "w", "network": "n", "connectivity": {"type": "memory", "address": "w"}}
            for header in ("", "Bearer wrong", "right"):
                answer = await client.post(
                    "/client_ping", json=body, headers={"authorization": header}
                )
                assert (answer.status_code, answer.json()["code"]) == (401, "bad_join_token")
            answer = await client.post(
                "/client_ping", json=body, headers={"authorization": "Bearer right"}
            )
            assert answer.status_code == 200

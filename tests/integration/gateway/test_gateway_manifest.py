"""The gateway over real HTTP: tokens signed by account keys, manifests, errors."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from leasehold.core.clock import SystemClock
from leasehold.core.service import running
from leasehold.gateway.server import Gateway
from leasehold.gateway.settings import GatewaySettings
from leasehold.manifest import testing
from leasehold.manifest.settings import ManifestSettings
from leasehold.market.accounts import Key, sign_token

TENANT = Key.generate()
STRANGER = Key.generate("ed25519")
OPERATOR = "operator-token"


class Keys:
    async def public_key(self, address: str) -> dict[str, str] | None:
        for key in (TENANT, STRANGER):
            if key.address == address:
                return key.public.jwk()
        return None


def bearer(key: Key = TENANT, **claims: Any) -> dict[str, str]:
    now = claims.pop("now", time.time())
    return {"Authorization": f"Bearer {sign_token(key, now, **claims)}"}


@contextlib.asynccontextmanager
async def provider(**settings: Any) -> AsyncIterator[tuple[Any, httpx.AsyncClient]]:
    clock = SystemClock()
    w = testing.world(clock, owner_rate=1000.0, owner_burst=10_000)
    async with w.up() as service:
        gateway = Gateway(
            GatewaySettings(port=0, **settings),
            clock=clock,
            manifest=service,
            keys=Keys(),
            operator_token=OPERATOR,
        )
        async with running(gateway), httpx.AsyncClient(base_url=gateway.url) as http:
            yield w, http


async def test_a_manifest_is_sent_and_read_back() -> None:
    async with provider() as (w, http):
        body = await w.deploy(testing.simple(), owner=TENANT.address)
        lease = await w.win(owner=TENANT.address)
        answer = await http.put("/deployment/1/manifest", content=body, headers=bearer())
        assert (answer.status_code, answer.content) == (200, b"")
        headers = {**bearer(), "Accept": "application/json"}
        said = (await http.put("/deployment/1/manifest", content=body, headers=headers)).json()
        assert said["leases"] == {str(lease): {"hash": said["hash"], "phase": "received"}}
        back = await http.get("/lease/1/1/1/manifest", headers=bearer())
        assert back.json() == json.loads(body) and back.headers["etag"] == f'"{said["hash"]}"'
        status = (await http.get("/lease/1/1/1/status", headers=bearer())).json()
        assert status["manifest"]["phase"] == "received"
        listed = (await http.get("/deployment/1/manifests", headers=bearer())).json()
        assert [m["hash"] for m in listed] == [said["hash"]]
        await w.deployed(lease, said["hash"])
        said = await http.put("/deployment/1/manifest?wait=healthy", content=body, headers=bearer())
        assert said.json()["leases"][str(lease)]["phase"] == "healthy"


async def test_public_routes_and_openapi() -> None:
    async with provider() as (w, http):
        assert (await http.get("/address")).json() == {"address": w.provider}
        assert (await http.get("/version")).json()["leasehold"]["version"]
        assert (await http.get("/status")).json()["manifest"]["deployments"] == 0
        schema = (await http.get("/schema/openapi.json")).json()
        assert "/deployment/{dseq}/manifest" in schema["paths"]
        missing = await http.get("/nothing")
        assert missing.status_code == 404 and missing.json()["code"] == "not_found"


async def test_who_may_not() -> None:
    async with provider() as (w, http):
        body = await w.deploy(testing.simple(), owner=TENANT.address)
        await w.win(owner=TENANT.address)

        async def put(headers: dict[str, str]) -> tuple[int, str]:
            answer = await http.put("/deployment/1/manifest", content=body, headers=headers)
            return answer.status_code, answer.json()["code"] if answer.content else ""

        assert await put({}) == (401, "unauthorized")
        assert await put({"Authorization": "Basic x"}) == (400, "authorization_header")
        assert await put({"Authorization": "Bearer x"}) == (400, "token_malformed")
        assert await put(bearer(now=time.time() - 3600)) == (401, "token_expired")
        assert await put(bearer(now=time.time() + 3600)) == (401, "token_not_yet_valid")
        assert await put(bearer(Key.generate())) == (401, "token_signature")
        forged = bearer()["Authorization"].rsplit(".", 1)[0] + "." + "A" * 86
        assert await put({"Authorization": forged}) == (401, "token_signature")
        assert await put(bearer(access="scoped", scope=["logs"])) == (401, "unauthorized_access")
        assert await put(bearer(access="scoped", scope=["fly"])) == (400, "scope")
        assert await put(bearer(access="scoped", scope=["send-manifest"])) == (200, "")
        other = await http.put("/deployment/1/manifest", content=body, headers=bearer(STRANGER))
        assert (other.status_code == 404 and "no lease" in other.text) or "deployment" in other.text


async def test_refusals_are_text_for_old_tools_and_json_for_who_asks() -> None:
    async with provider() as (w, http):
        body = await w.deploy(testing.simple(), owner=TENANT.address)
        await w.win(owner=TENANT.address)
        wrong = testing.changed(body, count=7)
        text = await http.put("/deployment/1/manifest", content=wrong, headers=bearer())
        assert text.status_code == 422
        assert text.headers["content-type"].startswith("text/plain")
        headers = {**bearer(), "Accept": "application/json"}
        said = await http.put("/deployment/1/manifest", content=wrong, headers=headers)
        assert said.status_code == 422
        assert {v["code"] for v in said.json()["violations"]} == {"hash", "count"}
        report = await http.post("/deployment/1/validate", content=wrong, headers=bearer())
        assert report.status_code == 200 and report.json()["valid"] is False
        broken = await http.put("/deployment/1/manifest", content=b"{", headers=bearer())
        assert broken.status_code == 422
        large = await http.put("/deployment/1/manifest", content=b" " * 2**21, headers=bearer())
        assert large.status_code == 413
        strange = await http.put("/deployment/x/manifest", content=body, headers=bearer())
        assert strange.status_code in (400, 404)


async def test_a_market_in_trouble_is_503_with_retry_after() -> None:
    async with provider() as (w, http):
        body = await w.deploy(testing.simple(), owner=TENANT.address)
        await w.win(owner=TENANT.address)
        w.market.failures = 10**9
        w.service.managers.settings = ManifestSettings(submit_budget_s=0.2)
        answer = await http.put("/deployment/1/manifest", content=body, headers=bearer())
        assert answer.status_code == 503 and answer.headers["retry-after"]


async def test_granular_tokens_reach_only_what_they_name() -> None:
    async with provider() as (w, http):
        body = await w.deploy(testing.two_groups(), owner=TENANT.address)
        await w.win(owner=TENANT.address, gseq=1)
        await w.win(owner=TENANT.address, gseq=2)

        def token(**deployment: Any) -> dict[str, str]:
            entry = {"dseq": 1, "scope": ["send-manifest", "status"], **deployment}
            return bearer(
                access="granular",
                permissions=[
                    {"provider": w.provider, "access": "granular", "deployments": [entry]}
                ],
            )

        async def put(headers: dict[str, str]) -> int:
            sent = await http.put("/deployment/1/manifest", content=body, headers=headers)
            return sent.status_code

        assert await put(token(gseq=1)) == 403
        assert await put(token(dseq=2)) == 401
        assert await put(token(services=["web"])) == 403
        assert await put(token()) == 200
        assert (await http.get("/lease/1/1/1/status", headers=token(gseq=1))).status_code == 200
        assert (await http.get("/lease/1/2/1/status", headers=token(gseq=1))).status_code == 401
        named = token(services=["api"])
        assert (await http.get("/lease/1/1/1/service/web/status", headers=named)).status_code == 401


@pytest.mark.parametrize("path", ["/lease/1/1/1/status", "/lease/1/1/1/manifest"])
async def test_nothing_to_see(path: str) -> None:
    async with provider() as (_w, http):
        assert (await http.get(path)).status_code == 401
        assert (await http.get(path, headers=bearer())).status_code == 404


async def test_beyond_loopback_only_with_tls() -> None:
    from leasehold.core.errors import LeaseholdError

    with pytest.raises(LeaseholdError) as caught:
        async with running(Gateway(GatewaySettings(host="0.0.0.0", port=0))):
            pass
    assert caught.value.code == "tls_required"

"""The REST API of an index: what it refuses, what it says, and that its schema is true."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import pytest

from leasehold.core.service import running
from leasehold.index.api import application
from leasehold.index.testing import FakeNode, FakeTx, indexing

EVENTS = [("transfer", [("sender", "alice"), ("recipient", "bob"), ("amount", "5uakt")])]


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with running(FakeNode(chain_id="c")) as node:
        for i in range(30):
            node.make([FakeTx(f"tx {i}".encode(), EVENTS)])
        async with indexing(node, tmp_path, http=True, app=application) as operations:
            async with httpx.AsyncClient(base_url=operations.manager.url) as made:
                yield made


WHERE = "network=cosmos&chain_id=c"


REFUSALS = [
    ("GET", "/transactions_search", None, 405),
    ("POST", "/transactions_search", b"{", 400),
    ("POST", "/transactions_search", b"[]", 400),
    ("POST", "/transactions_search", b"{}", 400),
    ("POST", "/transactions_search", b'{"network": ""}', 400),
    ("POST", "/transactions_search", b'{"network": "n", "limit": 1001}', 400),
    ("POST", "/transactions_search", b'{"network": "n", "nope": 1}', 400),
    ("POST", "/transactions_search", b'{"network": "n", "sender": [""]}', 400),
    ("POST", "/transactions_search", b'{"network": "n", "height": 1, "after_height": 2}', 400),
    ("POST", "/transactions_search", b'{"network": "n", "after_time": "soon"}', 400),
    ("GET", "/transactions", None, 400),
    ("GET", f"/transactions?{WHERE}&start_height=x", None, 400),
    ("GET", f"/transactions?{WHERE}&start_height=0", None, 400),
    ("GET", f"/transactions?{WHERE}&start_height=5&end_height=4", None, 400),
    ("GET", f"/transactions?{WHERE}&start_height=1&end_height=90000", None, 400),
    ("GET", f"/transactions?{WHERE}&start_height=25&end_height=35", None, 503),
    ("GET", "/transactions?network=cosmos&chain_id=other&start_height=1", None, 503),
    ("GET", f"/check_missing?{WHERE}&start_height=3", None, 400),
    ("GET", f"/check_missing?{WHERE}&start_height=1&end_height=9999999999", None, 400),
    ("POST", "/scrape_latest", b'{"last_height": "x"}', 400),
    ("GET", "/stop_running", None, 405),
    ("GET", "/nowhere", None, 404),
]


async def test_refusals_are_json_and_say_why(client: httpx.AsyncClient) -> None:
    headers = {"content-type": "application/json"}
    for method, path, body, status in REFUSALS:
        answer = await client.request(method, path, content=body, headers=headers)
        assert answer.status_code == status, (path, body, answer.text)
        said = answer.json()
        assert said["code"]
        assert said["message"]


async def test_answers_fit_the_schema_and_name_the_heights(client: httpx.AsyncClient) -> None:
    schema = (await client.get("/schema/openapi.json")).json()

    async def check(method: str, path: str, route: str = "", **options: Any) -> httpx.Response:
        answer = await client.request(method, path, **options)
        assert answer.status_code == 200, answer.text
        described = schema["paths"][route or path.partition("?")[0]][method.lower()]
        content = described["responses"]["200"]["content"]["application/json"]["schema"]
        jsonschema_rs.validate({**content, "components": schema["components"]}, answer.json())
        return answer

    got = await check("GET", f"/transactions?{WHERE}&start_height=3&end_height=6")
    assert [tx["height"] for tx in got.json()] == [3, 4, 5, 6]
    assert got.headers["leasehold-covered"] == "c:3-6"
    found = await check(
        "POST", "/transactions_search", json={"network": "cosmos", "sender": ["alice"], "limit": 2}
    )
    assert [tx["height"] for tx in found.json()] == [6, 5]
    assert found.headers["leasehold-covered"] == "c:3-6"
    latest = await check("POST", "/scrape_latest", json={"network": "cosmos", "chain_id": "c"})
    assert latest.json()["last_height"] == 30
    assert (await check("GET", "/index/status")).json()[0]["covered"] == [[1, 30]]
    assert (await check("GET", "/get_running")).json() == []
    none = await check("GET", f"/check_missing?{WHERE}&start_height=1&end_height=30")
    assert none.json()["missing_blocks"] == []


async def test_the_latest_in_the_words_of_either_generation(client: httpx.AsyncClient) -> None:
    first = {"network": "cosmos", "chain_id": "c", "lastHeight": 25}
    said = (await client.post("/scrape_latest", json=first)).json()
    assert said["last_height"] == 30
    kept = (await client.get(f"/check_missing?{WHERE}&start_height=1&end_height=30")).json()
    assert kept["missing_blocks"] == [[1, 25]]  # not from the beginning
    # A caller that believes to be at 3 is told to go on from what is stored.
    for spelling in ("selfCheck", "self_check"):
        asked = {"network": "cosmos", "chain_id": "c", "last_height": 3, spelling: True}
        said = (await client.post("/scrape_latest", json=asked)).json()
        assert (said["last_height"], bool(said["last_hash"])) == (30, True)
    kept = (await client.get(f"/check_missing?{WHERE}&start_height=1&end_height=30")).json()
    assert kept["missing_blocks"] == [[1, 25]]

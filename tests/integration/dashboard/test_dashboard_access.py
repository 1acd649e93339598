"""A tenant never sees another's lease, log, event, volume or the node, whichever way is tried."""

from __future__ import annotations

import base64
import os
import socket
import time
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import Browser, expect
from tests.integration.dashboard.live import Live, Tab

from leasehold.dashboard.pages import PAGES
from leasehold.market.accounts import Key, sign_token
from leasehold.market.client import LedgerClient

SIGNED = {"/v1/neighbour"}
"""Routes that ask for a signature of a node's own key instead of the operator's token."""


@pytest.fixture(scope="module")
def stranger(live: Live) -> Key:
    """Another account the market knows, without a lease."""
    key = Key.generate()
    httpx.post(
        live.url + "/v1/market/gifts",
        json={"to": key.address, "amount": "1000000"},
        headers={"Authorization": f"Bearer {live.token}"},
    ).raise_for_status()

    async def known() -> None:
        async with LedgerClient(live.running["ledger"], key) as ledger:
            await ledger.transfer(live.key.address, "1")  # its key is on the market by that

    live.run(known())
    return key


def get(live: Live, path: str, token: str, **options: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {token}"}
    with httpx.stream("GET", live.url + path, headers=headers, timeout=5.0, **options) as answer:
        if answer.status_code == 200 and "ndjson" in answer.headers["content-type"]:
            answer._content = next(answer.iter_bytes(), b"")
        else:
            answer.read()
        return answer


def test_every_operators_route_refuses_a_tenant(live: Live, stranger: Key) -> None:
    token = sign_token(stranger, time.time())
    tried = 0
    with httpx.Client(base_url=live.url) as client:
        described = client.get("/schema/openapi.json").json()["paths"]
        for path, methods in described.items():
            if not path.startswith("/v1/") or path in SIGNED:
                continue
            for method in methods:
                concrete = path.replace("{owner}", live.key.address)
                for name in ("dseq", "gseq", "oseq"):
                    concrete = concrete.replace(f"{{{name}}}", "1")
                concrete = concrete.replace("{", "").replace("}", "")
                for headers in ({}, {"Authorization": f"Bearer {token}"}):
                    answer = client.request(method, concrete, headers=headers)
                    assert answer.status_code == 401, (method, path, answer.text)
                    tried += 1
    assert tried > 60


def test_own_routes_show_only_what_is_own(live: Live, stranger: Key) -> None:
    token = sign_token(stranger, time.time())
    assert get(live, "/leases", token).json() == []
    assert get(live, "/leases/tail", token).content == b"{}\n"
    assert get(live, "/volumes", token).json() == []
    assert get(live, "/volumes/tail", token).content == b"[]\n"
    for what in ("timeline", "status", "output", "manifest"):
        answer = get(live, f"/lease/1/1/1/{what}", token)
        assert answer.status_code in (200, 404)
        assert live.key.address not in answer.text
        assert answer.status_code == 404 or not answer.content
    for path in ("/deployment/1/manifests/kept?hash=a", "/deployment/1/manifests"):
        answer = get(live, path, token)
        assert answer.status_code == 404 or answer.json() == []
    theirs = live.operator("/v1/volumes")[0]["id"]
    for path in (f"/volumes/{theirs}/history", f"/volumes/{theirs}/diff?old=abcd"):
        assert get(live, path, token).status_code == 404
    own = sign_token(live.key, time.time())
    assert get(live, f"/volumes/{theirs}/history", own).status_code == 200


@pytest.mark.parametrize("path", ["/lease/1/1/1/shell", "/v1/leases/OWNER/1/1/1/shell"])
def test_a_shell_opens_only_to_its_owner(live: Live, stranger: Key, path: str) -> None:
    path = (
        path.replace("OWNER", live.key.address)
        + "?service=web&tty=true&stdin=true&podIndex=0&cmd0=id"
    )
    said = upgrade(live, path, Authorization=f"Bearer {sign_token(stranger, time.time())}")
    # The tenant's own route opens a websocket on a lease that is not there and closes it.
    assert b" 401 " in said or (b" 101 " in said and b"\x88" in said and b"uid=" not in said)


def test_pages_of_another_tenant_show_nothing(
    live: Live, stranger: Key, browser: Browser, tab: Tab
) -> None:
    page = tab.enter(live.as_tenant(stranger), live.lease_page)
    expect(page.get_by_text("There is no such lease of yours.")).to_be_visible()
    for path, _, kind in PAGES:
        if "{" in path:
            continue
        page.goto(live.url + path)
        main = page.get_by_role("main")
        if kind.operator_only:
            expect(main).to_contain_text("There is no such page")
        else:
            expect(main).not_to_contain_text("Loading …")
        assert live.key.address[-12:] not in page.content(), path
        assert "hello.localhost" not in main.inner_text(), path


def test_a_page_holds_nothing_before_its_visitor_is_known(live: Live) -> None:
    answer = httpx.get(live.url + live.lease_page)
    assert answer.status_code == 200
    assert "set-cookie" not in answer.headers
    assert "hello.localhost" not in answer.text
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    for method in ("POST", "PUT", "DELETE"):
        assert httpx.request(method, live.url + "/ui/leases").status_code == 405


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "", "http://127.0.0.1:1"])
def test_the_websocket_opens_only_to_pages_of_this_origin(live: Live, origin: str) -> None:
    said = upgrade(live, "/_nicegui_ws/socket.io/?EIO=4&transport=websocket", Origin=origin)
    assert b" 101 " not in said.split(b"\r\n")[0]
    said = upgrade(live, "/_nicegui_ws/socket.io/?EIO=4&transport=websocket", Origin=live.url)
    assert b" 101 " in said.split(b"\r\n")[0]


def upgrade(live: Live, path: str, **headers: str) -> bytes:
    """What a request for a websocket is answered, and the first bytes after that."""
    where = urlsplit(live.url)
    key = base64.b64encode(os.urandom(16)).decode()
    lines = [
        f"GET {path} HTTP/1.1", f"Host: {where.netloc}", "Connection: Upgrade",
        "Upgrade: websocket", "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {key}",
        *(f"{name}: {value}" for name, value in headers.items() if value),
    ]  # fmt: skip
    with socket.create_connection((where.hostname, where.port), timeout=5) as sock:
        sock.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        said = b""
        try:
            while b"\r\n\r\n" not in said or len(said.partition(b"\r\n\r\n")[2]) < 2:
                data = sock.recv(4096)
                if not data:
                    break
                said += data
        except TimeoutError:
            pass
    return said

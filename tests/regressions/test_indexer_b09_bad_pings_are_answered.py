"""B9: the ping handler answered 200 whatever happened, and one body leaked into the next.

Seen failing: with the ``except`` of ``ManagerApp._client_ping`` returning ``{}`` instead of
raising, refused announcements are answered 200.
"""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from leasehold.dispatch.http import ManagerApp
from leasehold.dispatch.testing import cluster

GOOD: dict[str, Any] = {
    "id": "w", "network": "n", "chain_id": "c",
    "connectivity": {"version": "0.0.1", "type": "memory", "address": "w"},
}  # fmt: skip


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b'{"id": "w"}', 400),
        (b'{"id": "", "network": "n"}', 400),
        (b'{"id": "w", "network": 7}', 400),
        (b'{"id": "w", "network": "n"}{"id": "other", "network": "n"}', 400),
        (b'{"id": "w", "network": "n", "connectivity": {"type": "pigeon"}}', 422),
        (b'{"id": "' + b"w" * 129 + b'", "network": "n"}', 400),
        (b" " * (2 << 20), 413),
    ],
)
async def test_refusals(body: bytes, status: int) -> None:
    async with cluster({}, workers=0) as c:
        app = ManagerApp(c.manager, methods={})
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://manager") as client:
            answer = await client.post("/client_ping", content=body)
            assert answer.status_code == status
            assert answer.json()["code"]
            assert (await client.get("/client_ping")).status_code == 405
            assert not c.manager.registry.workers
            assert (await client.post("/client_ping", json=GOOD)).status_code == 200
            assert list(c.manager.registry.workers) == ["w"]

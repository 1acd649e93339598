"""B14: a synchronous ``/get_missing`` did nothing, answered 200, and its run went on for ever.

Seen failing: with ``run.task = …`` in ``Runs.start`` removed, nothing is fetched; with the check of
``run.result.missing`` in ``get_missing`` removed, a range with a hole is answered 200.
"""

from __future__ import annotations

from pathlib import Path

import httpx

from leasehold.core.service import running
from leasehold.index.api import application
from leasehold.index.testing import FakeNode, FakeTx, indexing


async def test_get_missing(tmp_path: Path) -> None:
    async with running(FakeNode()) as node:
        for i in range(60):
            node.make([FakeTx(f"tx {i}".encode())])
        node.broken.add(40)
        async with indexing(node, tmp_path, http=True, app=application) as operations:
            async with httpx.AsyncClient(base_url=operations.manager.url) as client:
                where = {"network": "cosmos", "chain_id": node.chain_id}
                whole = {**where, "start_height": "1", "end_height": "60"}
                checked = (await client.get("/check_missing", params=whole)).json()
                assert checked["missing_blocks"] == [[1, 60]]
                failed = await client.get("/get_missing", params=whole)
                assert (failed.status_code, failed.json()["code"]) == (503, "range_incomplete")
                assert failed.json()["got"] == "[(40, 40)]"
                runs = (await client.get("/get_running")).json()
                assert [(r["finished"], r["success"]) for r in runs] == [(True, False)]
                node.broken.clear()
                answer = await client.get("/get_missing", params=whole)
                assert (answer.status_code, answer.json()["success"]) == (200, True)
                assert answer.headers["leasehold-covered"] == f"{node.chain_id}:1-60"
                checked = (await client.get("/check_missing", params=whole)).json()
                assert checked == {"missing_blocks": [], "missing_transactions": []}
                calls = node.calls["block"]
                again = await client.get("/get_missing", params={**whole, "overwrite_all": "true"})
                assert again.status_code == 200
                assert node.calls["block"] == calls + 60

"""The operator's and the tenant's routes of the log, the activities and the volumes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from leasehold.core.service import running
from leasehold.events.sqlite import SqliteLog
from leasehold.gateway import log as log_routes
from leasehold.gateway import volumes as volume_routes
from leasehold.gateway.server import Gateway
from leasehold.gateway.settings import GatewaySettings
from leasehold.observe.engine import Engine
from leasehold.storage import immutable
from leasehold.storage.volumes import Volumes


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    immutable.set_tree(tmp_path / "volumes", False)


async def test_volumes_and_events_over_http(root: Path) -> None:
    async with running(SqliteLog(root / "log.db")) as log:
        engine = Engine(log)
        volumes = Volumes(root / "volumes", log, engine)
        gateway = Gateway(
            GatewaySettings(port=0),
            operator_token="op",
            routes=[*log_routes.routes(log, engine), *volume_routes.routes(volumes)],
        )
        async with running(volumes), running(engine), running(gateway):
            place = await volumes.ensure("acme", 1, "web", "data", 1 << 20)
            (place / "a").write_text("one")
            headers = {"Authorization": "Bearer op"}
            async with httpx.AsyncClient(base_url=gateway.url, headers=headers) as http:
                refused = await http.get("/v1/volumes", headers={"Authorization": "Bearer no"})
                assert refused.status_code == 401
                (row,) = (await http.get("/v1/volumes")).json()
                assert (row["path"], row["tier"]) == ("leases/acme/1/web/data", "online")
                body = {"volume": row["path"], "reason": "before the upgrade"}
                taken = (await http.post("/v1/volumes/snapshot", json=body)).json()
                assert taken["files"] == 1
                (place / "a").write_text("two")
                body = {"volume": row["id"], "at": taken["commit"][:10]}
                done = await http.post("/v1/volumes/restore", json=body)
                assert done.json()["written"] == 1
                assert (place / "a").read_text() == "one"
                history = await http.get("/v1/volumes/history", params={"volume": row["id"]})
                assert "before the upgrade" in [s["message"] for s in history.json()]
                busy = await http.post("/v1/volumes/change/freeze", json={"volume": row["id"]})
                assert busy.status_code == 409
                assert busy.json()["code"] == "volume_in_use"
                nothing = await http.post("/v1/volumes/snapshot", json={"volume": "nope"})
                assert nothing.status_code == 404

                entity = f"repo:{row['id']}"
                events = (await http.get("/v1/events/entity", params={"entity": entity})).json()
                assert events[0]["type"] == "repo.init_started"
                async with http.stream("GET", "/v1/events/tail", params={"after": 0}) as lines:
                    first = json.loads(await anext(lines.aiter_lines()))
                assert first["seq"] == 1
                counts = (await http.get("/v1/observe")).json()
                assert {"repo", "registry", "replicate"} <= {c["activity"] for c in counts}
                target = {"activity": "replicate", "entity": entity}
                paused = await http.post("/v1/observe/pause", json=target)
                assert paused.json()["state"] == "paused"
                resumed = await http.post("/v1/observe/resume", json=target)
                assert resumed.json()["state"] != "paused"
                bad = await http.get(
                    "/v1/observe/task", params={"activity": "nope", "entity": entity}
                )
                assert bad.json()["code"] == "activity_not_found"

"""The operator's and the tenant's routes of the log, the activities and the volumes."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from leasehold.app.accounts import Accounts
from leasehold.app.running import Running, write_running
from leasehold.core.service import running
from leasehold.events.event import Entity
from leasehold.events.sqlite import SqliteLog
from leasehold.gateway import log as log_routes
from leasehold.gateway import volumes as volume_routes
from leasehold.gateway.server import Gateway
from leasehold.gateway.settings import GatewaySettings
from leasehold.market.accounts import Key, sign_token
from leasehold.observe.engine import Engine
from leasehold.storage import immutable
from leasehold.storage.shadow import Author
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


async def test_a_tenant_gives_a_frozen_volume_to_a_new_deployment(root: Path) -> None:
    key, stranger = Key.generate(), Key.generate()

    class Keys:
        async def public_key(self, address: str) -> dict[str, str] | None:
            known = {k.address: k for k in (key, stranger)}
            return known[address].public.jwk() if address in known else None

    def bearer(who: Key, **claims: object) -> dict[str, str]:
        return {"Authorization": f"Bearer {sign_token(who, time.time(), **claims)}"}

    async with running(SqliteLog(root / "log.db")) as log:
        engine = Engine(log)
        volumes = Volumes(root / "volumes", log, engine)
        gateway = Gateway(
            GatewaySettings(port=0),
            operator_token="op",
            keys=Keys(),
            routes=volume_routes.routes(volumes),
        )
        async with running(volumes), running(engine), running(gateway):
            place = await volumes.ensure(key.address, 1, "web", "data", 1 << 20)
            (place / "a").write_text("one")
            async with httpx.AsyncClient(base_url=gateway.url) as http:
                (row,) = (await http.get("/volumes", headers=bearer(key))).json()
                target = f"/volumes/{row['id']}/adopt"
                body = {"dseq": 2, "service": "db", "volume": "pg"}

                async def adopt(headers: dict[str, str]) -> tuple[int, str]:
                    answer = await http.post(target, json=body, headers=headers)
                    return answer.status_code, answer.json().get("code", "")

                assert await adopt(bearer(key)) == (409, "volume_tier")
                await volumes.release(key.address, 1)
                async for _ in log.read(Entity("repo", row["id"]), watch=True):
                    if (await volumes.repos.repo(row["id"])).tier == "frozen":
                        break
                assert await adopt(bearer(stranger)) == (404, "volume_not_found")
                some = bearer(
                    key,
                    access="granular",
                    permissions=[{"provider": "p", "access": "scoped", "scope": ["logs"]}],
                )
                assert await adopt(some) == (403, "forbidden")
                gone = await http.delete(f"/volumes/{row['id']}", headers=some)
                assert (gone.status_code, gone.json()["code"]) == (403, "forbidden")
                assert await adopt(bearer(key)) == (202, "")
                async for _ in log.read(Entity("repo", row["id"]), watch=True):
                    state = await volumes.repos.repo(row["id"])
                    if state.path == f"leases/{key.address}/2/db/pg" and not state.busy:
                        break
                moved = await volumes.ensure(key.address, 2, "db", "pg", 1 << 20)
                assert (moved / "a").read_text() == "one"


async def test_a_tenant_looks_into_the_history_of_its_own_volumes_only(
    root: Path,
) -> None:
    """By HTTP and by the command line; another's volume is one that is not there."""
    home = root / "home"
    accounts = Accounts(home)
    key = accounts.new("acme")
    stranger = accounts.new("mallory")

    class Keys:
        async def public_key(self, address: str) -> dict[str, str] | None:
            known = {k.address: k for k in (key, stranger)}
            return known[address].public.jwk() if address in known else None

    def bearer(who: Key, **claims: object) -> dict[str, str]:
        return {"Authorization": f"Bearer {sign_token(who, time.time(), **claims)}"}

    async with running(SqliteLog(root / "log.db")) as log:
        engine = Engine(log)
        volumes = Volumes(root / "volumes", log, engine)
        gateway = Gateway(
            GatewaySettings(port=0),
            operator_token="op",
            keys=Keys(),
            routes=volume_routes.routes(volumes),
        )
        async with running(volumes), running(engine), running(gateway):
            place = await volumes.ensure(key.address, 1, "web", "data", 1 << 20)
            (row,) = await volumes.ls()
            (place / "a").write_text("one")
            first = await volumes.storage.snapshot(row["id"], Author("acme"), "first")
            (place / "b").write_text("two")
            await volumes.storage.snapshot(row["id"], Author("acme"), "second")
            old = {"old": first.commit[:10]}
            async with httpx.AsyncClient(base_url=gateway.url) as http:

                async def ask(what: str, headers: dict[str, str], **query: str) -> tuple[int, Any]:
                    found = await http.get(
                        f"/volumes/{row['id']}/{what}", headers=headers, params=query
                    )
                    return found.status_code, found.json()

                status, history = await ask("history", bearer(key))
                assert (status, [s["message"] for s in history][:2]) == (200, ["second", "first"])
                status, changes = await ask("diff", bearer(key), **old)
                assert (status, [(c["how"], c["path"]) for c in changes]) == (
                    200, [("added", "b")]
                )  # fmt: skip
                scope = [{"provider": "p", "access": "scoped", "scope": ["logs"]}]
                some = bearer(key, access="granular", permissions=scope)
                for what, query in (("history", {}), ("diff", old)):
                    status, said = await ask(what, bearer(stranger), **query)
                    assert (status, said["code"]) == (404, "volume_not_found")
                    status, said = await ask(what, some, **query)
                    assert (status, said["code"]) == (403, "forbidden")
                    status, _ = await ask(what, {}, **query)
                    assert status == 401
                    unknown = await http.get(
                        f"/volumes/{'0' * 26}/{what}", headers=bearer(key), params=query
                    )
                    assert (unknown.status_code, unknown.json()["code"]) == (
                        404, "volume_not_found"
                    )  # fmt: skip
                for bad in (":/second", "HEAD@{1}", "main"):
                    assert (await ask("diff", bearer(key), old=bad))[0] == 400

            write_running(
                root,
                Running(
                    pid=os.getpid(), gateway=gateway.url, ledger="", ingress="", ops="",
                    provider="p", state=str(root),
                ),
            )  # fmt: skip

            async def leasehold(*words: str, expect: int = 0) -> Any:
                process = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "leasehold", "volume", *words,
                    "--state", str(root), "--json",
                    env={**os.environ, "LEASEHOLD_HOME": str(home)},
                    stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
                )  # fmt: skip
                out, err = await process.communicate()
                assert process.returncode == expect, (out, err)
                return json.loads(out or err)

            (mine,) = await leasehold("ls", "--as", "acme")
            assert mine["id"] == row["id"]
            told = await leasehold("history", "1/web/data", "--as", "acme")
            assert [s["commit"] for s in told] == [s["commit"] for s in history]
            changed = await leasehold("diff", row["id"], first.commit, "--as", "acme")
            assert changed == changes
            assert await leasehold("ls", "--as", "mallory") == []
            refused = await leasehold("history", row["id"], "--as", "mallory", expect=4)
            assert refused["error"]["code"] == "volume_not_found"

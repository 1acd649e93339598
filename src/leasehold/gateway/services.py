"""Packages, services and spells of the node, for the operator; ``/versions`` for everybody.

The node is reached through a function, because it starts after the gateway was described; until it
runs, and while its packages are being deployed, ``/v1/node/status`` says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import msgspec
from litestar import Request, Response, get, post, put
from litestar.handlers import BaseRouteHandler
from litestar.params import JSONBody, PathParameter, QueryParameter

from leasehold.core.errors import Kind, LeaseholdError, unavailable
from leasehold.gateway.auth import operator
from leasehold.node import neighbours
from leasehold.node.service import Node
from leasehold.node.spells import trigger as triggers
from leasehold.node.spells.store import SpellStore

Name = Annotated[str, PathParameter(description="alias or id")]
Key = Annotated[str, PathParameter(description="key of the spell")]
Lines = Annotated[int, QueryParameter(ge=1, le=10_000, description="how many of the newest")]


class Call(msgspec.Struct, forbid_unknown_fields=True):
    """A call of a function: ``args`` by position or by name; ``timeout`` in seconds."""

    function: str
    args: list[Any] | dict[str, Any] = []
    timeout: float | None = None


class Value(msgspec.Struct, forbid_unknown_fields=True):
    """A value of a key: a string, or a number from 0 to 4294967295."""

    value: str | int


NodeOf = Callable[[], Node | None]
"""Gives the node, None while there is none."""


def routes(node_of: NodeOf) -> Sequence[BaseRouteHandler]:
    """Every route of this area."""

    def node() -> Node:
        found = node_of()
        if found is None or not found.deployer_exists:
            raise unavailable("node_not_up", "the node is not running yet", retry_after=1.0)
        return found

    @get("/versions", tags=["node"], operation_id="node_versions", sync_to_thread=False)
    def versions() -> dict[str, str]:
        """Versions of the node, its spell engine and its packages."""
        found = node_of()
        if found is None:
            raise unavailable("node_not_up", "the node is not running yet", retry_after=1.0)
        return found.versions()

    async def _neighbour(request: Request[Any, Any, Any]) -> Response[bytes]:
        try:
            data, headers = await neighbours.answer(
                node(), await request.body(), dict(request.headers)
            )
        except msgspec.MsgspecError as error:
            raise LeaseholdError("bad_question", str(error), kind=Kind.MALFORMED) from None
        return Response(data, media_type="application/json", headers=headers)

    @get("/v1/neighbour", tags=["node"], operation_id="whoIsThere")
    async def who(request: Request[Any, Any, Any]) -> Response[bytes]:
        """Who this node is; signed."""
        return await _neighbour(request)

    @post("/v1/neighbour", tags=["node"], status_code=200, operation_id="askNeighbour")
    async def asked(request: Request[Any, Any, Any]) -> Response[bytes]:
        """A signed question of another node; the answer is signed as well."""
        return await _neighbour(request)

    @get("/v1/node/status", guards=[operator], tags=["node"], sync_to_thread=False)
    def status() -> dict[str, Any]:
        """Whether every package is in place, and how long that took."""
        found = node()
        return {
            "peer_id": found.principals.host,
            "management_id": found.principals.management,
            "ready": found.ready,
            "boot_ms": found.boot_ms,
            "versions": found.versions(),
            "packages": found.packages(),
        }

    @get("/v1/node/packages", guards=[operator], tags=["node"], sync_to_thread=False)
    def packages() -> list[dict[str, Any]]:
        """Installed and shipped version, status and last message of every package."""
        return node().packages()

    @get("/v1/node/plan", guards=[operator], tags=["node"])
    async def plan() -> list[dict[str, Any]]:
        """What a reload would change; nothing is changed."""
        out: list[dict[str, Any]] = msgspec.to_builtins(await node().plan())
        return out

    @post("/v1/node/reload", guards=[operator], tags=["node"], status_code=200)
    async def reload() -> list[dict[str, Any]]:
        """Look at the packages again and deploy what changed."""
        results = await node().reload()
        out: list[dict[str, Any]] = msgspec.to_builtins(list(results.values()))
        return out

    @get("/v1/node/services", guards=[operator], tags=["node"], sync_to_thread=False)
    def services() -> list[dict[str, Any]]:
        """Every service."""
        return node().list_instances(spells=False)

    @get("/v1/node/services/{name:str}", guards=[operator], tags=["node"])
    async def service(name: Name) -> dict[str, Any]:
        """One service and its functions."""
        found = node()
        instance = found.find(name, spell=False)
        out = found.show(instance)
        try:
            out["functions"] = (await found.call(name, "system.functions", [], timeout=5.0)).get(
                "functions", {}
            )
        except LeaseholdError as error:
            out["functions"] = {}
            out["error"] = error.message
        return out

    @post("/v1/node/services/{name:str}/call", guards=[operator], tags=["node"], status_code=200)
    async def call(name: Name, data: JSONBody[Call]) -> Any:
        """Call a function of a service as the management."""
        return await node().call(name, data.function, data.args, timeout=data.timeout)

    @post("/v1/node/services/{name:str}/restart", guards=[operator], tags=["node"], status_code=200)
    async def restart(name: Name) -> dict[str, Any]:
        """End and start a service again, also out of a crash loop."""
        found = node()
        instance = found.find(name, spell=False)
        await found.services.restart(instance)
        await found.services.wait_ready(instance)
        return found.show(instance)

    @get("/v1/node/services/{name:str}/logs", guards=[operator], tags=["node"], sync_to_thread=True)
    def logs(name: Name, lines: Lines = 100) -> dict[str, list[str]]:
        """The newest lines of output."""
        found = node()
        return {"lines": found.services.logs(found.find(name, spell=False), lines)}

    @get("/v1/node/spells", guards=[operator], tags=["node"], sync_to_thread=False)
    def spells() -> list[dict[str, Any]]:
        """Every spell, of all scopes."""
        return node().list_instances(spells=True)

    @get("/v1/node/spells/{name:str}", guards=[operator], tags=["node"])
    async def spell(name: Name) -> dict[str, Any]:
        """One spell: trigger, schema, script and its newest runs."""
        found = node()
        instance = found.find(name, spell=True)
        meta = await found.spells.use(instance.id, lambda s: s.meta())
        runs = await found.spells.use(instance.id, lambda s: s.runs())
        return {
            **found.show(instance),
            **({} if meta is None else msgspec.to_builtins(meta)),
            "runs": msgspec.to_builtins(runs),
        }

    @post("/v1/node/spells/{name:str}/run", guards=[operator], tags=["node"], status_code=200)
    async def run(name: Name) -> dict[str, Any]:
        """Run a spell once, now, and wait for the outcome."""
        out: dict[str, Any] = msgspec.to_builtins(await node().run_spell(name))
        return out

    def stored(what: str, read: Callable[[SpellStore], Any]) -> BaseRouteHandler:
        """A route to something a spell keeps."""

        @get(f"/v1/node/spells/{{name:str}}/{what}", guards=[operator], tags=["node"])
        async def handler(name: Name) -> Any:
            found = node()
            id = found.find(name, spell=True).id
            return msgspec.to_builtins(await found.spells.use(id, read))

        return handler

    kept = [
        stored("logs", lambda s: s.logs()),
        stored("errors", lambda s: s.errors()),
        stored("kv", lambda s: s.dump()),
        stored("mailbox", lambda s: s.mail()),
        stored("runs", lambda s: s.runs(200)),
    ]

    @put("/v1/node/spells/{name:str}/kv/{key:str}", guards=[operator], tags=["node"])
    async def set_key(name: Name, key: Key, data: JSONBody[Value]) -> dict[str, Any]:
        """Set a key as the host: only keys that begin with ``h_`` or ``hw_``."""
        function = "set_u32" if isinstance(data.value, int) else "set_string"
        return _checked(await node().call_spell(name, function, [key, data.value]))

    @post("/v1/node/spells/{name:str}/mailbox", guards=[operator], tags=["node"], status_code=200)
    async def push(name: Name, data: JSONBody[dict[str, Any]]) -> dict[str, Any]:
        """Push ``message`` into the mailbox, which fires a spell that waits for it."""
        message = data.get("message", "")
        return _checked(await node().call_spell(name, "push_mailbox", [message]))

    @put("/v1/node/spells/{name:str}/trigger", guards=[operator], tags=["node"])
    async def trigger(name: Name, data: JSONBody[dict[str, Any]]) -> dict[str, Any]:
        """Replace the trigger; the package's next deploy sets its own again."""
        await node().set_trigger(name, triggers.parse(data))
        return {"success": True}

    return [
        versions,
        who,
        asked,
        status,
        packages,
        plan,
        reload,
        services,
        service,
        call,
        restart,
        logs,
        spells,
        spell,
        run,
        *kept,
        set_key,
        push,
        trigger,
    ]


def _checked(reply: dict[str, Any]) -> dict[str, Any]:
    if not reply["success"]:
        raise LeaseholdError("spell_refused", str(reply["error"]), kind=Kind.CONFLICT)
    return reply

"""The scheduler over HTTP: list, add, enable, disable, results, destinations, and the page.

With both user and password set, everything but health and metrics asks for them.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from litestar import Litestar, MediaType, Request, Response, get, post
from litestar.connection import ASGIConnection
from litestar.exceptions import HTTPException
from litestar.handlers import BaseRouteHandler
from litestar.openapi import OpenAPIConfig
from litestar.params import Parameter

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.schedule.store import KINDS, NewTask, Run, ScheduledTask
from leasehold.schedule.targets import Destination

if TYPE_CHECKING:
    from leasehold.schedule.scheduler import Scheduler

PAGE = Path(__file__).with_name("ui.html")

Id = Annotated[str, Parameter(min_length=1, max_length=200)]


class Wanted(msgspec.Struct, kw_only=True):
    """Whose results to list."""

    task_id: str
    network: str = ""
    chain_id: str = ""
    kind: str = ""
    limit: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 100
    offset: Annotated[int, msgspec.Meta(ge=0)] = 0


def application(scheduler: Scheduler) -> Litestar:
    """The ASGI application of one instance."""
    store = scheduler.store
    settings = scheduler.settings

    def guard(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
        check_basic(
            connection.headers.get("authorization", ""), settings.auth_user, settings.auth_password
        )

    @get("/scheduler/core/list", guards=[guard])
    async def list_tasks() -> list[ScheduledTask]:
        """All tasks."""
        return await store.all()

    @post("/scheduler/core/addTask", guards=[guard])
    async def add_task(data: NewTask, enabled: bool = False) -> ScheduledTask:
        """Add a task, disabled unless ``enabled``."""
        task = await store.add(data, enabled=enabled)
        scheduler.wake()
        return task

    @post("/scheduler/core/enable/{id:str}", status_code=200, guards=[guard])
    async def enable(id: Id) -> ScheduledTask:
        """Let a task run from now on."""
        task = await store.enable(id)
        scheduler.wake()
        return task

    @post("/scheduler/core/disable/{id:str}", status_code=200, guards=[guard])
    async def disable(id: Id) -> ScheduledTask:
        """Stop a task; a call under way is cancelled."""
        task = await store.disable(id)
        await scheduler.disabled(task.id)
        return await store.get(task.id)

    @get("/scheduler/core/runs/{id:str}", guards=[guard])
    async def runs(
        id: Id,
        limit: Annotated[int, Parameter(ge=1, le=1000)] = 100,
        offset: Annotated[int, Parameter(ge=0)] = 0,
    ) -> list[Run]:
        """Results of a task, newest first."""
        return await store.history(id, limit=limit, offset=offset)

    @post("/scheduler/runner/{kind:str}/listRunning", status_code=200, guards=[guard])
    async def list_running(kind: Id, data: Wanted) -> list[Run]:
        """Results of a task, found by what identifies it."""
        if kind not in KINDS:
            raise LeaseholdError(
                "unknown_kind", f"no runner {kind!r}", kind=Kind.NOT_FOUND,
                expected=", ".join(KINDS), got=kind,
            )  # fmt: skip
        for task in await store.all():
            if (
                task.kind == kind
                and data.task_id in (task.id, task.task_id)
                and data.network in ("", task.network)
                and data.chain_id in ("", task.chain_id)
            ):
                return await store.history(task.id, limit=data.limit, offset=data.offset)
        return []

    @get("/scheduler/destination/list", guards=[guard])
    async def destinations() -> dict[str, list[Destination]]:
        """Targets by network:chain id:version."""
        return {":".join(key): list(found) for key, found in scheduler.targets.known().items()}

    @get(["/ui", "/"], media_type=MediaType.HTML, guards=[guard])
    async def page() -> str:
        """The page."""
        return PAGE.read_text()

    @get("/health")
    async def health() -> dict[str, str]:
        """That the process answers."""
        return {"status": "ok"}

    @get("/liveness")
    async def liveness() -> dict[str, str]:
        """That the process answers."""
        return {}

    @get("/readiness")
    async def readiness() -> dict[str, Any]:
        """That the database answers."""
        await store.due(limit=1)
        return {"db": "ok", "targets": len(scheduler.targets.known())}

    return Litestar(
        [
            list_tasks, add_task, enable, disable, runs, list_running, destinations, page,
            health, liveness, readiness,
        ],
        exception_handlers={LeaseholdError: _failed, HTTPException: _http_failed},
        openapi_config=OpenAPIConfig(title="Leasehold scheduler", version="1"),
        logging_config=None,  # the process has its own
        request_max_body_size=1 << 20,
    )  # fmt: skip


def check_basic(header: str, user: str, password: str) -> None:
    """LeaseholdError when credentials are set and the header does not have them."""
    if not user or not password:
        return
    scheme, _, encoded = header.partition(" ")
    try:
        given = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        given = b""
    expected = f"{user}:{password}".encode()
    if scheme.lower() != "basic" or not hmac.compare_digest(given, expected):
        raise LeaseholdError(
            "unauthenticated", "user and password are needed", kind=Kind.UNAUTHENTICATED
        )


def _failed(_: Request[Any, Any, Any], error: LeaseholdError) -> Response[dict[str, Any]]:
    headers = (
        {"www-authenticate": 'Basic realm="leasehold"'}
        if error.kind is Kind.UNAUTHENTICATED
        else None
    )
    return Response(
        error.to_dict(), status_code=error.kind.http, media_type=MediaType.JSON, headers=headers
    )


def _http_failed(_: Request[Any, Any, Any], error: HTTPException) -> Response[dict[str, Any]]:
    content: dict[str, Any] = {"code": "bad_request", "message": error.detail}
    if getattr(error, "extra", None):
        content["violations"] = error.extra
    return Response(
        content, status_code=error.status_code, media_type=MediaType.JSON, headers=error.headers
    )

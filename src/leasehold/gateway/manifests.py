"""Routes of manifests: send, read back, try, roll back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from litestar import Request, Response, get, post
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler, HTTPRouteHandler
from litestar.params import JSONBody, PathParameter, QueryParameter

from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.gateway.auth import principal_of, tenant
from leasehold.gateway.claims import Principal
from leasehold.gateway.errors import TEXT_ERRORS, wants_json
from leasehold.gateway.settings import GatewaySettings
from leasehold.manifest.acceptance import Accepted, Permit
from leasehold.manifest.service import ManifestService
from leasehold.manifest.state import LeaseState
from leasehold.model.market import LeaseId

MAX_SEQUENCE = 2**63 - 1
Seq = Annotated[int, PathParameter(ge=0, le=MAX_SEQUENCE)]
Wait = Annotated[
    Literal["healthy"] | None,
    QueryParameter(description="answer once the manifest is healthy or failed on every lease"),
]
Timeout = Annotated[float, QueryParameter(gt=0, le=3600, description="longest wait, seconds")]


class Quick(HTTPRouteHandler):
    """A route whose guards are given the handler itself: copying it for each of them, as Litestar
    does, took an eighth of the time of a PUT. Our guards only look at the connection."""

    async def authorize_connection(self, connection: ASGIConnection[Any, Any, Any, Any]) -> None:
        for guard in self.resolve_guards():
            await guard(connection, self)  # type: ignore[misc]


class Rollback(msgspec.Struct, forbid_unknown_fields=True):
    """``hash``: of a kept manifest, or the beginning of it."""

    hash: str


def routes(
    manifest: ManifestService, clock: Clock, settings: GatewaySettings
) -> Sequence[BaseRouteHandler]:
    """The manifest routes of ``manifest``'s provider."""

    @Quick(
        "/deployment/{dseq:int}/manifest",
        http_method="PUT",
        guards=[tenant("send-manifest")],
        status_code=200,
        opt={TEXT_ERRORS: True},
        tags=["manifest"],
        operation_id="sendManifest",
        summary="Send a manifest",
    )
    async def send(
        request: Request[Any, Any, Any], dseq: Seq, wait: Wait = None, timeout: Timeout = 120.0
    ) -> Response[Any]:
        """Accept the manifest (a JSON array of groups) for every lease of the deployment here.

        Answers 200 with an empty body; with ``Accept: application/json`` or ``wait`` it says what
        became of it.
        """
        principal = principal_of(request)
        accepted = await manifest.submit(
            principal.owner,
            dseq,
            await body_of(request, clock, settings),
            permit=_permit(principal, "send-manifest"),
        )
        if wait is None and not wants_json(request):
            return Response(b"", status_code=200, media_type="text/plain")
        seconds = min(timeout, settings.wait_max_s) if wait else 0.0
        return _json(await _outcome(manifest, accepted, clock, seconds))

    @post(
        "/deployment/{dseq:int}/validate",
        guards=[tenant("send-manifest")],
        status_code=200,
        tags=["manifest"],
        operation_id="validateManifest",
        summary="Try a manifest",
    )
    async def validate(request: Request[Any, Any, Any], dseq: Seq) -> Response[Any]:
        """What sending the manifest would say, and what it would change. Nothing is stored."""
        principal = principal_of(request)
        body = await body_of(request, clock, settings)
        permit = _permit(principal, "send-manifest")
        return _json(await manifest.validate(principal.owner, dseq, body, permit=permit))

    @get(
        "/deployment/{dseq:int}/manifests",
        guards=[tenant("get-manifest")],
        tags=["manifest"],
        operation_id="listManifests",
        summary="Accepted manifests",
    )
    async def history(request: Request[Any, Any, Any], dseq: Seq) -> Response[Any]:
        """The kept manifests of a deployment, newest first: hash, sender, time, images."""
        return _json(await manifest.history(principal_of(request).owner, dseq))

    @post(
        "/deployment/{dseq:int}/rollback",
        guards=[tenant("send-manifest")],
        status_code=200,
        tags=["manifest"],
        operation_id="rollbackManifest",
        summary="Go back to an accepted manifest",
    )
    async def rollback(
        request: Request[Any, Any, Any],
        dseq: Seq,
        data: JSONBody[Rollback],
        wait: Wait = None,
        timeout: Timeout = 120.0,
    ) -> Response[Any]:
        """Accept a kept manifest again. The deployment must have its hash on the market."""
        principal = principal_of(request)
        accepted = await manifest.rollback(
            principal.owner, dseq, data.hash, permit=_permit(principal, "send-manifest")
        )
        seconds = min(timeout, settings.wait_max_s) if wait else 0.0
        return _json(await _outcome(manifest, accepted, clock, seconds))

    @get(
        "/lease/{dseq:int}/{gseq:int}/{oseq:int}/manifest",
        guards=[tenant("get-manifest")],
        tags=["manifest"],
        operation_id="getManifest",
        summary="The manifest of a lease",
    )
    async def read(
        request: Request[Any, Any, Any], dseq: Seq, gseq: Seq, oseq: Seq
    ) -> Response[Any]:
        """The lease's group as it was accepted, byte for byte what was hashed."""
        id = LeaseId(principal_of(request).owner, dseq, gseq, oseq, manifest.provider)
        hash, group = await manifest.manifest(id)
        return Response(
            msgspec.json.encode([group]),
            media_type="application/json",
            headers={"ETag": f'"{hash}"'},
        )

    return [send, validate, history, rollback, read]


async def body_of(
    request: Request[Any, Any, Any], clock: Clock, settings: GatewaySettings
) -> bytes:
    """The whole body; TIMEOUT (408 is a hint to try again) when it comes too slowly."""
    try:
        async with clock.timeout(settings.body_timeout_s):
            return await request.body()
    except TimeoutError:
        raise LeaseholdError(
            "body_timeout",
            f"the request body did not arrive within {settings.body_timeout_s:g} s",
            kind=Kind.MALFORMED,
            expected=f"≤ {settings.body_timeout_s:g} s",
        ) from None


def lease_view(state: LeaseState, deadline: float | None = None) -> dict[str, Any]:
    """How far the manifest of a lease has come, for answers."""
    view: dict[str, Any] = {"hash": state.received or None, "phase": state.phase}
    if state.applied:
        view["applied"] = state.applied
    if state.uris:
        view["uris"] = state.uris
    if state.failed is not None:
        view["error"] = {"code": state.failed.code, "message": state.failed.message}
    if state.unhealthy:
        view["reason"] = state.unhealthy
    if deadline is not None:
        view["deadline"] = deadline
    if state.reclaim_deadline is not None:
        view["reclaim_deadline"] = state.reclaim_deadline
    return view


async def _outcome(
    manifest: ManifestService, accepted: Accepted, clock: Clock, seconds: float
) -> dict[str, Any]:
    until = clock.monotonic() + seconds
    leases = {}
    for lease in accepted.leases:
        left = max(0.0, until - clock.monotonic())
        state = (
            await manifest.outcome(lease, accepted.hash, timeout=left)
            if seconds
            else await manifest.lease(lease)
        )
        leases[str(lease)] = lease_view(state)
    return {
        "hash": accepted.hash,
        "leases": leases,
        "withheld_hostnames": accepted.withheld,
        "repeated": [str(lease) for lease in accepted.repeated],
    }


def _permit(principal: Principal, scope: str) -> Permit:
    def permit(lease: LeaseId) -> bool:
        # A manifest is for whole services: a token for some services of a lease is not enough.
        return principal.services(scope, lease.dseq, lease.gseq, lease.oseq) is None

    return permit


def _json(value: Any) -> Response[Any]:
    return Response(msgspec.json.encode(value), media_type="application/json")

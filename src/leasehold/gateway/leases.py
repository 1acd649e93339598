"""Routes of leases: status of a lease and of its services."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from litestar import Request, Response, get
from litestar.handlers import BaseRouteHandler
from litestar.params import FromPath

from leasehold.core.clock import Clock
from leasehold.core.errors import not_found
from leasehold.gateway.auth import principal_of, tenant
from leasehold.gateway.manifests import Seq, lease_view
from leasehold.gateway.ports import Workloads
from leasehold.gateway.settings import GatewaySettings
from leasehold.manifest.service import ManifestService
from leasehold.model.market import LeaseId


def routes(
    manifest: ManifestService,
    workloads: Workloads | None,
    clock: Clock,
    settings: GatewaySettings,
) -> Sequence[BaseRouteHandler]:
    """The lease routes; without ``workloads`` only what the log says is told."""

    async def view(request: Request[Any, Any, Any], id: LeaseId) -> dict[str, Any]:
        state = await manifest.lease(id)
        if not state.received:
            raise not_found("manifest", str(id), hint="None was accepted for this lease.")
        out: dict[str, Any] = {"services": {}, "forwarded_ports": {}, "ips": {}}
        if workloads is not None:
            out |= await workloads.status(id)
        out["manifest"] = lease_view(state, manifest.deadline(state))
        if state.failed is not None:
            out["errors"] = [f"{state.failed.code}: {state.failed.message}"]
        allowed = principal_of(request).services("status", id.dseq, id.gseq, id.oseq)
        if allowed is not None:
            out["services"] = {n: s for n, s in out["services"].items() if n in allowed}
            for part in ("forwarded_ports", "ips"):
                out[part] = {n: s for n, s in out[part].items() if n in allowed}
        return out

    def lease(request: Request[Any, Any, Any], dseq: int, gseq: int, oseq: int) -> LeaseId:
        return LeaseId(principal_of(request).owner, dseq, gseq, oseq, manifest.provider)

    @get(
        "/lease/{dseq:int}/{gseq:int}/{oseq:int}/status",
        guards=[tenant("status")],
        tags=["lease"],
        operation_id="leaseStatus",
        summary="Status of a lease",
    )
    async def status(
        request: Request[Any, Any, Any], dseq: Seq, gseq: Seq, oseq: Seq
    ) -> Response[Any]:
        """Its services and how they are, and how far its manifest has come."""
        return _json(await view(request, lease(request, dseq, gseq, oseq)))

    @get(
        "/lease/{dseq:int}/{gseq:int}/{oseq:int}/service/{service:str}/status",
        guards=[tenant("status")],
        tags=["lease"],
        operation_id="serviceStatus",
        summary="Status of a service",
    )
    async def service_status(
        request: Request[Any, Any, Any], dseq: Seq, gseq: Seq, oseq: Seq, service: FromPath[str]
    ) -> Response[Any]:
        """One service of a lease."""
        found = (await view(request, lease(request, dseq, gseq, oseq)))["services"].get(service)
        if found is None:
            raise not_found("service", service)
        return _json(found)

    return [status, service_status]


def _json(value: Any) -> Response[Any]:
    return Response(msgspec.json.encode(value), media_type="application/json")

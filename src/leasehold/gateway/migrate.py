"""Moving host names and leased addresses from one lease of an owner to another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from litestar import Request, Response, post
from litestar.handlers import BaseRouteHandler

from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.gateway.auth import any_tenant, principal_of
from leasehold.gateway.manifests import body_of
from leasehold.gateway.ports import Addresses
from leasehold.gateway.settings import GatewaySettings
from leasehold.manifest.service import ManifestService
from leasehold.model.market import GroupId

MAX_NAMES = 1000


class HostnameMigrate(msgspec.Struct):
    hostnames_to_migrate: list[str] | None = None
    destination_dseq: int = 0
    destination_gseq: int = 0


class EndpointMigrate(msgspec.Struct):
    endpoints_to_migrate: list[str] | None = None
    destination_dseq: int = 0
    destination_gseq: int = 0


def routes(
    manifest: ManifestService,
    addresses: Addresses | None,
    clock: Clock,
    settings: GatewaySettings,
) -> Sequence[BaseRouteHandler]:
    """``addresses`` None: this provider leases no addresses, which is said."""

    @post(
        "/hostname/migrate",
        guards=[any_tenant],
        status_code=200,
        tags=["lease"],
        operation_id="migrateHostnames",
        summary="Move host names to another lease",
    )
    async def hostnames(request: Request[Any, Any, Any]) -> Response[Any]:
        """Body: ``hostnames_to_migrate``, ``destination_dseq``, ``destination_gseq``.

        All of them move or none; the destination's manifest must ask for each.
        """
        body = await _decode(request, HostnameMigrate)
        names = _names(body.hostnames_to_migrate, "hostnames_to_migrate")
        principal = principal_of(request)
        principal.require("hostname-migrate", body.destination_dseq, body.destination_gseq)
        moved = await manifest.transfer_hostnames(
            principal.owner, body.destination_dseq, body.destination_gseq, names
        )
        return _transferred(moved)

    @post(
        "/endpoint/migrate",
        guards=[any_tenant],
        status_code=200,
        tags=["lease"],
        operation_id="migrateEndpoints",
        summary="Move leased addresses to another lease",
    )
    async def endpoints(request: Request[Any, Any, Any]) -> Response[Any]:
        """Body: ``endpoints_to_migrate``, ``destination_dseq``, ``destination_gseq``.

        Only the named endpoints move.
        """
        body = await _decode(request, EndpointMigrate)
        names = _names(body.endpoints_to_migrate, "endpoints_to_migrate")
        principal = principal_of(request)
        principal.require("ip-migrate", body.destination_dseq, body.destination_gseq)
        target = GroupId(principal.owner, body.destination_dseq, body.destination_gseq)
        lease, group = await manifest.destination(target)
        known = {e.ip for s in group.all_services for e in s.exposes if e.ip}
        missing = [name for name in names if name not in known]
        if missing:
            raise LeaseholdError(
                "endpoint_not_in_manifest",
                f"the manifest of {target} has no endpoint {', '.join(missing)}",
                kind=Kind.MALFORMED,
                expected=", ".join(sorted(known)),
                got=", ".join(missing),
            )
        if addresses is None:
            raise LeaseholdError(
                "no_addresses", "this provider leases no addresses", kind=Kind.UNSUPPORTED
            )
        return _transferred(await addresses.transfer(lease, names))

    async def _decode(request: Request[Any, Any, Any], form: type[Any]) -> Any:
        try:
            return msgspec.json.decode(await body_of(request, clock, settings), type=form)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise LeaseholdError("body_undecodable", str(error)) from None

    return [hostnames, endpoints]


def _names(names: list[str] | None, path: str) -> list[str]:
    if not names or len(names) > MAX_NAMES:
        raise LeaseholdError(
            "nothing_to_migrate",
            "name what is to be moved",
            kind=Kind.MALFORMED,
            path=path,
            expected=f"1..{MAX_NAMES} names",
            got=len(names or ()),
        )
    return names


def _transferred(names: list[str]) -> Response[Any]:
    return Response(msgspec.json.encode({"transferred": names}), media_type="application/json")

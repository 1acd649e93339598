"""Settings of manifest intake, with the originals' defaults where they were sound."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta


class ManifestSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long things may take and how many there may be."""

    watchdog_s: Annotated[
        float,
        Meta(
            description="time a tenant has to send a manifest for a won lease, seconds; 0: any",
            ge=0,
        ),
    ] = 300.0
    submit_budget_s: Annotated[
        float, Meta(description="longest a sent manifest is worked on, seconds", gt=0)
    ] = 120.0
    query_timeout_s: Annotated[
        float, Meta(description="longest a market query may take, seconds", gt=0)
    ] = 60.0
    broadcast_timeout_s: Annotated[
        float, Meta(description="longest closing a bid may take, seconds", gt=0)
    ] = 30.0
    cache_age_s: Annotated[
        float, Meta(description="how long market data is used without asking again, seconds", ge=0)
    ] = 5.0
    linger_s: Annotated[
        float, Meta(description="how long an unused manager is kept, seconds", ge=0)
    ] = 300.0
    reconcile_s: Annotated[
        float, Meta(description="time between comparisons with the market, seconds", gt=0)
    ] = 180.0
    reconcile_grace_s: Annotated[
        float,
        Meta(description="how long the feed may lag before reconciling steps in, seconds", ge=0),
    ] = 60.0
    keep_manifests: Annotated[
        int, Meta(description="accepted manifests kept for rollback, per deployment", ge=1, le=100)
    ] = 10
    max_managers: Annotated[int, Meta(description="deployments worked on at once", ge=1)] = 20_000
    max_waiting: Annotated[
        int, Meta(description="manifests of one deployment worked on at once", ge=1)
    ] = 32
    owner_rate: Annotated[
        float, Meta(description="manifests an owner may send a second, in the long run", gt=0)
    ] = 10.0
    owner_burst: Annotated[int, Meta(description="manifests an owner may send at once", ge=1)] = 100
    max_manifest_bytes: Annotated[
        int, Meta(description="largest manifest, bytes", ge=1024, le=1 << 19)
    ] = 256 * 1024
    require_hosts: Annotated[bool, Meta(description="refuse HTTP services that name no host")] = (
        False
    )
    blocked_hosts: Annotated[
        list[str], Meta(description="host names nobody may take; .foo.com blocks all below it")
    ] = []
    dns_proof: Annotated[
        bool, Meta(description="host names need a TXT record that proves who owns them")
    ] = False
    dns_proof_prefix: Annotated[
        str, Meta(description="label of that record, before the host name")
    ] = "_leasehold"

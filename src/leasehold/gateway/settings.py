"""Settings of the gateway: where it listens, and the bounds of a request."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta


class GatewaySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Tenant and operator API."""

    host: Annotated[
        str, Meta(description="address to listen on; beyond loopback only with TLS")
    ] = "127.0.0.1"
    port: Annotated[int, Meta(description="port; 0: any", ge=0, le=65535)] = 8080
    url: Annotated[str, Meta(description="how tenants reach it; default: where it listens")] = ""
    tls_certificate: Annotated[
        str, Meta(description="PEM file of the certificate chain; empty: plain HTTP")
    ] = ""
    tls_key: Annotated[str, Meta(description="PEM file of its private key")] = ""
    max_body_bytes: Annotated[int, Meta(description="largest request body, bytes", ge=1024)] = (
        1 << 20
    )
    body_timeout_s: Annotated[
        float, Meta(description="longest a request body may take to arrive, seconds", gt=0)
    ] = 30.0
    header_timeout_s: Annotated[
        float, Meta(description="longest request headers may take to arrive, seconds", gt=0)
    ] = 3.0
    max_connections: Annotated[
        int, Meta(description="requests served at once; more are answered 503", ge=1)
    ] = 2000
    token_cache: Annotated[int, Meta(description="verified tokens remembered", ge=0)] = 10_000
    token_skew_s: Annotated[
        float, Meta(description="how far a tenant's clock may be ahead, seconds", ge=0)
    ] = 5.0
    max_token_bytes: Annotated[int, Meta(description="largest token, bytes", ge=256)] = 16 * 1024
    wait_max_s: Annotated[
        float, Meta(description="longest a request may wait for an outcome, seconds", gt=0)
    ] = 600.0
    ping_s: Annotated[
        float, Meta(description="time between pings on websockets, seconds", gt=0)
    ] = 10.0
    certificates_refresh_s: Annotated[
        float, Meta(description="time between looks for new client certificates, seconds", gt=0)
    ] = 5.0
    certificate_cache_s: Annotated[
        float,
        Meta(description="how long a client certificate is not asked about again, seconds", ge=0),
    ] = 1.0
    dashboard: Annotated[
        Literal["visit", "start", "off"],
        Meta(description="start the dashboard's process at the first visit, with us, or never"),
    ] = "visit"
    dashboard_idle_s: Annotated[
        float,
        Meta(
            description="the dashboard's process ends after so long without a visitor, seconds",
            gt=0,
        ),
    ] = 900.0
    dashboard_visits: Annotated[
        int, Meta(description="tabs that may be open on the dashboard at once", ge=1)
    ] = 200

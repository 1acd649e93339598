"""The gateway: one HTTP server for tenants, operators and the dashboard.

Areas bring their routes; the server brings authentication, the mapping of errors, the bounds of a
request and the OpenAPI description at ``/schema/openapi.json``. ``Gateway(routes=[…])`` takes any
Litestar handlers, routers and websocket handlers; guards are in ``leasehold.gateway.auth``.
"""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from litestar import Litestar
from litestar.datastructures import State
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme
from litestar.types import ControllerRouterHandler

from leasehold import __version__
from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.core.service import Service, running
from leasehold.core.web import HttpServer
from leasehold.gateway import leases, manifests, migrate, status, streams
from leasehold.gateway.accounting import Accounting
from leasehold.gateway.auth import Authenticator
from leasehold.gateway.certificates import ClientCertificates, Registry
from leasehold.gateway.errors import HANDLERS, describe
from leasehold.gateway.jwt import AccountKeys, Tokens
from leasehold.gateway.ports import Addresses, Workloads
from leasehold.gateway.protocol import GatewayWebSocket, http_protocol
from leasehold.gateway.settings import GatewaySettings
from leasehold.manifest.service import ManifestService


class Gateway(Service):
    """Serves the API. ``url`` is known once it is started.

    ``manifest`` and ``workloads`` bring the tenant's routes; ``keys`` the public keys of accounts;
    ``registry`` the client certificates on the market (used with TLS);
    ``parts`` what ``/status`` tells of the other systems; ``wrap`` puts an ASGI application around
    the API (the dashboard's dispatcher).
    """

    def __init__(
        self,
        settings: GatewaySettings | None = None,
        *,
        clock: Clock | None = None,
        manifest: ManifestService | None = None,
        workloads: Workloads | None = None,
        addresses: Addresses | None = None,
        keys: AccountKeys | None = None,
        registry: Registry | None = None,
        operator_token: str = "",
        provider: str = "",
        parts: Mapping[str, status.Part] | None = None,
        routes: Sequence[ControllerRouterHandler] = (),
        wrap: Any = None,
    ) -> None:
        super().__init__("gateway", clock=clock)
        self.settings = settings = settings or GatewaySettings()
        self.provider = provider or (manifest.provider if manifest else "")
        self.certificates = (
            ClientCertificates(registry, clock=self.clock, settings=settings)
            if registry is not None and settings.tls_certificate
            else None
        )
        self.auth = Authenticator(
            tokens=Tokens(keys, self.clock, settings) if keys is not None else None,
            operator_token=operator_token,
            provider=self.provider,
            certificates=self.certificates,
        )
        members = dict(parts or {})
        handlers: list[ControllerRouterHandler] = []
        if manifest is not None:

            async def deployments() -> Any:
                return manifest.status()

            members.setdefault("manifest", deployments)
            handlers += manifests.routes(manifest, self.clock, settings)
            handlers += leases.routes(manifest, workloads, self.clock, settings)
            handlers += streams.routes(manifest, workloads, self.clock, settings)
            handlers += migrate.routes(manifest, addresses, self.clock, settings)
        handlers += status.routes(self.provider, members)
        handlers += routes
        describe(handlers)
        self.api = Litestar(
            handlers,
            exception_handlers=HANDLERS,
            request_max_body_size=settings.max_body_bytes,
            openapi_config=_openapi(),
            state=State({"auth": self.auth}),
            logging_config=None,
        )
        counted = Accounting(self.api)
        self.app = wrap(counted) if wrap is not None else counted
        self.server: HttpServer | None = None

    async def start(self) -> None:
        settings = self.settings
        options: dict[str, Any] = {}
        if settings.tls_certificate:
            options |= {
                "ssl_certfile": settings.tls_certificate,
                "ssl_keyfile": settings.tls_key,
                "ssl_context_factory": _tls13,
            }
            if self.certificates is not None:
                await self.resources.enter_async_context(running(self.certificates))
                options["ssl_context_factory"] = self.certificates.factory
        elif not _loopback(settings.host):
            raise LeaseholdError(
                "tls_required",
                f"the gateway may listen on {settings.host} only with TLS: set "
                "gateway.tls_certificate and gateway.tls_key, or listen on 127.0.0.1",
                kind=Kind.MALFORMED,
                path="gateway.tls_certificate",
                expected="a PEM file",
                got="nothing",
            )
        self.server = HttpServer(
            self.app,
            host=settings.host,
            port=settings.port,
            name="gateway",
            setting="gateway.port",
            clock=self.clock,
            limit_concurrency=settings.max_connections,
            http=http_protocol(settings.header_timeout_s),
            ws=GatewayWebSocket,
            ws_max_size=settings.max_body_bytes,
            ws_ping_interval=settings.ping_s,
            ws_ping_timeout=15.0,
            server_header=False,
            proxy_headers=False,
            **options,
        )
        await self.resources.enter_async_context(running(self.server))

    @property
    def url(self) -> str:
        """How tenants reach it."""
        assert self.server is not None
        return self.settings.url or self.server.url


def _tls13(_config: object, default: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
    context = default()
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _openapi() -> OpenAPIConfig:
    bearer = SecurityScheme(
        type="http",
        scheme="bearer",
        bearer_format="JWT",
        description="A tenant's token, signed with the account's key; for /v1 the operator's.",
    )
    return OpenAPIConfig(
        title="Leasehold",
        version=__version__,
        path="/schema",
        render_plugins=[JsonRenderPlugin(path="/openapi.json")],
        components=Components(security_schemes={"bearer": bearer}),
        use_handler_docstrings=True,
    )

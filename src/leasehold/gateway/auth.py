"""Who asks: a tenant by token or client certificate, or the operator by the operator's token.

Guards put the answer on the request. A route says what it needs::

    @get("/lease/{dseq:int}/…", guards=[tenant("status")])
    async def status(request: Request[Any, Any, Any], dseq: int, …): principal_of(request)

    @get("/v1/volumes", guards=[operator])
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from typing import Any, cast

from litestar.connection import ASGIConnection
from litestar.handlers.base import BaseRouteHandler

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.gateway.certificates import ClientCertificates
from leasehold.gateway.claims import FULL, Principal, denied
from leasehold.gateway.jwt import Tokens
from leasehold.gateway.protocol import PEER_CERTIFICATE

Connection = ASGIConnection[Any, Any, Any, Any]
Guard = Callable[[Connection, BaseRouteHandler], Awaitable[None]]

PRINCIPAL = "leasehold.principal"
OPERATOR = "leasehold.operator"
"""Keys of a request's state, once a guard knows who it is."""


class Authenticator:
    """Turns credentials into a :class:`Principal`. One per gateway, in ``app.state.auth``."""

    def __init__(
        self,
        *,
        tokens: Tokens | None,
        operator_token: str = "",
        provider: str = "",
        certificates: ClientCertificates | None = None,
    ) -> None:
        self.tokens = tokens
        self.provider = provider
        self.certificates = certificates
        self._operator_token = operator_token.encode()

    async def tenant(self, connection: Connection) -> Principal:
        """The tenant; UNAUTHENTICATED without credential, MALFORMED with two."""
        bearer = bearer_token(connection)
        certificate = connection.scope.get(PEER_CERTIFICATE)
        if certificate is not None and bearer is not None:
            raise LeaseholdError(
                "ambiguous_credentials",
                "give a client certificate or a token, not both",
                kind=Kind.MALFORMED,
            )
        if certificate is not None and self.certificates is not None:
            owner = await self.certificates.owner(cast(bytes, certificate))
            return Principal(owner, FULL, self.provider, "mtls")
        if bearer is None or self.tokens is None:
            raise unauthenticated("a token is needed: Authorization: Bearer …")
        claims = await self.tokens.check(bearer)
        return Principal(claims.iss, claims.leases, self.provider)

    def is_operator(self, connection: Connection) -> bool:
        """Whether the request carries the operator's token."""
        bearer = bearer_token(connection)
        return (
            bool(self._operator_token)
            and bearer is not None
            and hmac.compare_digest(bearer.encode("utf-8", "surrogatepass"), self._operator_token)
        )


def bearer_token(connection: Connection) -> str | None:
    """The bearer token of a request, None without an Authorization header."""
    values = [value for name, value in connection.scope["headers"] if name == b"authorization"]
    if not values:
        return None
    scheme, _, token = values[0].decode("latin-1").partition(" ")
    if len(values) > 1 or scheme.lower() != "bearer" or not token.strip():
        raise LeaseholdError(
            "authorization_header",
            "the Authorization header is malformed",
            kind=Kind.MALFORMED,
            expected="Bearer TOKEN",
        )
    return token.strip()


def tenant(scope: str) -> Guard:
    """A guard: the tenant's credential permits ``scope`` for the lease in the path.

    The path parameters ``dseq``, ``gseq``, ``oseq`` and ``service`` are taken into account where
    the route has them. A route of a whole deployment (no ``gseq``) is let through when the
    credential reaches any part of it; its handler asks for each lease.
    """

    async def guard(connection: Connection, _handler: BaseRouteHandler) -> None:
        auth: Authenticator = connection.app.state.auth
        principal = await auth.tenant(connection)
        path = connection.path_params
        if "gseq" in path:
            principal.require(
                scope, path["dseq"], path["gseq"], path["oseq"], path.get("service", "")
            )
        elif "dseq" in path and not principal.reaches(scope, path["dseq"]):
            raise denied(scope)
        connection.scope.setdefault("state", {})[PRINCIPAL] = principal

    return guard


async def any_tenant(connection: Connection, _handler: BaseRouteHandler) -> None:
    """A guard: some tenant; the handler checks what for."""
    auth: Authenticator = connection.app.state.auth
    connection.scope.setdefault("state", {})[PRINCIPAL] = await auth.tenant(connection)


async def operator(connection: Connection, _handler: BaseRouteHandler) -> None:
    """A guard: the operator's token."""
    auth: Authenticator = connection.app.state.auth
    if not auth.is_operator(connection):
        raise unauthenticated("the operator's token is needed (file operator.token)")
    connection.scope.setdefault("state", {})[OPERATOR] = True


def principal_of(connection: Connection) -> Principal:
    """Who a guard found."""
    return cast(Principal, connection.scope["state"][PRINCIPAL])


def unauthenticated(message: str) -> LeaseholdError:
    return LeaseholdError("unauthorized", message, kind=Kind.UNAUTHENTICATED)

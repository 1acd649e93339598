"""The HTTP and websocket protocols of the gateway: uvicorn's, with two things added.

The client's certificate of a TLS connection is put into the ASGI scope, which uvicorn does not do;
and a connection whose request headers do not arrive in time is closed, so that slow or silent
clients cannot hold connections.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

PEER_CERTIFICATE = "leasehold.peer_certificate"
"""Key of the ASGI scope under which the client's certificate (DER) is found; absent without one."""


def peer_certificate(transport: Any) -> bytes | None:
    """The client's certificate of a TLS connection, DER."""
    tls = transport.get_extra_info("ssl_object")
    return None if tls is None else tls.getpeercert(binary_form=True)


def http_protocol(header_timeout: float) -> type[HttpToolsProtocol]:
    """The protocol class that waits ``header_timeout`` seconds for the headers of a request."""

    class GatewayProtocol(HttpToolsProtocol):
        _deadline: asyncio.TimerHandle | None = None
        _certificate: bytes | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._certificate = peer_certificate(transport)
            self._arm()

        def connection_lost(self, exc: Exception | None) -> None:
            self._disarm()
            super().connection_lost(exc)

        def on_message_begin(self) -> None:
            super().on_message_begin()
            if self._certificate is not None:
                self.scope[PEER_CERTIFICATE] = self._certificate  # type: ignore[literal-required]
            if self._deadline is None:
                self._arm()

        def on_headers_complete(self) -> None:
            self._disarm()
            super().on_headers_complete()

        def _arm(self) -> None:
            self._deadline = self.loop.call_later(header_timeout, self._too_slow)

        def _disarm(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def _too_slow(self) -> None:
            self._deadline = None
            if not self.transport.is_closing():
                self.transport.close()

    return GatewayProtocol


class GatewayWebSocket(WebSocketsSansIOProtocol):
    """Puts the client's certificate into the scope."""

    async def run_asgi(self) -> None:
        certificate = peer_certificate(self.transport)
        if certificate is not None:
            self.scope[PEER_CERTIFICATE] = certificate  # type: ignore[literal-required]
        await super().run_asgi()

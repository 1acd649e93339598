"""An HTTP protocol that waits for nobody for long.

uvicorn waits for ever for the first request of a connection and for the rest of its headers. Here a
connection must bring a whole header within ``HEADER_SECONDS``, and only ``max_connections`` are
open at a time: the next one is closed at once, which costs a stranger more than it costs us.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from leasehold.core.metrics import counter

HEADER_SECONDS = 5.0
"""From a connection's opening, or the first byte after an answer, to the end of the header."""

MAX_CONNECTIONS = 2048

REFUSED = counter(
    "leasehold_images_connections_refused_total", "Connections closed by us", ["listener", "why"]
)


def protocol(
    listener: str,
    *,
    header_seconds: float = HEADER_SECONDS,
    max_connections: int = MAX_CONNECTIONS,
) -> type[HttpToolsProtocol]:
    """The protocol class for one listener (``uvicorn.Config(http=...)``)."""
    open_now: set[Any] = set()

    class Patience(HttpToolsProtocol):  # type: ignore[misc, unused-ignore]
        _deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(open_now) >= max_connections:
                REFUSED.labels(listener, "too_many").inc()
                transport.abort()
                return
            open_now.add(self)
            self._arm()

        def connection_lost(self, exc: Exception | None) -> None:
            open_now.discard(self)
            self._disarm()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self._deadline is None and (self.cycle is None or self.cycle.response_complete):
                self._arm()
            super().data_received(data)

        def on_headers_complete(self) -> None:
            self._disarm()
            super().on_headers_complete()

        def _arm(self) -> None:
            self._deadline = self.loop.call_later(header_seconds, self._late)

        def _disarm(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def _late(self) -> None:
            self._deadline = None
            REFUSED.labels(listener, "slow_header").inc()
            self.transport.abort()

    return Patience

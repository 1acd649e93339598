"""Counts and times every request of the API, and writes the audit log.

The audit log is one line ``audit`` for every request that may change something, was refused for
lack of rights, or opened a stream: who, what, from where, and how it ended. Who sent which manifest
is on the event log besides, for good.
"""

from __future__ import annotations

import time
from typing import Any

from leasehold.core import metrics
from leasehold.core.logs import get_logger
from leasehold.gateway.auth import OPERATOR, PRINCIPAL

log = get_logger(__name__)

REQUESTS = metrics.counter(
    "leasehold_gateway_requests_total", "requests answered", ["method", "route", "status"]
)
SECONDS = metrics.histogram(
    "leasehold_gateway_request_seconds", "request to the end of its answer", ["route"]
)
STREAMS = metrics.gauge("leasehold_gateway_streams", "websockets open")

READING = frozenset({"GET", "HEAD", "OPTIONS"})
METHODS = READING | {"POST", "PUT", "PATCH", "DELETE"}
"""Any other is counted as ``other``: a label's values are bounded."""

SHOWN_PATH = 200
"""Characters of a path in the log."""


class Accounting:
    """An ASGI application around ``api``."""

    def __init__(self, api: Any) -> None:
        self._api = api

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._api(scope, receive, send)
            return
        stream = scope["type"] == "websocket"
        method = "stream" if stream else scope["method"]
        began, status = time.perf_counter(), 101 if stream else 500

        async def answering(message: Any) -> None:
            nonlocal status
            kind = message["type"]
            if kind == "http.response.start":
                status = message["status"]
            elif kind == "websocket.accept":
                STREAMS.inc()
                scope["leasehold.open"] = True
            elif kind == "websocket.close":
                status = message.get("code", 1000)
            await send(message)

        try:
            await self._api(scope, receive, answering)
        finally:
            if scope.get("leasehold.open"):
                STREAMS.dec()
            route = scope.get("path_template") or "none"
            REQUESTS.labels(method if stream or method in METHODS else "other", route, status).inc()
            if not stream:
                SECONDS.labels(route).observe(time.perf_counter() - began)
            if method not in READING or status in (401, 403):
                _audit(scope, method, status)


def _audit(scope: Any, method: str, status: int) -> None:
    state = scope.get("state") or {}
    principal = state.get(PRINCIPAL)
    who = principal.owner if principal else "operator" if state.get(OPERATOR) else "nobody"
    client = scope.get("client")
    log.info(
        "audit",
        who=who,
        how=principal.how if principal else "",
        what=f"{method} {scope['path'][:SHOWN_PATH]}",
        status=status,
        address=client[0] if client else "",
    )

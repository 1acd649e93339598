"""The ops endpoint of a process: ``/metrics``, ``/livez``, ``/healthz`` and ``/readyz``.

``/livez`` and ``/healthz`` say that the process runs; ``/readyz`` is 503 with the reasons until
every check passes. A second process on the host takes the next free port.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from prometheus_client.exposition import choose_encoder

from leasehold.core.clock import Clock
from leasehold.core.errors import LeaseholdError
from leasehold.core.metrics import REGISTRY
from leasehold.core.ops_settings import OpsSettings
from leasehold.core.service import Service
from leasehold.core.web import HttpServer, bind

PORT_TRIES = 16
"""How many following ports a second process tries."""

Check = Callable[[], str | None]
"""Why this part is not ready; None when it is."""


class Ops(Service):
    """Serve the ops endpoint; parts add their readiness with :meth:`add_check`."""

    def __init__(self, settings: OpsSettings | None = None, *, clock: Clock | None = None) -> None:
        super().__init__("ops", clock=clock)
        self.settings = settings or OpsSettings()
        self._checks: dict[str, Check] = {}
        self.port = 0

    def add_check(self, name: str, check: Check) -> None:
        self._checks[name] = check

    def reasons(self) -> dict[str, str]:
        """What is not ready, and why."""
        return {name: why for name, check in self._checks.items() if (why := check())}

    async def start(self) -> None:
        server = HttpServer(
            self._app,
            host=self.settings.host,
            port=self._free_port(),
            name="ops",
            setting="ops.port",
            clock=self.clock,
        )
        self.server = server
        self._serving = self.spawn(server.serve(), name="serve")
        await server._started.wait()
        self.port = server.port

    async def stop(self) -> None:
        await self.server.shutdown()

    def _free_port(self) -> int:
        first = self.settings.port
        for port in range(first, first + PORT_TRIES if first else 1):
            try:
                bind(self.settings.host, port, what="ops", setting="ops.port").close()
                return port
            except LeaseholdError as error:
                if error.code != "port_in_use":
                    raise
        return 0

    async def _app(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        path, status, kind = scope["path"], 200, "application/json"
        if path == "/metrics":
            accept = next((v.decode() for k, v in scope["headers"] if k == b"accept"), "")
            encode, kind = choose_encoder(accept)
            body = encode(REGISTRY)
        elif path in ("/livez", "/healthz"):
            body = b"{}"
        elif path == "/readyz":
            reasons = self.reasons()
            status = 503 if reasons else 200
            body = json.dumps({"ready": not reasons, "reasons": reasons}).encode()
        else:
            status, body = 404, b"{}"
        headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


async def _lifespan(receive: Any, send: Any) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return

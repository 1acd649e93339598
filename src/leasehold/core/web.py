"""An ASGI application as a service.

The socket is bound before anything else starts, so that a port in use is a clear error naming its
holder and the setting to change, and so that ``port=0`` can be asked for the real one. With
``path`` it is a Unix socket that only this user can open, for processes of the same machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn

from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.core.service import Service

DRAIN_SECONDS = 5
"""How long open requests may take to finish once a stop was asked for."""

BACKLOG = 2048


class HttpServer(Service):
    """Serve ``app`` on ``host:port``; ``setting`` names what to change when the port is taken.

    ``options`` go to ``uvicorn.Config`` (TLS files, ``http`` protocol class, limits). The bound
    address is in :attr:`host` and :attr:`port` once started.
    """

    def __init__(
        self,
        app: Any,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        path: Path | None = None,
        name: str = "http",
        setting: str = "",
        clock: Clock | None = None,
        **options: Any,
    ) -> None:
        super().__init__(name, clock=clock)
        self.app = app
        self.host = host
        self.port = port
        self.path = path
        self.setting = setting
        self.options = options

    async def start(self) -> None:
        if self.path is not None:
            sock = bind_path(self.path)
        else:
            sock = bind(self.host, self.port, what=self.name, setting=self.setting)
            self.port = sock.getsockname()[1]
        self.resources.callback(sock.close)
        config = uvicorn.Config(
            self.app,
            log_level="error",  # below that it tells of peers who do not speak HTTP
            access_log=False,
            interface="asgi3",
            lifespan=self.options.pop("lifespan", "off"),
            timeout_graceful_shutdown=DRAIN_SECONDS,
            **self.options,
        )
        self._server = _Server(config)
        serving = self.spawn(self._server.serve(sockets=[sock]), name="serve")
        ready = self.spawn(self._server.ready.wait(), name="ready")
        await asyncio.wait({serving, ready}, return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            ready.cancel()
            raise LeaseholdError(
                "http_start_failed", f"{self.name} could not start", kind=Kind.INTERNAL
            )

    async def stop(self) -> None:
        self._server.should_exit = True
        await self._server.ended.wait()

    @property
    def url(self) -> str:
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::", "") else self.host
        scheme = "https" if self.options.get("ssl_certfile") else "http"
        return f"{scheme}://{host}:{self.port}"


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the process has one owner, and it is not this."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()
        self.ended = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if not self.should_exit:
            self.ready.set()

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().serve(sockets=sockets)
        finally:
            self.ended.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def bind(host: str, port: int, *, what: str, setting: str = "") -> socket.socket:
    """A listening TCP socket, or LeaseholdError ``port_in_use`` / ``cannot_bind``."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol given, asyncio turns Nagle's algorithm off for accepted connections; without
    # it every answer in two writes waits 40 ms for the client's delayed acknowledgement.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        change = f"; set {setting} to another port" if setting else ""
        if error.errno == errno.EADDRINUSE:
            raise LeaseholdError(
                "port_in_use",
                f"{what} needs port {port}, which is held by {holder_of(port)}{change}",
                kind=Kind.UNAVAILABLE,
                path=setting,
                got=port,
            ) from None
        raise LeaseholdError(
            "cannot_bind",
            f"{what} cannot listen on {host}:{port}: {error.strerror}{change}",
            kind=Kind.UNAVAILABLE,
            path=setting,
            got=port,
        ) from None
    sock.setblocking(False)
    return sock


def bind_path(path: Path) -> socket.socket:
    """A listening Unix socket at ``path``, in place of one left behind there."""
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(str(path))
        path.chmod(0o600)  # nobody gets in before it listens
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise LeaseholdError(
            "cannot_bind", f"cannot listen on {path}: {error.strerror or error}", path=str(path)
        ) from None
    sock.setblocking(False)
    return sock


def holder_of(port: int) -> str:
    """The process that listens on ``port``, as far as /proc tells: ``docker-registry (pid 12)``."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                    inodes.add(f"socket:[{fields[9]}]")
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            for fd in (process / "fd").iterdir():
                with contextlib.suppress(OSError):
                    if str(fd.readlink()) in inodes:
                        name = (process / "comm").read_text().strip()
                        return f"{name} (pid {process.name})"
    return "another process"

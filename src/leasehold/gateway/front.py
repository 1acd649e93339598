"""The dashboard's front door: it decides what is a page and what is the API, and keeps the pages'
process.

The dashboard is a process of its own and a client of the API like any other. It has no authority:
it carries the visitor's credential, and what that credential may not see, no page can show. A page
that fails, blocks or eats memory costs the provider nothing, and ``leasehold up`` is not slowed by
importing what pages need: the process is started at the first visit and ended when nobody looks.

Pages and their websocket are passed on over a Unix socket; another one leads back to the API. Only
reading requests are passed on: whatever a visitor does goes through the websocket, and that is
opened only to pages of this very origin. There is no cookie for another site to ride on.

The child ends with this process, however it ends: it reads from a pipe whose other end is ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from websockets.asyncio.client import ClientConnection, unix_connect
from websockets.exceptions import ConnectionClosed, WebSocketException

from leasehold.core.clock import Clock
from leasehold.core.errors import LeaseholdError, unavailable
from leasehold.core.logs import get_logger
from leasehold.core.service import Service, running
from leasehold.core.web import HttpServer
from leasehold.gateway.settings import GatewaySettings

START_WAIT = 30.0
"""Seconds the dashboard's process may take to answer."""

AGAIN = 2.0
"""Seconds between two starts of a process that does not stay."""

LONGEST_PATH = 90
"""Bytes of a Unix socket's path that are safe (the kernel's limit is 108)."""

MESSAGE_BYTES = 16 << 20
"""Largest websocket message from the pages; a browser's is bounded as a request's body is."""

POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Nothing is loaded from elsewhere or sent elsewhere. Vue compiles templates, hence eval."""

HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
_PASSED_BACK = {"content-type", "content-length", "content-encoding", "cache-control", "etag",
                "last-modified", "location", "vary"}  # fmt: skip
_PASSED_ON = {"accept", "accept-encoding", "accept-language", "if-none-match",
              "if-modified-since", "user-agent"}  # fmt: skip

Command = Callable[[Path, Path], Sequence[str]]
"""Makes the command line from where the pages are to be served and where the API is."""

log = get_logger(__name__)


def is_page(path: str) -> bool:
    """Whether the dashboard answers for a path; everything else is the API's."""
    return path in ("/", "/favicon.ico") or path.startswith(("/ui/", "/_nicegui"))


class Front(Service):
    """Stands before the API; ``folder`` is where its sockets are made.

    Give ``around`` to the gateway as ``wrap``, start the gateway, then this.
    """

    def __init__(
        self, folder: Path, command: Command, settings: GatewaySettings, *, clock: Clock
    ) -> None:
        super().__init__("dashboard", clock=clock)
        self.folder = folder
        self.command = command
        self.settings = settings
        self.api: Any = None
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()
        self._tried = -AGAIN
        self._open = 0
        self._sockets = 0
        self._left = clock.monotonic()

    def around(self, api: Any) -> Any:
        """The application to serve in the place of ``api``."""
        self.api = api
        return self

    async def start(self) -> None:
        if self.settings.dashboard == "off":
            return
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if len(str(self.folder)) > LONGEST_PATH:
            self.folder = Path(tempfile.mkdtemp(prefix="leasehold-dashboard-"))
            self.resources.callback(shutil.rmtree, self.folder, ignore_errors=True)
        self.pages = self.folder / "pages.sock"
        api = HttpServer(
            self.api, path=self.folder / "api.sock", name="dashboard api", clock=self.clock,
            server_header=False, proxy_headers=False,
        )  # fmt: skip
        await self.resources.enter_async_context(running(api))
        self._http = httpx.AsyncClient(
            # No TLS on a Unix socket; loading the roots for it would take a tenth of a second.
            transport=httpx.AsyncHTTPTransport(verify=False, uds=str(self.pages)),
            timeout=httpx.Timeout(START_WAIT, read=60.0),
            trust_env=False,
        )
        self.resources.push_async_callback(self._http.aclose)
        self.resources.push_async_callback(self._end)
        if self.settings.dashboard == "start":
            self.spawn(self._warm(), name="warm")
        self.spawn(self._retire(), name="retire")

    # -- the process ------------------------------------------------------------------------------

    async def _warm(self) -> None:
        await self._started.wait()
        with contextlib.suppress(LeaseholdError, TimeoutError):
            await self._up()

    async def _up(self) -> None:
        """The process runs and answers; LeaseholdError ``dashboard_down`` when it does not."""
        if self._process is not None and self._process.returncode is None:
            return
        async with self._turn:
            if self._process is not None and self._process.returncode is None:
                return
            if not self._started.is_set() or self.stopping:
                raise unavailable(
                    "dashboard_down", "the provider is starting or stopping", retry_after=1.0
                )
            await self.clock.sleep(max(0.0, self._tried + AGAIN - self.clock.monotonic()))
            self._tried = self.clock.monotonic()
            await self._launch()

    async def _launch(self) -> None:
        process = await asyncio.create_subprocess_exec(
            *self.command(self.pages, self.folder / "api.sock"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        try:
            async with self.clock.timeout(START_WAIT):
                said = await process.stdout.readline()
        except BaseException:
            process.kill()
            await process.wait()
            raise
        if not said:
            code = await process.wait()
            log.warning("dashboard.failed", code=code)
            raise unavailable(
                "dashboard_down",
                "the dashboard's process did not start; the provider is not affected, and its log "
                "says why",
                retry_after=AGAIN,
            )
        self._process = process
        self._left = self.clock.monotonic()
        seconds = round(self.clock.monotonic() - self._tried, 3)
        log.info("dashboard.up", pid=process.pid, seconds=seconds)

    async def _retire(self) -> None:
        """End the process when nobody has looked for a while."""
        while True:
            idle = self.clock.monotonic() - self._left
            await self.clock.sleep(max(1.0, self.settings.dashboard_idle_s - idle))
            idle = self.clock.monotonic() - self._left
            if not self._open and idle >= self.settings.dashboard_idle_s:
                await self._end()

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is None or process.returncode is not None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            async with self.clock.timeout(3.0):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()

    # -- passing on -------------------------------------------------------------------------------

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        kind = scope["type"]
        shown = self.settings.dashboard != "off" and kind in ("http", "websocket")
        if not shown or not is_page(scope["path"]):
            await self.api(scope, receive, send)
        else:
            self._open += 1
            try:
                if kind == "http":
                    await self._page(scope, send)
                else:
                    await self._socket(scope, receive, send)
            finally:
                self._open -= 1
                self._left = self.clock.monotonic()

    async def _page(self, scope: Any, send: Any) -> None:
        if scope["method"] not in ("GET", "HEAD"):
            await _say(send, 405, "The dashboard is read here; what you do goes by its websocket.")
            return
        headers = [(k, v) for k, v in _headers(scope) if k in _PASSED_ON]
        url = f"http://{_header(scope, 'host') or 'localhost'}{_target(scope)}"
        started = False
        try:
            await self._up()
            request = self._http.build_request(scope["method"], url, headers=headers)
            response = await self._http.send(request, stream=True)
            try:
                await send(
                    {
                        "type": "http.response.start",
                        "status": response.status_code,
                        "headers": [
                            (k.lower().encode(), v.encode("latin-1"))
                            for k, v in response.headers.multi_items()
                            if k.lower() in _PASSED_BACK
                        ]
                        + HEADERS,
                    }
                )
                started = True
                async for chunk in response.aiter_raw():
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
            finally:
                await response.aclose()
        except (httpx.HTTPError, httpx.InvalidURL, LeaseholdError, TimeoutError, OSError) as error:
            log.warning("dashboard.no_page", path=scope["path"][:200], error=repr(error))
            if not started:
                await _say(send, 503, f"The dashboard does not answer: {error}. Try again soon.")

    async def _socket(self, scope: Any, receive: Any, send: Any) -> None:
        if (await receive())["type"] != "websocket.connect":
            return
        host, origin = _header(scope, "host"), urlsplit(_header(scope, "origin"))
        if not host or origin.netloc.lower() != host.lower():
            log.warning("dashboard.foreign_origin", origin=origin.geturl()[:200])
            await send({"type": "websocket.close", "code": 4403})
            return
        if self._sockets >= self.settings.dashboard_visits:
            await send({"type": "websocket.close", "code": 4429})
            return
        self._sockets += 1
        try:
            await self._up()
            async with self._connect(scope, host) as upstream:
                await send({"type": "websocket.accept"})
                await _carry(upstream, receive, send)
        except (WebSocketException, LeaseholdError, TimeoutError, OSError) as error:
            log.warning("dashboard.no_socket", error=repr(error))
        finally:
            self._sockets -= 1
        with contextlib.suppress(Exception):
            await send({"type": "websocket.close", "code": 1001})

    @contextlib.asynccontextmanager
    async def _connect(self, scope: Any, host: str) -> AsyncIterator[ClientConnection]:
        async with unix_connect(
            str(self.pages),
            f"ws://{host}{_target(scope)}",
            compression=None,
            max_size=MESSAGE_BYTES,
            open_timeout=10.0,
            ping_interval=None,
        ) as upstream:
            yield upstream


async def _carry(upstream: ClientConnection, receive: Any, send: Any) -> None:
    """Carry messages both ways until one side is gone."""

    async def down() -> None:
        with contextlib.suppress(ConnectionClosed):
            async for message in upstream:
                key = "text" if isinstance(message, str) else "bytes"
                await send({"type": "websocket.send", key: message})

    async def up() -> None:
        with contextlib.suppress(ConnectionClosed):
            while (message := await receive())["type"] == "websocket.receive":
                text = message.get("text")
                await upstream.send(text if text is not None else message["bytes"])

    async with asyncio.TaskGroup() as tasks:
        both = {tasks.create_task(down()), tasks.create_task(up())}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        for task in both:
            task.cancel()


async def _say(send: Any, status: int, text: str) -> None:
    body = text.encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"retry-after", b"2"), *HEADERS]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _headers(scope: Any) -> list[tuple[str, str]]:
    return [(k.decode("latin-1").lower(), v.decode("latin-1")) for k, v in scope["headers"]]


def _header(scope: Any, name: str) -> str:
    return next((value for key, value in _headers(scope) if key == name), "")


def _target(scope: Any) -> str:
    path: bytes = scope.get("raw_path") or scope["path"].encode()
    query: bytes = scope.get("query_string") or b""
    return (path + (b"?" + query if query else b"")).decode("latin-1")

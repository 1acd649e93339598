"""The application: one NiceGUI page for every path.

The page itself holds nothing but the theme; what it shows comes over its websocket once the browser
has said its session's key. So there is nothing to steal by loading it, and no request of another
site that could act.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI
from nicegui import Client, app, core, ui
from nicegui.element import Element

from leasehold.core.clock import Clock
from leasehold.core.logs import get_logger
from leasehold.dashboard.api import Api
from leasehold.dashboard.sessions import Sessions
from leasehold.dashboard.signin import SignIn
from leasehold.dashboard.visit import Visit

STATIC = Path(__file__).with_name("static")

KEY_WAIT = 10.0
"""Seconds a browser may take to say its session's key."""

log = get_logger(__name__)


def application(api: Path, ledger: str, sessions: Sessions, clock: Clock) -> FastAPI:
    """The ASGI application; ``api`` is the socket of the gateway's API."""
    tabs: dict[str, set[Visit]] = {}
    web = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    head = (
        f"<script>{(STATIC / 'shell.js').read_text()}</script>"
        f"<style>{(STATIC / 'theme.css').read_text()}</style>"
        '<meta name="description" content="Leases, workloads and what they wait for.">'
    )

    async def page(client: Client) -> None:
        ui.add_head_html(head)
        client.content.classes("frame", remove="nicegui-content")
        for element in client.page_container.descendants():
            if element.tag == "q-page":
                element._props["role"] = "presentation"  # it is a <main> around ours
        root = Element("div")
        root._props["class"] = "root"
        gone = asyncio.Event()
        current: list[Visit | SignIn] = []

        def left() -> None:
            gone.set()
            for visit in current:
                visit.end()

        client.on_delete(left)
        await client.connected()
        try:
            place = await client.run_javascript("leasehold.place()", timeout=KEY_WAIT)
        except TimeoutError:
            return
        await _serve(client, root, str(place["key"]), str(place["path"]), current, gone)

    async def _serve(
        client: Client, root: Element, key: str, path: str,
        current: list[Visit | SignIn], gone: asyncio.Event,
    ) -> None:  # fmt: skip
        credential = sessions.find(key, clock.now()) if key else None
        if credential is None or path.startswith("/ui/sign-in"):
            signin = SignIn(client, root, api, ledger, sessions, clock, path)
            current.append(signin)
            await signin.run()
            return

        def leave(reason: str) -> None:
            """Sign out, in every tab of this session."""
            sessions.close(key)
            for tab in tuple(tabs.get(key, ())):
                tab.client.run_javascript(f"leasehold.leave({json.dumps(quote(reason))})")
                tab.end()

        until = sessions.until(key)
        visit = Visit(client, root, Api(api, ledger, credential), clock, leave, until)
        current.append(visit)
        tabs.setdefault(key, set()).add(visit)
        for changed in (client.on_connect, client.on_disconnect):
            changed(lambda: visit.seen(client.has_socket_connection))
        with client:
            ui.on("leasehold-go", lambda event: visit.go(str(event.args), shown=True))
        try:
            if not gone.is_set():
                await visit.run(path)
        finally:
            tabs[key].discard(visit)
            if not tabs[key]:
                del tabs[key]

    async def anywhere(client: Client, rest: str) -> None:
        await page(client)

    ui.page("/", title="Leasehold")(page)
    ui.page("/ui/{rest:path}", title="Leasehold")(anywhere)

    app.on_exception(_failed)
    core.app.config.socket_io_js_transports = ["websocket"]
    ui.run_with(
        web, title="Leasehold", favicon=STATIC / "favicon.svg", dark=None, tailwind=False,
        reconnect_timeout=10.0, show_welcome_message=False, binding_refresh_interval=None,
    )  # fmt: skip
    core.app.config.socket_io_js_transports = ["websocket"]
    return web


def _failed(error: Exception) -> Any:
    log.error("dashboard.failed", error=repr(error), exc_info=error)

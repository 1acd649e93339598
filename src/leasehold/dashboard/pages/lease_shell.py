"""A shell in a service: a terminal in the page, the gateway's websocket behind it."""

from __future__ import annotations

import asyncio
import struct
from typing import TYPE_CHECKING, Any

import msgspec
from nicegui import ui
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from leasehold.core.errors import LeaseholdError
from leasehold.dashboard import parts
from leasehold.dashboard.tree import Node, foreign, h

if TYPE_CHECKING:
    from leasehold.dashboard.pages.lease import Lease

OUT, ERR, RESULT, FAILURE, IN, RESIZE = 100, 101, 102, 103, 104, 105
"""First bytes of frames, as ``gateway.streams`` has them."""

SIZE = struct.Struct(">HH")
DEFAULT = "/bin/sh"


class Shell:
    """The shell tab. One session at a time; leaving the page ends it."""

    def __init__(self, page: Lease) -> None:
        self.page = page
        self.connection: ClientConnection | None = None
        self.terminal: Any = None
        self.outcome = ""
        self._turn = 0
        self._drawn = asyncio.Event()
        self._size = (80, 24)

    async def open(self, fields: dict[str, Any]) -> None:
        """Start a command and show it until it ends."""
        service, _, replica = str(fields.get("service", "")).rpartition("-")
        command = str(fields.get("command") or DEFAULT).split()
        if not service or not replica.isdigit():
            raise LeaseholdError("no_replica", "no replica runs to open a shell in")
        page = self.page
        self.outcome = ""
        self._turn += 1
        async with page.api.terminal(page.lease, service, int(replica), command) as connection:
            self.connection = connection
            page.visit.refresh()
            try:
                await self._talk(connection)
            except ConnectionClosed as closed:
                reason = closed.rcvd.reason if closed.rcvd else ""
                self.outcome = reason or self.outcome or "the session ended"
            finally:
                self.connection = self.terminal = None
                self._drawn.clear()
                page.visit.refresh()

    async def _talk(self, connection: ClientConnection) -> None:
        async for frame in connection:
            if not isinstance(frame, bytes) or not frame:
                continue
            kind, data = frame[0], frame[1:]
            if kind in (OUT, ERR):
                await self._drawn.wait()
                self.terminal.write(data)
            elif kind == RESULT:
                code = msgspec.json.decode(data).get("exit_code")
                self.outcome = f"ended with exit code {code}"
            elif kind == FAILURE:
                self.outcome = "it could not be started"

    async def typed(self, event: Any) -> None:
        if self.connection is not None:
            await self.connection.send(bytes([IN]) + str(event.data).encode())

    async def resized(self, event: Any) -> None:
        self._size = (int(event.cols), int(event.rows))
        if self.connection is not None:
            await self.connection.send(bytes([RESIZE]) + SIZE.pack(*self._size))

    async def _end(self, _: Any) -> None:
        if self.connection is not None:
            await self.connection.close()

    def _make(self) -> Any:
        self.terminal = ui.xterm(
            {"cursorBlink": True, "fontSize": 13, "scrollback": 2000, "screenReaderMode": True,
             "theme": {"background": "#101216"}},
            on_data=self.typed, on_resize=self.resized,
        )  # fmt: skip
        self.terminal._props["class"] = "terminal"
        self.terminal.fit()
        self._drawn.set()
        return self.terminal

    def view(self) -> list[Node | None]:
        services = self.page.status.get("services", {})
        names = [
            f"{name}-{replica['number']}"
            for name, service in services.items()
            for replica in service.get("running", ())
            if replica["state"] == "running"
        ]
        if self.connection is not None:
            return [
                h("div",
                  h("button", "End the session", type="button",
                    class_="button danger terminal-leave", on={"click": self._end}),
                  h("span", "Keys go to the shell, Tab too; F6 leaves the terminal.",
                    class_="soft"), class_="filters"),
                h("div", foreign(f"terminal-{self._turn}", self._make), class_="terminal-box"),
            ]  # fmt: skip
        if not names:
            return [parts.empty("No replica runs to open a shell in.")]
        return [
            h(
                "form",
                parts.choice("Replica", "service", [(n, n) for n in names], names[0],
                             lambda _: None),
                parts.field("Command", name="command", value=DEFAULT, autocomplete="off"),
                h("button", "Open", type="submit", class_="button main"),
                on={"submit": self.open}, class_="filters",
            ),
            h("p", self.outcome, class_="soft", role="status") if self.outcome else None,
        ]  # fmt: skip

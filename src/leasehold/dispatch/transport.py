"""What a transport must offer, seen from both ends of a stream.

A *link* is one open stream. ``send`` and ``receive`` are each called by one task at a time and
never cancelled half-way by the code above; ``receive`` returns None when the peer is gone,
however it went. Several messages given to one ``send`` may travel together if the peer's hello says
``batch``; they are received one by one all the same. Closing a link ends both ends.

Transports are found by the name of their type in :data:`TRANSPORTS` and loaded when they are used,
so that managers, pools and tasks know none of them.
"""

from __future__ import annotations

import importlib
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from leasehold.dispatch.wire import Hello, Request, Response


class WorkerLink(Protocol):
    """A manager's end: requests go out, responses come in."""

    @property
    def hello(self) -> Hello:
        """What the worker said about itself; complete once anything was received."""
        ...

    async def send(self, *requests: Request) -> None: ...

    async def receive(self) -> Response | None: ...

    async def close(self) -> None: ...


class ManagerLink(Protocol):
    """A worker's end: requests come in, responses go out."""

    @property
    def hello(self) -> Hello: ...

    async def send(self, *responses: Response) -> None: ...

    async def receive(self) -> Request | None: ...


class Dialer(Protocol):
    """Opens links to workers of one transport type."""

    type: str

    def check(self, address: str) -> None:
        """LeaseholdError ``bad_address`` when the text can be no address of this transport."""
        ...

    async def dial(self, address: str) -> WorkerLink:
        """Open a stream to ``host:port``; LeaseholdError ``dial_refused`` when it may not be
        dialled. That nobody answers may also show only when the first message is sent."""
        ...


OnStream = Callable[[ManagerLink], Awaitable[None]]


class Listener(Protocol):
    """Accepts managers' streams; each one runs ``on_stream`` until it returns or the peer goes."""

    type: str

    async def start(self, on_stream: OnStream, hello: Hello) -> str:
        """Start accepting; returns the address to announce. ``hello`` is what managers are told."""
        ...

    async def stop(self) -> None:
        """End every stream and stop accepting."""
        ...


class LinkClosed(Exception):
    """The peer of a link is gone."""


TRANSPORTS: dict[str, str] = {"grpc": "leasehold.dispatch.grpc_transport"}
"""Module of each transport type. It has ``make_dialer(settings)``, ``make_listener(settings)``,
``make_attach_server(settings)`` and ``attach(settings, address, hello)``."""


def load(type: str) -> Any:
    """The module of a transport type; KeyError for an unknown one."""
    return importlib.import_module(TRANSPORTS[type])

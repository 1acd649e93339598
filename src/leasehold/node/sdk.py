"""Write a service in ten lines. Standard library only.

::

    from leasehold.node.sdk import Refused, Service

    service = Service()

    @service.function
    def greet(name: str) -> str:
        if not name:
            raise Refused("say who")
        return f"hello {name}"

    service.serve()

Functions are called one at a time, over JSON-RPC 2.0, one JSON text a line. A returned object
becomes the reply with ``success: true`` added; any other value becomes its ``value``.
:class:`Refused` answers ``success: false`` with the message as ``error``; every other exception is
a JSON-RPC error and goes to the service's log. ``service.context`` says who calls while a function
runs: ``caller``, ``owner``, ``host`` and ``run``. ``service.data`` is a directory that survives
restarts and updates; ``service.config`` is the configuration of the package.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from leasehold.node.sockets import listen

MAX_LINE = 4 << 20
"""Bytes of one request; ``LEASEHOLD_MAX_CALL_BYTES`` overrides it."""

SEND_TIMEOUT = 10.0
"""Seconds a caller may take to read its reply before it is dropped."""


class Refused(Exception):
    """The answer is no: ``{"success": false, "error": …}``."""


class Context(NamedTuple):
    """Who calls: ``caller`` and ``owner`` are peer ids, ``host`` is this node, ``run`` the id of
    the run or request the call belongs to."""

    caller: str = ""
    owner: str = ""
    host: str = ""
    run: str = ""


class Service:
    """Functions by name, and the loop that answers them."""

    def __init__(self) -> None:
        self.functions: dict[str, Callable[..., Any]] = {}
        self.context = Context()
        self.data = os.environ.get("LEASEHOLD_DATA", os.getcwd())
        self.config: dict[str, Any] = json.loads(os.environ.get("LEASEHOLD_CONFIG", "{}"))
        self.max_line = int(os.environ.get("LEASEHOLD_MAX_CALL_BYTES", MAX_LINE))

    def function(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Make ``fn`` callable under its name."""
        self.functions[fn.__name__] = fn
        return fn

    def serve(self) -> None:
        """Answer until the process is ended."""
        # The first process of a container gets no signal it has no handler for.
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        with _listener() as listener, selectors.DefaultSelector() as selector:
            buffers: dict[socket.socket, bytes] = {}
            selector.register(listener, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is listener:
                        sock, _address = listener.accept()
                        sock.settimeout(SEND_TIMEOUT)
                        buffers[sock] = b""
                        selector.register(sock, selectors.EVENT_READ)
                    else:
                        self._read(key.fileobj, buffers, selector)  # type: ignore[arg-type]

    def _read(
        self,
        sock: socket.socket,
        buffers: dict[socket.socket, bytes],
        selector: selectors.BaseSelector,
    ) -> None:
        try:
            data = sock.recv(65536)
            *lines, buffers[sock] = (buffers[sock] + data).split(b"\n")
            for line in lines:
                if (reply := self.answer(line)) is not None:
                    sock.sendall(reply)
            if not data or len(buffers[sock]) > self.max_line:
                raise OSError("closed or too long")
        except OSError:
            selector.unregister(sock)
            buffers.pop(sock, None)
            sock.close()

    def answer(self, line: bytes) -> bytes | None:
        """The reply to one request, None for a notification."""
        try:
            request = json.loads(line)
        except ValueError:
            return _error(None, -32700, "not JSON")
        if not isinstance(request, dict) or not isinstance(request.get("method"), str):
            return _error(None, -32600, "not a request")
        n, method = request.get("id"), request["method"]
        params = request.get("params", [])
        if method == "system.ready":
            return _result(n, {"success": True, "error": ""})
        if method == "system.functions":
            return _result(n, {"success": True, "error": "", "functions": self._signatures()})
        fn = self.functions.get(method)
        if fn is None:
            return _error(n, -32601, f"no function {method!r}; there are {sorted(self.functions)}")
        envelope = request.get("context") or {}
        self.context = Context(**{k: str(envelope.get(k, "")) for k in Context._fields})
        try:
            value = fn(**params) if isinstance(params, dict) else fn(*params)
        except Refused as refused:
            value = {"success": False, "error": str(refused)}
        except Exception as error:
            if isinstance(error, TypeError) and _not_entered(error):
                return _error(n, -32602, str(error))
            sys.excepthook(type(error), error, error.__traceback__)
            return _error(n, -32603, f"{type(error).__name__}: {error}")
        if not isinstance(value, dict):
            value = {} if value is None else {"value": value}
        if "success" not in value:
            value = {"success": True, "error": "", **value}
        if n is None:
            return None
        return _result(n, value)

    def _signatures(self) -> dict[str, str]:
        import inspect  # Late: it is a third of what a service needs to start.

        return {name: str(inspect.signature(fn)) for name, fn in sorted(self.functions.items())}


def _not_entered(error: TypeError) -> bool:
    """Whether the arguments did not fit, so that the function never began."""
    return error.__traceback__ is not None and error.__traceback__.tb_next is None


def _listener() -> socket.socket:
    """The socket handed over as descriptor 3, else one at ``LEASEHOLD_SOCKET``."""
    if os.environ.get("LISTEN_FDS") == "1" and os.environ.get("LISTEN_PID") == str(os.getpid()):
        return socket.socket(fileno=3)
    path = os.environ.get("LEASEHOLD_SOCKET")
    if not path:
        sys.exit("no socket: start this with a node, or set LEASEHOLD_SOCKET to a path")
    return listen(path)


def _result(n: Any, value: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": n, "result": value}).encode() + b"\n"


def _error(n: Any, code: int, message: str) -> bytes:
    error = {"code": code, "message": message}
    return json.dumps({"jsonrpc": "2.0", "id": n, "error": error}).encode() + b"\n"

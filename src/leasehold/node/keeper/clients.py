"""The keeper: processes, and those who ask for them on ``keeper.sock``. Standard library only."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import selectors
import signal
import socket
import time
from typing import Any

from leasehold.node.keeper.loop import Loop
from leasehold.node.keeper.process import Process
from leasehold.node.keeper.watch import TERM_GRACE, Watch
from leasehold.node.sockets import listen

IDLE_EXIT = 30.0
"""Seconds without a client and without a service after which a keeper has no reason to be."""

CHECK_PERIOD = 2.0
"""Seconds between looks whether the state folder still exists."""

MAX_LINE = 1 << 20
MAX_PENDING = 4 << 20
"""Bytes queued for a client that does not read; then it is dropped."""

PR_SET_CHILD_SUBREAPER = 36


class Client:
    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.incoming = b""
        self.outgoing = b""


class Keeper(Watch):
    """Serves one state folder until nobody needs it any more."""

    def __init__(self, root: str) -> None:
        super().__init__(root, Loop())
        self.path = os.path.join(root, "keeper.sock")
        self.clients: set[Client] = set()
        self.idle_since = time.monotonic()

    def run(self, ready: int) -> None:
        """Serve; a byte is written to ``ready`` once clients can connect."""
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self.loop.on_signal(self.reap)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._on_term)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self.adopt()
        server = listen(self.path)
        server.setblocking(False)
        inode = os.stat(self.path).st_ino
        self.loop.when_readable(server, lambda: self._connected(server))
        os.write(ready, b"1")
        os.close(ready)
        self.loop.later(CHECK_PERIOD, self._check, inode)
        while self.loop.running:
            self.loop.turn()
        with contextlib.suppress(OSError):
            os.unlink(self.path)

    def _on_term(self, *_: Any) -> None:
        # Services stay: the next keeper adopts them.
        self.loop.running = False

    def _check(self, inode: int) -> None:
        try:
            gone = os.stat(self.path).st_ino != inode
        except OSError:
            gone = True
        if self.clients or self.processes:
            self.idle_since = time.monotonic()
        if gone or time.monotonic() - self.idle_since > IDLE_EXIT:
            # The state folder was removed, or nobody needs us.
            self._end()
        else:
            self.loop.later(CHECK_PERIOD, self._check, inode)

    def _end(self) -> None:
        self.end_all()
        self.loop.running = False

    def changed(self, process: Process) -> None:
        for client in list(self.clients):
            self._send(client, {"process": process.view()})

    # -- connections --------------------------------------------------------------------------

    def _connected(self, server: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            sock, _ = server.accept()
            sock.setblocking(False)
            client = Client(sock)
            self.clients.add(client)
            self.loop.selector.register(
                sock, selectors.EVENT_READ, lambda mask: self._active(client, mask)
            )

    def _active(self, client: Client, mask: int) -> None:
        if client not in self.clients:
            return
        if mask & selectors.EVENT_WRITE:
            self._flush(client)
        if mask & selectors.EVENT_READ:
            try:
                data = client.sock.recv(65536)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            client.incoming += data
            *lines, client.incoming = client.incoming.split(b"\n")
            for line in lines:
                self._request(client, line)
            if not data or len(client.incoming) > MAX_LINE:
                self._drop(client)

    def _drop(self, client: Client) -> None:
        if client in self.clients:
            self.clients.discard(client)
            self.loop.forget(client.sock)
            client.sock.close()

    def _send(self, client: Client, message: dict[str, Any]) -> None:
        if client in self.clients:
            client.outgoing += json.dumps(message, separators=(",", ":")).encode() + b"\n"
            self._flush(client)

    def _flush(self, client: Client) -> None:
        try:
            while client.outgoing:
                sent = client.sock.send(client.outgoing)
                client.outgoing = client.outgoing[sent:]
        except BlockingIOError:
            pass
        except OSError:
            self._drop(client)
            return
        if len(client.outgoing) > MAX_PENDING:
            self._drop(client)
            return
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if client.outgoing else 0)
        key = self.loop.selector.get_key(client.sock)
        if key.events != events:
            self.loop.selector.modify(client.sock, events, key.data)

    # -- requests -----------------------------------------------------------------------------

    def _request(self, client: Client, line: bytes) -> None:
        try:
            request = json.loads(line)
            n, op = request["n"], request["op"]
        except (ValueError, KeyError, TypeError):
            self._drop(client)
            return

        def answer(view: dict[str, Any]) -> None:
            self._send(client, {"n": n, "process": view or None})

        if op == "list":
            self._send(client, {"n": n, "processes": [p.view() for p in self.processes.values()]})
        elif op == "start":
            self.start(request["id"], request["spec"], answer)
        elif op == "stop":
            self.stop(request["id"], request.get("grace", TERM_GRACE), answer)
        elif op == "restart":
            process = self.processes.get(request["id"])
            if process is not None:
                self.restart(process)
            answer(process.view() if process else {})
        elif op == "shutdown":
            self._send(client, {"n": n})
            self._end()
        else:
            self._send(client, {"n": n, "error": f"unknown request {op!r}"})

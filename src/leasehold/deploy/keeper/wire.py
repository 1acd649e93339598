"""Messages between provider and keeper: JSON in sequenced packets, descriptors beside them.

A packet is one message, so nothing is ever cut or glued. Requests are ``{n, op, ...}``, answers
``{n, ok}`` or ``{n, error, code}``, and what the keeper says by itself is ``{event, ...}``.
"""

from __future__ import annotations

import array
import json
import os
import socket
from typing import Any

MAX_MESSAGE = 128 * 1024
"""Bytes of one packet; the kernel's default send buffer holds 208 KiB."""

MAX_FDS = 16


def send(
    sock: socket.socket, message: dict[str, Any], fds: list[int] | tuple[int, ...] = ()
) -> None:
    """Send one message; ``BlockingIOError`` when the peer's queue is full."""
    data = json.dumps(message, separators=(",", ":")).encode()
    if len(data) > MAX_MESSAGE:
        raise ValueError(f"message of {len(data)} bytes, at most {MAX_MESSAGE} fit")
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([data], ancillary)


def receive(sock: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """One message and its descriptors; None when the peer is gone."""
    space = socket.CMSG_SPACE(MAX_FDS * 4)
    data, ancillary, _, _ = sock.recvmsg(MAX_MESSAGE + 1, space, socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    if not data:
        for fd in fds:
            os.close(fd)
        return None, []
    return json.loads(data), list(fds)

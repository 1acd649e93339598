"""Unix sockets at paths of any length. Standard library only.

The kernel takes at most 107 bytes as a socket path; a state folder may well be deeper than that.
Then the directory is opened and the socket is named through ``/proc/self/fd``.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

MAX_PATH = 107
"""Bytes of ``sockaddr_un.sun_path`` without its final zero."""


@contextlib.contextmanager
def short(path: str) -> Iterator[str]:
    """A name of at most 107 bytes for ``path``, valid inside the ``with``."""
    if len(os.fsencode(path)) <= MAX_PATH:
        yield path
        return
    directory, name = os.path.split(path)
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{name}"
    finally:
        os.close(fd)


def listen(path: str, *, backlog: int = 64) -> socket.socket:
    """A listening socket at ``path``, replacing what is there; only this user may connect."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    old = os.umask(0o177)
    try:
        with short(path) as name:
            sock.bind(name)
    except BaseException:
        sock.close()
        raise
    finally:
        os.umask(old)
    sock.listen(backlog)
    return sock


def connect(path: str, timeout: float | None = None) -> socket.socket:
    """A connected socket; OSError when nobody listens."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(timeout)
    try:
        with short(path) as name:
            sock.connect(name)
    except BaseException:
        sock.close()
        raise
    return sock

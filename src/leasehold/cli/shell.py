"""A command inside a workload, with this terminal in front of it.

Frames are binary; the first byte says what follows (`leasehold.gateway.streams`). With a terminal
on both ends this one is put into raw mode and its size is told, now and whenever it changes.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import struct
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from leasehold.core.errors import Kind, LeaseholdError

if TYPE_CHECKING:
    from leasehold.cli.reach import Lease

OUT, ERR, RESULT, FAILURE, IN, RESIZE = 100, 101, 102, 103, 104, 105
CHUNK = 32 << 10
"""Bytes of one input frame at most."""

LOOK = 0.2
"""Seconds between looks at whether the connection ended or the terminal changed its size."""

SIZE = struct.Struct(">HH")


def run(
    lease: Lease,
    service: str,
    command: Sequence[str],
    *,
    replica: int = 0,
    tty: bool | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Run it; ``{"exit_code", "message"?}``, with ``quiet`` also its ``stdout`` and ``stderr``."""
    terminal = sys.stdin.isatty() and sys.stdout.isatty() if tty is None else tty
    query = [(f"cmd{at}", part) for at, part in enumerate(command)]
    query += [("service", service), ("podIndex", str(replica)), ("stdin", "true")]
    query.append(("tty", str(terminal).lower()))
    kept: dict[int, list[bytes]] = {OUT: [], ERR: []}
    with lease.socket("shell", query) as socket, _raw(terminal), _resized(terminal) as resized:
        feeder = threading.Thread(target=_feed, args=(socket, resized), daemon=True)
        feeder.start()
        for frame in socket:
            kind, data = frame[0], frame[1:]
            if kind in (OUT, ERR):
                if quiet:
                    kept[kind].append(data)
                else:
                    stream = (sys.stdout if kind == OUT else sys.stderr).buffer
                    stream.write(data)
                    stream.flush()
            elif kind == RESULT:
                result: dict[str, Any] = json.loads(data)
                if quiet:
                    for name, kind in (("stdout", OUT), ("stderr", ERR)):
                        result[name] = b"".join(kept[kind]).decode(errors="replace")
                return result
            elif kind == FAILURE:
                break
    raise LeaseholdError(
        "command_failed", f"{command[0]} could not be run in {service}", kind=Kind.INTERNAL
    )


def _feed(socket: Any, resized: threading.Event) -> None:
    """Carry standard input, and the terminal's size, to the command until either ends."""
    from websockets.exceptions import ConnectionClosed

    source = sys.stdin.fileno()
    with contextlib.suppress(ConnectionClosed, OSError):
        while socket.protocol.state.name == "OPEN":
            if resized.is_set():
                resized.clear()
                width, height = os.get_terminal_size(sys.stdout.fileno())
                socket.send(bytes([RESIZE]) + SIZE.pack(width, height))
            if select.select([source], [], [], LOOK)[0]:
                data = os.read(source, CHUNK)
                socket.send(bytes([IN]) + data)
                if not data:
                    return


@contextlib.contextmanager
def _raw(terminal: bool) -> Iterator[None]:
    """This terminal in raw mode: keys go through as they are pressed."""
    if not terminal or not sys.stdin.isatty():
        yield
        return
    import termios
    import tty

    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setraw(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _resized(terminal: bool) -> Iterator[threading.Event]:
    """Set at first and whenever this terminal changes its size."""
    resized = threading.Event()
    if not terminal or not sys.stdout.isatty():
        yield resized
        return
    resized.set()
    before = signal.signal(signal.SIGWINCH, lambda *_: resized.set())
    try:
        yield resized
    finally:
        signal.signal(signal.SIGWINCH, before)

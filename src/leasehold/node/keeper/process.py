"""One service as the keeper sees it, and the log of its output. Standard library only."""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

Answer = Callable[[dict[str, Any]], None]
"""Tells whoever asked how the process is doing now."""


class Process:
    """What to run, and how it is doing."""

    def __init__(self, id: str, spec: dict[str, Any]) -> None:
        self.id = id
        self.spec = spec
        self.state = "starting"
        self.pid = 0
        self.start_time = 0
        self.child = False
        self.pidfd = -1
        self.word = -1
        """Closed by the exec of the program; what comes through it is why there was none."""
        self.exit: int | None = None
        self.restarts = 0
        self.ends: deque[float] = deque(maxlen=64)
        self.started_at = 0.0
        self.wanted = True
        self.again = False
        self.generation = 0
        self.listener: socket.socket | None = None
        self.output = -1
        self.log: Log | None = None
        self.starting: list[Answer] = []
        self.stopping: list[Answer] = []

    def view(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "state": self.state,
            "pid": self.pid,
            "restarts": self.restarts,
            "exit": self.exit,
            "started_at": self.started_at,
        }

    @property
    def never_again(self) -> bool:
        return bool(self.spec.get("restart", {}).get("policy") == "never")

    def say(self, text: str) -> None:
        """A line of the keeper's own among the output."""
        if self.log is not None:
            self.log.write(f"leasehold: {text}\n".encode())


class Log:
    """Output in ``log`` and, once that is half the bound, ``log.1``."""

    def __init__(self, path: str, bound: int) -> None:
        self.path = path
        self.half = max(bound // 2, 1024)
        self.fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self.size = os.fstat(self.fd).st_size

    def write(self, data: bytes) -> None:
        while data:
            room = self.half - self.size
            if room <= 0:
                os.rename(self.path, self.path + ".1")
                os.close(self.fd)
                self.fd = os.open(
                    self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
                )
                self.size = 0
                continue
            try:
                self.size += os.write(self.fd, data[:room])
            except OSError:
                return  # A full disk must not stop services.
            data = data[room:]

    def close(self) -> None:
        os.close(self.fd)

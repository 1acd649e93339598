"""Children, adopted strangers, and how they ended.

Every exit is collected in one place: on SIGCHLD the keeper looks at each dead child, hands its
status to whoever waits for that pid, and only then reaps it. As sub-reaper it also gets the
containers' first processes, whose real parent (the runtime) has left. An exit that comes before
anybody asked for it is kept for a moment, so there is no race.

After a restart of the keeper its former children are strangers: a pidfd tells when they end, and
newer kernels also tell how. Where they do not, the exit is *unknown*, never 0.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from leasehold.deploy.keeper import linux

UNCLAIMED = 1024
"""Exits kept for a claim that may still come; also every orphan's, so the oldest are dropped."""


@dataclass(frozen=True)
class Exit:
    """How a process ended: a code, or a signal, or neither when nobody could say."""

    code: int | None
    signal: int | None
    at: float

    @classmethod
    def of(cls, status: int | None) -> Exit:
        """From a wait status; None for unknown."""
        if status is None:
            return cls(None, None, time.time())
        if os.WIFSIGNALED(status):
            return cls(None, os.WTERMSIG(status), time.time())
        return cls(os.WEXITSTATUS(status), None, time.time())


class Reaper:
    """Tells of the end of children by pid, and of strangers by pidfd."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[int, Callable[[Exit], None]] = {}
        self._unclaimed: OrderedDict[int, Exit] = OrderedDict()
        self._loop.add_signal_handler(signal.SIGCHLD, self.reap)

    def watch_child(self, pid: int, ended: Callable[[Exit], None], *, since: float) -> None:
        """Call ``ended`` once when the child ``pid``, started after ``since``, is gone."""
        early = self._unclaimed.pop(pid, None)
        if early is not None and early.at >= since:
            self._loop.call_soon(ended, early)
            return
        self._waiting[pid] = ended
        self.reap()

    def watch_stranger(self, pid: int, start: int, ended: Callable[[Exit], None]) -> int | None:
        """The same for a process that is not our child; returns its pidfd.

        When it is gone already (or its pid belongs to another process by now) the exit is unknown.
        """
        try:
            if pid <= 0:
                raise ProcessLookupError
            pidfd = os.pidfd_open(pid)
            same = linux.start_time(pid) == start
        except (ProcessLookupError, FileNotFoundError):
            self._loop.call_soon(ended, Exit.of(None))
            return None
        if not same:
            os.close(pidfd)
            self._loop.call_soon(ended, Exit.of(None))
            return None

        def readable() -> None:
            status = linux.exit_status_of_stranger(pidfd)
            if status is None and _is_zombie(pid):
                # Not reaped yet by its new parent: the status is known only after that.
                self._loop.remove_reader(pidfd)
                self._loop.call_later(0.05, self._loop.add_reader, pidfd, readable)
                return
            self._loop.remove_reader(pidfd)
            os.close(pidfd)
            ended(Exit.of(status))

        self._loop.add_reader(pidfd, readable)
        return pidfd

    def reap(self) -> None:
        """Collect every dead child."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            ended = self._waiting.pop(pid, None)
            exit = Exit.of(status)
            if ended is not None:
                ended(exit)
            else:
                self._unclaimed[pid] = exit
                if len(self._unclaimed) > UNCLAIMED:
                    self._unclaimed.popitem(last=False)


def wait_for_commands(marks: list[str], seconds: float) -> None:
    """Wait until no process has one of ``marks`` among its arguments; used before serving."""
    wanted = [os.fsencode(mark) for mark in marks]
    poll = select.poll()
    waiting: set[int] = set()
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            with open(f"/proc/{name}/cmdline", "rb") as file:
                arguments = file.read().split(b"\0")
            if any(mark in arguments for mark in wanted):
                pidfd = os.pidfd_open(int(name))
                waiting.add(pidfd)
                poll.register(pidfd, select.POLLIN)
    deadline = time.monotonic() + seconds
    while waiting and time.monotonic() < deadline:
        for pidfd, _ in poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            poll.unregister(pidfd)
            waiting.discard(pidfd)
            os.close(pidfd)
    for pidfd in waiting:
        os.close(pidfd)


def _is_zombie(pid: int) -> bool:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", "rb") as stat:
        return stat.read().rpartition(b")")[2].split()[0] == b"Z"
    return False

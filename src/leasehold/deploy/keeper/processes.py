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
import fcntl
import json
import os
import select
import signal
import subprocess
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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


def start(
    argv: list[str],
    stdio: tuple[int, int, int],
    *,
    env: dict[str, str] | None = None,
    cwd: str | None = None,
    netns: int | None = None,
    passed: dict[int, int] | None = None,
) -> int:
    """Start a process; ``passed`` maps descriptor numbers in the child to ours."""
    passed = passed or {}

    def prepare() -> None:
        if netns is not None:
            linux.setns(netns, linux.CLONE_NEWNET)
        # First out of the way, so that no target overwrites a source.
        moved = {number: fcntl.fcntl(fd, fcntl.F_DUPFD, 200) for number, fd in passed.items()}
        for number, fd in moved.items():
            os.dup2(fd, number)
            os.close(fd)

    process = subprocess.Popen(
        argv,
        stdin=stdio[0],
        stdout=stdio[1],
        stderr=stdio[2],
        env=env,
        cwd=cwd,
        start_new_session=True,
        # The process's own numbers may not be open here: close_fds would close what we moved.
        close_fds=False,
        preexec_fn=prepare if netns is not None or passed else None,
    )
    process.returncode = 0  # The reaper collects it, subprocess must not.
    return process.pid


def started_at(pid: int) -> int:
    try:
        return linux.start_time(pid)
    except OSError:
        return 0


def pid_of(pid_file: str | None) -> dict[str, Any]:
    """What a start that the last keeper did not live to see has come to."""
    try:
        pid = int(read(pid_file or ""))
        return {"pid": pid, "start": linux.start_time(pid)}
    except (OSError, ValueError):
        return {"pid": 0, "start": -1}


def read(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def reason(runtime_log: str | None, exit: Exit) -> str:
    """The runtime's own words, without its framing."""
    text = ""
    with contextlib.suppress(OSError):
        text = read(runtime_log or "").strip()
    last = text.splitlines()[-1] if text else f"the runtime ended with {exit.code or exit.signal}"
    with contextlib.suppress(ValueError, KeyError, TypeError):
        last = json.loads(last)["msg"]
    return last.removeprefix("error ")[:500]


def _is_zombie(pid: int) -> bool:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", "rb") as stat:
        return stat.read().rpartition(b")")[2].split()[0] == b"Z"
    return False

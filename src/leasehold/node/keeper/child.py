"""Between fork and exec, and telling processes apart. Standard library only."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import resource
import signal
import socket
from collections.abc import Callable

from leasehold.node.keeper import script
from leasehold.node.keeper.process import Process

SYS_PIDFD_GETFD = 438
CANNOT_START = 126
"""Exit code of a child that could not become its program."""


def fork(
    process: Process, groups: list[str], record: Callable[[int, int], None]
) -> tuple[int, int]:
    """Start ``process``; returns its pid and a descriptor that reads empty once the program runs,
    or the reason why it cannot.

    ``record(pid, start_time)`` is called before the child goes on.
    """
    gate_r, gate_w = os.pipe2(os.O_CLOEXEC)
    word_r, word_w = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        # Out of the way of the descriptors a service is given.
        word_w = fcntl.fcntl(word_w, fcntl.F_DUPFD_CLOEXEC, 10)
        try:
            os.close(gate_w)
            if os.read(gate_r, 1) == b"1":
                _become(process, groups, word_w)
        except BaseException as error:
            os.write(word_w, str(error).encode())
        os._exit(CANNOT_START)
    os.close(gate_r)
    os.close(word_w)
    process.start_time = start_time(pid)
    try:
        record(pid, process.start_time)
        os.write(gate_w, b"1")
    except BaseException:
        os.close(word_r)
        raise
    finally:
        os.close(gate_w)
    return pid, word_r


def _become(process: Process, groups: list[str], word: int) -> None:
    """In the child: join the groups, take the limits, become the program. ``word`` stays open
    until then."""
    spec = process.spec
    os.setsid()
    for path in groups:
        with contextlib.suppress(OSError), open(path, "w") as file:
            file.write("0")
    output = os.open(os.path.join(spec["dir"], "output"), os.O_RDWR)
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    env = dict(spec["env"])
    if process.listener is not None:
        listener = fcntl.fcntl(process.listener.fileno(), fcntl.F_DUPFD_CLOEXEC, 10)
        os.dup2(listener, 3)
        env |= {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
    os.closerange(4 if process.listener is not None else 3, word)
    os.closerange(word + 1, 65536)
    limits = spec.get("limits", {})
    _limit(resource.RLIMIT_CORE, 0)
    if limits.get("files"):
        _limit(resource.RLIMIT_NOFILE, limits["files"])
    if limits.get("memory_mb") and not groups:
        _limit(resource.RLIMIT_AS, limits["memory_mb"] << 20)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    os.chdir(spec["cwd"])
    os.umask(0o077)
    if script.can_run(spec["argv"]):
        os.close(word)  # As exec would: from here on it runs.
        script.run(spec["argv"], env)
    os.execvpe(spec["argv"][0], spec["argv"], env)


def _limit(what: int, value: int) -> None:
    _, hard = resource.getrlimit(what)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(what, (value, value))


def start_time(pid: int) -> int:
    """When ``pid`` was started, in clock ticks since boot; 0 when it is gone or a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in (b"Z", b"X") else int(fields[19])


def listener_of(process: Process) -> socket.socket | None:
    """The listening socket an adopted service was started with, so that callers who come while it
    is being restarted wait instead of failing. None where the kernel does not hand it over."""
    if not process.spec.get("socket"):
        return None
    fd = ctypes.CDLL(None, use_errno=True).syscall(SYS_PIDFD_GETFD, process.pidfd, 3, 0)
    if fd < 0:
        return None
    try:
        sock = socket.socket(fileno=fd)
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return sock
        sock.close()
    except OSError:
        os.close(fd)
    return None

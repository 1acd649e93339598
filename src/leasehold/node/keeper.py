"""The small process that starts, restarts and logs a node's host processes.

It outlives the node: services go on while the node is being restarted or upgraded, crashed ones
are restarted meanwhile, and no line of output is lost. Standard library only, one thread, one
``selectors`` loop, exec'd once per state folder.

*Nothing is started without being written down.* A child is forked, waits on a pipe, and executes
its program only after its pid and start time are in the journal; a keeper that is killed in
between leaves a child that reads end-of-file and exits. A keeper that starts again adopts what the
journal names, telling processes apart by pid *and* start time; it cannot know how an adopted
process ended, and says so (exit ``None``).

Output goes through a FIFO that the child opened for reading *and* writing, so that a service never
gets SIGPIPE when its reader is gone; it blocks when 64 KiB are waiting, and goes on afterwards.
Services get their listening socket as descriptor 3 (the ``LISTEN_FDS`` protocol): a caller can
connect before the service is up, and connections made during a restart wait instead of failing.

Protocol: JSON lines on ``keeper.sock``. Requests carry ``n`` and are answered with the same ``n``;
lines without ``n`` are changes of state, sent to everybody connected.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import heapq
import itertools
import json
import os
import resource
import selectors
import signal
import socket
import stat
import sys
import time
from collections import deque
from typing import Any

from leasehold.node.cgroups import Hierarchies, key_of
from leasehold.node.sockets import listen

TERM_GRACE = 5.0
"""Seconds between SIGTERM and SIGKILL, unless a stop says otherwise."""

IDLE_EXIT = 30.0
"""Seconds without a client and without a service after which a keeper has no reason to be."""

CHECK_PERIOD = 2.0
"""Seconds between looks whether the state folder still exists."""

MAX_LINE = 1 << 20
MAX_PENDING = 4 << 20
"""Bytes queued for a client that does not read; then it is dropped."""

PR_SET_CHILD_SUBREAPER = 36
SYS_PIDFD_GETFD = 438


class Process:
    """One service: what to run, and how it is doing."""

    def __init__(self, id: str, spec: dict[str, Any]) -> None:
        self.id = id
        self.spec = spec
        self.state = "starting"
        self.pid = 0
        self.start_time = 0
        self.child = False
        self.pidfd = -1
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
        self.stopping: list[tuple[Client, int]] = []

    def view(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "state": self.state,
            "pid": self.pid,
            "restarts": self.restarts,
            "exit": self.exit,
            "started_at": self.started_at,
        }


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


class Client:
    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.incoming = b""
        self.outgoing = b""


class Keeper:
    """The loop. Everything happens in it, one thing after the other."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.processes: dict[str, Process] = {}
        self.clients: set[Client] = set()
        self.selector = selectors.DefaultSelector()
        self.timers: list[tuple[float, int, Any, tuple[Any, ...]]] = []
        self.serial = itertools.count()
        self.groups = Hierarchies(key_of(root))
        self.running = True
        self.idle_since = time.monotonic()
        self.journal_path = os.path.join(root, "keeper.journal")
        self.journal = -1

    # -- life ---------------------------------------------------------------------------------

    def run(self, ready: int) -> None:
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        wake_r, wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._on_term)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self.selector.register(wake_r, selectors.EVENT_READ, self._on_wake)
        path = os.path.join(self.root, "keeper.sock")
        self._adopt()
        server = listen(path)
        server.setblocking(False)
        inode = os.stat(path).st_ino
        self.selector.register(server, selectors.EVENT_READ, self._on_connect)
        os.write(ready, b"1")
        os.close(ready)
        self._later(CHECK_PERIOD, self._check, path, inode)
        while self.running:
            timeout = None
            if self.timers:
                timeout = max(0.0, self.timers[0][0] - time.monotonic())
            for key, mask in self.selector.select(timeout):
                self._guarded(key.data, key.fileobj, mask)
            while self.timers and self.timers[0][0] <= time.monotonic():
                _, _, action, args = heapq.heappop(self.timers)
                self._guarded(action, *args)
        with contextlib.suppress(OSError):
            os.unlink(path)

    def _guarded(self, action: Any, *args: Any) -> None:
        """A failure that concerns one service or client must not end the others' keeper."""
        try:
            action(*args)
        except Exception as error:
            sys.excepthook(type(error), error, error.__traceback__)

    def _check(self, path: str, inode: int) -> None:
        try:
            gone = os.stat(path).st_ino != inode
        except OSError:
            gone = True
        if self.clients or self.processes:
            self.idle_since = time.monotonic()
        if gone or time.monotonic() - self.idle_since > IDLE_EXIT:
            # The state folder was removed, or nobody needs us.
            self._end()
        else:
            self._later(CHECK_PERIOD, self._check, path, inode)

    def _end(self) -> None:
        for process in list(self.processes.values()):
            self._kill_all(process)
            self.groups.remove(process.id)
        self.groups.remove_all()
        self.running = False

    def _on_term(self, *_: Any) -> None:
        # Services stay: the next keeper adopts them.
        self.running = False

    def _on_wake(self, fd: int, _mask: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(fd, 4096)
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for process in self.processes.values():
                if process.pid == pid and process.child:
                    self._ended(process, os.waitstatus_to_exitcode(status))
                    break

    def _later(self, seconds: float, action: Any, *args: Any) -> None:
        due = time.monotonic() + seconds
        heapq.heappush(self.timers, (due, next(self.serial), action, args))

    # -- the journal --------------------------------------------------------------------------

    def _write(self, record: dict[str, Any]) -> None:
        # No fsync: a machine that loses power has lost the processes too (see boot id).
        os.write(self.journal, json.dumps(record, separators=(",", ":")).encode() + b"\n")

    def _adopt(self) -> None:
        """Read the journal, take over what still runs, write a fresh journal."""
        known: dict[str, dict[str, Any]] = {}
        boot = _boot_id()
        same_boot = False
        with contextlib.suppress(FileNotFoundError), open(self.journal_path, "rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                try:
                    record = json.loads(line)
                except ValueError:
                    continue
                if "boot" in record:
                    same_boot = record["boot"] == boot
                elif record["op"] == "start":
                    known[record["id"]] = record
                elif record["op"] == "gone":
                    known.pop(record["id"], None)
                elif record["id"] in known:
                    known[record["id"]].update(record)
        fresh = self.journal_path + ".new"
        self.journal = os.open(
            fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600
        )
        self._write({"boot": boot})
        launch = []
        for id, record in known.items():
            process = self.processes[id] = Process(id, record["spec"])
            process.restarts = record.get("restarts", 0)
            process.wanted = record.get("wanted", True)
            process.started_at = record.get("at", 0.0)
            pid, start_time = record.get("pid", 0), record.get("start_time", 0)
            self._write({"op": "start", "id": id, "spec": record["spec"]})
            if same_boot and pid and _start_time(pid) == start_time:
                self._take(process, pid, start_time)
            elif process.wanted and ("exit" not in record or not _never(process)):
                launch.append(process)
            else:
                process.state = "exited"
        # From here on the new journal counts; only now may anything be started.
        os.rename(fresh, self.journal_path)
        for process in launch:
            self._kill_all(process)
            self._launch(process)
        for id in self.groups.ids() - set(self.processes):
            self.groups.kill(id)
            self.groups.remove(id)

    def _take(self, process: Process, pid: int, start_time: int) -> None:
        process.pid, process.start_time = pid, start_time
        process.state = "running"
        try:
            process.pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            self._ended(process, None)
            return
        self._open_output(process)
        process.listener = _listener_of(process)
        fd = process.pidfd
        self.selector.register(
            fd,
            selectors.EVENT_READ,
            lambda *_: self._ended(process, None) if process.pidfd == fd else None,
        )
        self._write(
            {
                "op": "pid",
                "id": process.id,
                "pid": pid,
                "start_time": start_time,
                "restarts": process.restarts,
                "at": process.started_at,
            }
        )

    # -- processes ----------------------------------------------------------------------------

    def _open_output(self, process: Process) -> None:
        """The FIFO of a process's output and the log it goes to."""
        directory = process.spec["dir"]
        fifo = os.path.join(directory, "output")
        with contextlib.suppress(FileExistsError):
            os.mkfifo(fifo, 0o600)
        if process.log is None:
            process.log = Log(
                os.path.join(directory, "log"), process.spec.get("log_bytes", 1 << 20)
            )
        if process.output < 0:
            process.output = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            self.selector.register(
                process.output, selectors.EVENT_READ, lambda *_: self._pump(process)
            )

    def _pump(self, process: Process) -> None:
        if process.output < 0:
            return  # Closed by something that happened in the same turn of the loop.
        try:
            data = os.read(process.output, 65536)
        except BlockingIOError:
            return
        if data and process.log is not None:
            process.log.write(data)
        elif not data:
            # No writer is left: reading again would spin until the next start.
            self._close_output(process)

    def _close_output(self, process: Process) -> None:
        if process.output >= 0:
            self.selector.unregister(process.output)
            os.close(process.output)
            process.output = -1

    def _launch(self, process: Process) -> None:
        spec = process.spec
        process.generation += 1
        try:
            os.makedirs(spec["dir"], exist_ok=True)
            if spec.get("socket") and process.listener is None:
                process.listener = listen(spec["socket"])
            self._open_output(process)
            limits = spec.get("limits", {})
            groups = self.groups.create(
                process.id,
                memory_mb=limits.get("memory_mb", 0),
                cpu=limits.get("cpu", 0.0),
                pids=limits.get("pids", 0),
            )
            pid = self._fork(process, groups)
        except OSError as error:
            self._say(process, f"cannot start: {error}")
            process.pid = 0
            self._ended(process, 126)
            return
        process.pid, process.child = pid, True
        process.state, process.exit = "running", None
        process.started_at = time.time()
        self._announce(process)

    def _fork(self, process: Process, groups: list[str]) -> int:
        """Returns once the program runs; OSError when it could not be executed."""
        gate_r, gate_w = os.pipe2(os.O_CLOEXEC)
        word_r, word_w = os.pipe2(os.O_CLOEXEC)  # Closed by a successful exec.
        pid = os.fork()
        if pid == 0:
            # Out of the way of the descriptors a service is given.
            word_w = fcntl.fcntl(word_w, fcntl.F_DUPFD_CLOEXEC, 10)
            try:
                os.close(gate_w)
                if os.read(gate_r, 1) != b"1":
                    os._exit(125)
                _become(process, groups, word_w)
            except BaseException as error:
                os.write(word_w, str(error).encode())
            os._exit(127)
        os.close(gate_r)
        os.close(word_w)
        process.start_time = _start_time(pid)
        try:
            self._write(
                {
                    "op": "pid",
                    "id": process.id,
                    "pid": pid,
                    "start_time": process.start_time,
                    "restarts": process.restarts,
                    "at": time.time(),
                }
            )
            os.write(gate_w, b"1")
            os.close(gate_w)
            gate_w = -1
            if word := os.read(word_r, 4096):
                raise OSError(word.decode(errors="replace"))
        finally:
            if gate_w >= 0:
                os.close(gate_w)
            os.close(word_r)
        return pid

    def _ended(self, process: Process, code: int | None) -> None:
        if process.pidfd >= 0:
            self.selector.unregister(process.pidfd)
            os.close(process.pidfd)
            process.pidfd = -1
        if process.output >= 0:
            for _ in range(64):
                before = process.log.size if process.log else 0
                self._pump(process)
                if process.output < 0 or process.log is None or process.log.size == before:
                    break
        self._kill_all(process)
        process.pid, process.child, process.exit = 0, False, code
        self._write({"op": "exit", "id": process.id, "pid": 0, "exit": code})
        if not process.wanted:
            self._stopped(process)
            return
        if process.again:
            process.again = False
            process.restarts += 1
            self._launch(process)
            return
        restart = process.spec.get("restart", {})
        policy = restart.get("policy", "always")
        if policy == "never" or (policy == "on-failure" and code == 0):
            process.state = "exited"
            self._announce(process)
            return
        now = time.monotonic()
        process.ends.append(now)
        window = restart.get("window_sec", 60.0)
        recent = sum(1 for end in process.ends if now - end <= window)
        if recent >= restart.get("attempts", 5):
            process.state = "failed"
            self._say(process, f"ended {recent} times within {window:g} s; not started again")
            self._announce(process)
            return
        wait = min(restart.get("cap_sec", 30.0), restart.get("first_sec", 0.2) * 2 ** (recent - 1))
        process.state = "backoff"
        self._announce(process)
        self._later(wait, self._relaunch, process, process.generation)

    def _relaunch(self, process: Process, generation: int) -> None:
        if process.state == "backoff" and process.wanted and process.generation == generation:
            process.restarts += 1
            self._launch(process)

    def _kill_all(self, process: Process) -> None:
        """End every process of a service, whatever it has forked."""
        if process.pid and _start_time(process.pid) == process.start_time:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        self.groups.kill(process.id)

    def _stop(self, process: Process, grace: float) -> None:
        process.wanted = False
        self._write({"op": "wanted", "id": process.id, "wanted": False})
        if process.pid:
            process.state = "stopping"
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process.pid, signal.SIGTERM)
            self._later(grace, self._overdue, process, process.generation)
        else:
            self._stopped(process)

    def _overdue(self, process: Process, generation: int) -> None:
        if process.state == "stopping" and process.generation == generation:
            self._kill_all(process)

    def _stopped(self, process: Process) -> None:
        self._kill_all(process)
        self.groups.remove(process.id)
        self._close_output(process)
        if process.listener is not None:
            process.listener.close()
            with contextlib.suppress(OSError):
                os.unlink(process.spec["socket"])
        if process.log is not None:
            process.log.close()
            process.log = None
        process.state = "stopped"
        self.processes.pop(process.id, None)
        self._write({"op": "gone", "id": process.id})
        self._announce(process)
        for client, n in process.stopping:
            self._send(client, {"n": n, "process": process.view()})
        process.stopping.clear()

    def _say(self, process: Process, text: str) -> None:
        if process.log is not None:
            process.log.write(f"leasehold: {text}\n".encode())

    def _announce(self, process: Process) -> None:
        for client in list(self.clients):
            self._send(client, {"process": process.view()})

    # -- clients ------------------------------------------------------------------------------

    def _on_connect(self, server: socket.socket, _mask: int) -> None:
        with contextlib.suppress(BlockingIOError):
            sock, _ = server.accept()
            sock.setblocking(False)
            client = Client(sock)
            self.clients.add(client)
            self.selector.register(
                sock, selectors.EVENT_READ, lambda _f, mask: self._on_client(client, mask)
            )

    def _on_client(self, client: Client, mask: int) -> None:
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
            self.selector.unregister(client.sock)
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
        key = self.selector.get_key(client.sock)
        if key.events != events:
            self.selector.modify(client.sock, events, key.data)

    def _request(self, client: Client, line: bytes) -> None:
        try:
            request = json.loads(line)
            n, op = request["n"], request["op"]
        except (ValueError, KeyError, TypeError):
            self._drop(client)
            return
        process = self.processes.get(request.get("id", ""))
        if op == "list":
            self._send(client, {"n": n, "processes": [p.view() for p in self.processes.values()]})
        elif op == "start":
            if process is None:
                process = Process(request["id"], request["spec"])
                self.processes[process.id] = process
                self._write({"op": "start", "id": process.id, "spec": process.spec})
                self._launch(process)
            self._send(client, {"n": n, "process": process.view()})
        elif op == "stop":
            if process is None:
                # Look for what a keeper before us may have left, then there is nothing to stop.
                self.groups.kill(request["id"])
                self.groups.remove(request["id"])
                self._send(client, {"n": n, "process": None})
            else:
                process.stopping.append((client, n))
                if process.state != "stopping":
                    self._stop(process, request.get("grace", TERM_GRACE))
        elif op == "restart":
            if process is not None:
                process.ends.clear()
                process.wanted = True
                if process.pid:
                    process.again = True
                    self._kill_all(process)
                elif process.state != "stopping":
                    process.restarts += 1
                    self._launch(process)
            self._send(client, {"n": n, "process": process.view() if process else None})
        elif op == "shutdown":
            self._send(client, {"n": n})
            self._end()
        else:
            self._send(client, {"n": n, "error": f"unknown request {op!r}"})


def _listener_of(process: Process) -> socket.socket | None:
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


def _never(process: Process) -> bool:
    return bool(process.spec.get("restart", {}).get("policy") == "never")


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
    os.execvpe(spec["argv"][0], spec["argv"], env)


def _limit(what: int, value: int) -> None:
    _, hard = resource.getrlimit(what)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(what, (value, value))


def _start_time(pid: int) -> int:
    """When ``pid`` was started, in clock ticks since boot; 0 when it is gone or a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in (b"Z", b"X") else int(fields[19])


def _boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def main() -> None:
    """``python -m leasehold.node.keeper ROOT``: go into the background, return when listening."""
    root = os.path.abspath(sys.argv[1])
    ready_r, ready_w = os.pipe()
    if os.fork():
        os.close(ready_w)
        sys.exit(0 if os.read(ready_r, 1) == b"1" else 1)
    os.close(ready_r)
    os.setsid()
    lock = os.open(os.path.join(root, "keeper.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        # Another one serves this folder already; that is all that was wanted.
        os.write(ready_w, b"1")
        sys.exit(0)
    null = os.open("/dev/null", os.O_RDWR)
    errors = os.open(
        os.path.join(root, "keeper.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600
    )
    if stat.S_ISREG(os.fstat(errors).st_mode) and os.fstat(errors).st_size > 1 << 20:
        os.ftruncate(errors, 0)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.dup2(errors, 2)
    os.chdir("/")
    Keeper(root).run(ready_w)


if __name__ == "__main__":
    main()

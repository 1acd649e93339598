"""Starting, restarting, stopping and adopting processes. Standard library only."""

from __future__ import annotations

import contextlib
import os
import signal
import time

from leasehold.node.cgroups import Hierarchies, key_of
from leasehold.node.keeper import child
from leasehold.node.keeper.journal import Journal, Record
from leasehold.node.keeper.loop import Loop
from leasehold.node.keeper.process import Answer, Log, Process
from leasehold.node.sockets import listen

TERM_GRACE = 5.0
"""Seconds between SIGTERM and SIGKILL, unless a stop says otherwise."""


class Watch:
    """The processes of one state folder. :meth:`changed` is told of every change of state."""

    def __init__(self, root: str, loop: Loop) -> None:
        self.loop = loop
        self.processes: dict[str, Process] = {}
        self.groups = Hierarchies(key_of(root))
        self.journal = Journal(root)

    def changed(self, process: Process) -> None:
        """The state of ``process`` is another one now."""

    # -- from one keeper to the next ----------------------------------------------------------

    def adopt(self) -> None:
        """Read the journal, take over what still runs, write a fresh journal."""
        known, same_boot = self.journal.read()
        self.journal.renew()
        launch = []
        for id, record in known.items():
            process = self.processes[id] = Process(id, record["spec"])
            process.restarts = record.get("restarts", 0)
            process.wanted = record.get("wanted", True)
            process.started_at = record.get("at", 0.0)
            pid, start_time = record.get("pid", 0), record.get("start_time", 0)
            self.journal.write({"op": "start", "id": id, "spec": record["spec"]})
            if same_boot and pid and child.start_time(pid) == start_time:
                self._take(process, pid, start_time)
            elif process.wanted and ("exit" not in record or not process.never_again):
                launch.append(process)
            else:
                process.state = "exited"
        # From here on the new journal counts; only now may anything be started.
        self.journal.use()
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
        process.listener = child.listener_of(process)
        fd = process.pidfd
        self.loop.when_readable(
            fd, lambda: self._ended(process, None) if process.pidfd == fd else None
        )
        self.journal.write(self._pid_record(process, process.started_at))

    def _pid_record(self, process: Process, at: float) -> Record:
        return {
            "op": "pid",
            "id": process.id,
            "pid": process.pid,
            "start_time": process.start_time,
            "restarts": process.restarts,
            "at": at,
        }

    # -- up -----------------------------------------------------------------------------------

    def start(self, id: str, spec: Record, answer: Answer) -> None:
        """Start ``id`` unless there is one; answered when its program runs or cannot."""
        process = self.processes.get(id)
        if process is None:
            process = self.processes[id] = Process(id, spec)
            self.journal.write({"op": "start", "id": id, "spec": spec})
            self._launch(process)
        if process.word >= 0:
            process.starting.append(answer)
        else:
            answer(process.view())

    def _launch(self, process: Process) -> None:
        spec = process.spec
        process.generation += 1
        process.state = "starting"

        def record(pid: int, _start_time: int) -> None:
            process.pid = pid
            self.journal.write(self._pid_record(process, time.time()))

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
            process.pid, process.word = child.fork(process, groups, record)
        except OSError as error:
            process.say(f"cannot start: {error}")
            process.pid = 0
            self._ended(process, child.CANNOT_START)
            return
        process.child, process.exit = True, None
        process.started_at = time.time()
        self.loop.when_readable(process.word, lambda: self._executed(process))

    def _executed(self, process: Process) -> None:
        """The program of ``process`` runs, or its child said why it cannot and is ending."""
        if process.word < 0:
            return  # Seen already, with the end of the process in the same turn of the loop.
        reason = os.read(process.word, 4096)
        self.loop.forget(process.word)
        os.close(process.word)
        process.word = -1
        if reason:
            process.say(f"cannot start: {reason.decode(errors='replace')}")
        elif process.state == "starting":
            process.state = "running"
            self.changed(process)
        for answer in process.starting:
            answer(process.view())
        process.starting.clear()

    def restart(self, process: Process) -> None:
        """Kill and start again, also out of a crash loop."""
        process.ends.clear()
        process.wanted = True
        if process.pid:
            process.again = True
            self._kill_all(process)
        elif process.state != "stopping":
            process.restarts += 1
            self._launch(process)

    # -- output -------------------------------------------------------------------------------

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
            self.loop.when_readable(process.output, lambda: self._pump(process))

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

    def _drain(self, process: Process) -> None:
        """What a process that ended wrote last; it may have left a writer, so not for ever."""
        for _ in range(64):
            before = process.log.size if process.log else 0
            self._pump(process)
            if process.output < 0 or process.log is None or process.log.size == before:
                break

    def _close_output(self, process: Process) -> None:
        if process.output >= 0:
            self.loop.forget(process.output)
            os.close(process.output)
            process.output = -1

    # -- down ---------------------------------------------------------------------------------

    def reap(self) -> None:
        """Take note of every child that ended."""
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

    def _ended(self, process: Process, code: int | None) -> None:
        self._executed(process)
        if process.pidfd >= 0:
            self.loop.forget(process.pidfd)
            os.close(process.pidfd)
            process.pidfd = -1
        if process.output >= 0:
            self._drain(process)
        self._kill_all(process)
        process.pid, process.child, process.exit = 0, False, code
        self.journal.write({"op": "exit", "id": process.id, "pid": 0, "exit": code})
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
            self.changed(process)
            return
        now = time.monotonic()
        process.ends.append(now)
        window = restart.get("window_sec", 60.0)
        recent = sum(1 for end in process.ends if now - end <= window)
        if recent >= restart.get("attempts", 5):
            process.state = "failed"
            process.say(f"ended {recent} times within {window:g} s; not started again")
            self.changed(process)
            return
        wait = min(restart.get("cap_sec", 30.0), restart.get("first_sec", 0.2) * 2 ** (recent - 1))
        process.state = "backoff"
        self.changed(process)
        self.loop.later(wait, self._relaunch, process, process.generation)

    def _relaunch(self, process: Process, generation: int) -> None:
        if process.state == "backoff" and process.wanted and process.generation == generation:
            process.restarts += 1
            self._launch(process)

    def _kill_all(self, process: Process) -> None:
        """End every process of a service, whatever it has forked."""
        if process.pid and child.start_time(process.pid) == process.start_time:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        self.groups.kill(process.id)

    def stop(self, id: str, grace: float, answer: Answer) -> None:
        """End ``id`` and forget it; answered when it is gone."""
        process = self.processes.get(id)
        if process is None:
            # Look for what a keeper before us may have left, then there is nothing to stop.
            self.groups.kill(id)
            self.groups.remove(id)
            answer({})
            return
        process.stopping.append(answer)
        if process.state == "stopping":
            return
        process.wanted = False
        self.journal.write({"op": "wanted", "id": process.id, "wanted": False})
        if not process.pid:
            self._stopped(process)
            return
        executing = process.word >= 0
        process.state = "stopping"
        if executing:
            self._kill_all(process)  # It has not begun, and would not hear a polite signal.
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(process.pid, signal.SIGTERM)
        self.loop.later(grace, self._overdue, process, process.generation)

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
        self.journal.write({"op": "gone", "id": process.id})
        self.changed(process)
        for answer in process.stopping:
            answer(process.view())
        process.stopping.clear()

    def end_all(self) -> None:
        """Kill everything, and remove the groups of this folder."""
        for process in list(self.processes.values()):
            self._kill_all(process)
            self.groups.remove(process.id)
        self.groups.remove_all()

"""What the keeper does for providers.

Requests (each answered once, all may be repeated):

``hello``            who answers: pid, version, what it arranged
``list``             everything kept, in parts
``hold fetch drop``  descriptors by name (network namespaces); ``hold`` answers a /proc path
``run``              assemble a root and start a container with the runtime's command line
``spawn``            start a process with given descriptors; restarted for ever with ``restart``
``exec``             start a process beside a container's own
``signal``           send a signal to what has this id
``delete``           end it, run the runtime's own clean-up, forget it
``stop``             end the keeper; refused while anything runs, unless ``force``

Events go to every connected provider: ``exited`` and ``respawned``.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import functools
import os
import signal
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from leasehold.deploy.keeper import linux, rootfs
from leasehold.deploy.keeper.endpoint import Endpoint, Message, Refused
from leasehold.deploy.keeper.host import arrange_cgroups, make_roots
from leasehold.deploy.keeper.journal import Journal
from leasehold.deploy.keeper.logs import Output
from leasehold.deploy.keeper.processes import (
    Exit,
    Reaper,
    pid_of,
    read,
    reason,
    start,
    started_at,
    wait_for_commands,
)

VERSION = 1
"""Of the protocol. A provider that speaks another says so instead of guessing."""

RUN_LIMIT = 120.0
"""Seconds a runtime's command may take."""

RESPAWN_FIRST, RESPAWN_CAP, RESPAWN_RESET = 0.1, 5.0, 10.0
"""Back-off of kept processes, seconds; after living ``RESPAWN_RESET`` it starts over."""

START_LIMIT = 10.0
"""Seconds a new keeper waits for starts that its predecessor did not live to see end."""


@dataclass
class Kept:
    """One container or process. ``record`` is what the journal knows."""

    id: str
    record: dict[str, Any]
    pidfd: int | None = None
    fds: list[int] = field(default_factory=list)
    output: Output | None = None
    failures: int = 0
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def running(self) -> bool:
        return bool(self.record.get("state") == "running")


class Keeper:
    """``folder`` holds the socket, the journal, and a directory per container."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.roots = make_roots(folder)
        self.ranges = rootfs.IdRanges()
        self.kept: dict[str, Kept] = {}
        self.held: dict[str, int] = {}
        self.journal = Journal(f"{folder}/journal")
        self.reaper = Reaper()
        self.stopped = asyncio.Event()
        self.endpoint = Endpoint(folder, self.answer)
        self._locks: dict[str, asyncio.Lock] = {}
        self._loop = asyncio.get_running_loop()

    # -- starting ---------------------------------------------------------------------------------

    def adopt(self) -> None:
        """Take up what an earlier keeper started."""
        # A runtime that was starting a container when its keeper died goes on with it: only when
        # it has ended is known whether there is a container.
        starting = [r["pid_file"] for r in self.journal.entries.values()
                    if r["state"] == "starting" and r.get("pid_file")]  # fmt: skip
        if starting:
            wait_for_commands(starting, START_LIMIT)
        for id, record in list(self.journal.entries.items()):
            kept = self.kept[id] = Kept(id, dict(record))
            if record["state"] == "starting":
                record = kept.record = {**record, **pid_of(record.get("pid_file"))}
            if record["state"] == "exited":
                kept.ended.set()
                continue
            with contextlib.suppress(OSError):
                if record.get("output"):
                    kept.output = Output(f"{self.folder}/o/{id}", record["output"])
            kept.record["state"] = "running"
            pid = record.get("pid", 0)
            kept.pidfd = self.reaper.watch_stranger(
                pid, record.get("start", -1), functools.partial(self._ended, kept)
            )
            if kept.pidfd is None:
                continue
            # Its descriptors, so that it can be respawned; its network, so that it can be fetched.
            for number in record.get("fds", ()):
                with contextlib.suppress(OSError):
                    kept.fds.append(linux.pidfd_getfd(kept.pidfd, number))
            name = record.get("netns")
            if name and name not in self.held:
                with contextlib.suppress(OSError):
                    self.held[name] = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    async def serve(self) -> None:
        await self.endpoint.serve(self.stopped)
        self.journal.close()
        with contextlib.suppress(OSError):
            os.rmdir(self.roots)
            os.rmdir(os.path.dirname(self.roots))

    async def answer(self, message: Message, fds: list[int], out: list[int]) -> Any:
        operation = getattr(self, f"on_{message.get('op')}", None)
        if operation is None:
            raise Refused("unknown_operation", f"no operation {message.get('op')!r}")
        return await operation(message, fds, out)

    # -- operations -------------------------------------------------------------------------------

    async def on_hello(self, message: Message, fds: list[int], out: list[int]) -> Any:
        return {
            "version": VERSION,
            "pid": os.getpid(),
            "roots": self.roots,
            "running": sum(kept.running for kept in self.kept.values()),
            "held": sorted(self.held),
        }

    async def on_list(self, message: Message, fds: list[int], out: list[int]) -> Any:
        after = message.get("after", "")
        ids = sorted(id for id in self.kept if id > after)[:64]
        return [_public(self.kept[id]) for id in ids]

    async def on_hold(self, message: Message, fds: list[int], out: list[int]) -> Any:
        name = message["name"]
        self._drop(name)
        self.held[name] = os.dup(fds[0])
        os.set_inheritable(self.held[name], False)
        return {"path": f"/proc/{os.getpid()}/fd/{self.held[name]}"}

    async def on_fetch(self, message: Message, fds: list[int], out: list[int]) -> Any:
        fd = self.held.get(message["name"])
        if fd is None:
            raise Refused("not_held", f"nothing is held under {message['name']!r}")
        out.append(fd)
        return {"path": f"/proc/{os.getpid()}/fd/{fd}"}

    async def on_drop(self, message: Message, fds: list[int], out: list[int]) -> Any:
        self._drop(message["name"])
        return {}

    def _drop(self, name: str) -> None:
        fd = self.held.pop(name, None)
        if fd is not None:
            os.close(fd)

    async def on_run(self, message: Message, fds: list[int], out: list[int]) -> Any:
        id = message["id"]
        async with self._lock(id):
            known = self.kept.get(id)
            if known is not None:
                if known.running:
                    return _public(known)
                raise Refused("exists", f"{id} has exited and was not deleted")
            return await self._run(id, message)

    async def _run(self, id: str, message: Message) -> Any:
        home = f"{self.roots}/{id}"
        record = {
            "kind": "container",
            "state": "starting",
            "pid_file": message["pid_file"],
            "output": message.get("output"),
            "delete": message["delete"],
            "netns": message.get("netns"),
            "labels": message.get("labels", {}),
        }
        kept = Kept(id, record)
        self.journal.record(id, record)
        self.kept[id] = kept
        began = time.time()
        try:
            if message.get("rootfs"):
                rootfs.assemble(home, message["rootfs"], self.ranges)
            stdio = self._stdio(kept)
            try:
                exit = await self._command(message["run"], stdio)
            finally:
                for fd in stdio:
                    os.close(fd)
            if exit.code != 0:
                raise Refused("runtime_failed", reason(message.get("runtime_log"), exit))
            pid = int(read(message["pid_file"]))
            try:
                start = linux.start_time(pid)
            except OSError:
                start = 0
            record.update(state="running", pid=pid, start=start, started_at=began)
            self.journal.record(id, record)
            with contextlib.suppress(OSError):
                kept.pidfd = os.pidfd_open(pid)
            answer = _public(kept)
            self.reaper.watch_child(pid, lambda exit: self._ended(kept, exit), since=began)
            return answer
        except BaseException:
            await self._discard(kept)
            raise
        finally:
            rootfs.dismantle(home)

    def _stdio(self, kept: Kept) -> tuple[int, int, int]:
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        spec = kept.record.get("output")
        if not spec:
            return null, os.dup(null), os.dup(null)
        kept.output = Output(f"{self.folder}/o/{kept.id}", spec)
        return (null, *kept.output.writers())

    async def _command(self, argv: list[str], stdio: tuple[int, int, int]) -> Exit:
        """Run one command of the runtime to its end."""
        done: asyncio.Future[Exit] = self._loop.create_future()

        def ended(exit: Exit) -> None:
            if not done.done():
                done.set_result(exit)

        pid = start(argv, stdio)
        self.reaper.watch_child(pid, ended, since=time.time())
        try:
            async with asyncio.timeout(RUN_LIMIT):
                return await done
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            raise Refused("runtime_hangs", f"{argv[0]} took over {RUN_LIMIT:g} s") from None

    async def on_spawn(self, message: Message, fds: list[int], out: list[int]) -> Any:
        id = message["id"]
        async with self._lock(id):
            known = self.kept.get(id)
            if known is not None and known.running:
                return _public(known)
            record = {
                "kind": "process",
                "state": "starting",
                "argv": message["argv"],
                "env": message.get("env"),
                "cwd": message.get("cwd"),
                "fds": message.get("numbers", []),
                "netns": message.get("netns"),
                "restart": message.get("restart", False),
                "output": message.get("output"),
                "labels": message.get("labels", {}),
                "transient": message.get("transient", False),
            }
            if record["netns"] and record["netns"] not in self.held:
                raise Refused("not_held", f"no network namespace {record['netns']!r} is held")
            kept = self.kept[id] = Kept(id, record)
            kept.fds = [os.dup(fd) for fd in fds]
            try:
                self._launch(kept)
            except BaseException:
                await self._discard(kept)
                raise
            return _public(kept)

    def _launch(self, kept: Kept) -> None:
        record = kept.record
        numbers = record["fds"]
        given = dict(zip(numbers, kept.fds, strict=False))
        stdio = [given.get(0, -1), given.get(1, -1), given.get(2, -1)]
        mine: tuple[int, ...] = ()
        if min(stdio) < 0:
            mine = self._stdio(kept)
            stdio = [given.get(n, mine[n]) for n in range(3)]
        try:
            pid = start(
                record["argv"],
                (stdio[0], stdio[1], stdio[2]),
                env=record["env"],
                cwd=record["cwd"],
                netns=self.held.get(record["netns"]) if record["netns"] else None,
                passed={n: fd for n, fd in given.items() if n > 2},
            )
        finally:
            for fd in mine:
                os.close(fd)
        now = time.time()
        record.update(state="running", pid=pid, start=started_at(pid), started_at=now)
        if not record["transient"]:
            self.journal.record(kept.id, record)
        kept.pidfd = os.pidfd_open(pid)
        self.reaper.watch_child(pid, lambda exit: self._ended(kept, exit), since=now)

    async def on_exec(self, message: Message, fds: list[int], out: list[int]) -> Any:
        """A process beside a container's own, which the runtime starts and leaves to us."""
        id = message["id"]
        began = time.time()
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        try:
            given = [*fds, null, null, null][:3] if fds else [null, null, null]
            exit = await self._command(message["run"], (given[0], given[1], given[2]))
        finally:
            os.close(null)
        if exit.code != 0:
            raise Refused("runtime_failed", reason(message.get("runtime_log"), exit))
        pid = int(read(message["pid_file"]))
        os.unlink(message["pid_file"])
        record = {"kind": "exec", "state": "running", "transient": True, "pid": pid}
        kept = self.kept[id] = Kept(id, record)
        with contextlib.suppress(OSError):
            kept.pidfd = os.pidfd_open(pid)
        self.reaper.watch_child(pid, lambda exit: self._ended(kept, exit), since=began)
        return _public(kept)

    async def on_signal(self, message: Message, fds: list[int], out: list[int]) -> Any:
        kept = self._find(message["id"])
        if kept.running and kept.pidfd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(kept.pidfd, message["signal"])
        return {}

    async def on_delete(self, message: Message, fds: list[int], out: list[int]) -> Any:
        id = message["id"]
        async with self._lock(id):
            kept = self.kept.get(id)
            if kept is not None:
                grace = message.get("grace", 0)
                if kept.running and grace and kept.pidfd is not None:
                    kept.record["restart"] = False
                    with contextlib.suppress(ProcessLookupError):
                        signal.pidfd_send_signal(kept.pidfd, message.get("signal", signal.SIGTERM))
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(grace):
                            await kept.ended.wait()
                await self._discard(kept)
        self._locks.pop(id, None)
        return {}

    async def _discard(self, kept: Kept) -> None:
        """End it and leave nothing: process, runtime state, cgroup, FIFOs, directories."""
        kept.record["restart"] = False
        if kept.record.get("delete"):
            null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
            try:
                await self._command(kept.record["delete"], (null, null, null))
            finally:
                os.close(null)
        if kept.running:
            if kept.pidfd is not None:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(kept.pidfd, signal.SIGKILL)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(10):
                    await kept.ended.wait()
        self._release(kept)
        with contextlib.suppress(OSError):
            rootfs.remove(f"{self.roots}/{kept.id}")
        if kept.record.get("pid_file"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(kept.record["pid_file"])
        self.kept.pop(kept.id, None)
        self.journal.forget(kept.id)

    async def on_stop(self, message: Message, fds: list[int], out: list[int]) -> Any:
        running = [kept for kept in self.kept.values() if kept.running]
        if running and not message.get("force"):
            raise Refused("busy", f"{len(running)} containers and processes still run")
        for kept in list(self.kept.values()):
            await self._discard(kept)
        self._loop.call_later(0.05, self.stopped.set)
        return {}

    # -- what happens by itself -------------------------------------------------------------------

    def _ended(self, kept: Kept, exit: Exit) -> None:
        record = kept.record
        record.update(state="exited", exit=asdict(exit))
        self._release(kept, fds=not record.get("restart"))
        if not record.get("transient"):
            self.journal.record(kept.id, record)
        kept.ended.set()
        self.endpoint.tell({"event": "exited", **_public(kept)})
        if record.get("transient"):
            self.kept.pop(kept.id, None)
        elif record.get("restart"):
            lived = exit.at - record.get("started_at", 0)
            kept.failures = 0 if lived > RESPAWN_RESET else kept.failures + 1
            delay = min(RESPAWN_CAP, RESPAWN_FIRST * 2 ** max(0, kept.failures - 1))
            self._loop.call_later(delay, self._respawn, kept)

    def _respawn(self, kept: Kept) -> None:
        if self.kept.get(kept.id) is not kept or not kept.record.get("restart"):
            return
        kept.ended.clear()
        try:
            self._launch(kept)
        except OSError as error:
            self._ended(kept, Exit(127, None, time.time()))
            print(f"keeper: cannot start {kept.id}: {error}", file=sys.stderr)
            return
        self.endpoint.tell({"event": "respawned", **_public(kept)})

    def _release(self, kept: Kept, *, fds: bool = True) -> None:
        if kept.output is not None:
            kept.output.finish()
            kept.output = None
        if kept.pidfd is not None:
            # An adopted stranger's pidfd was closed by its watcher.
            with contextlib.suppress(OSError):
                os.close(kept.pidfd)
            kept.pidfd = None
        if fds:
            for fd in kept.fds:
                os.close(fd)
            kept.fds.clear()

    def _lock(self, id: str) -> asyncio.Lock:
        return self._locks.setdefault(id, asyncio.Lock())

    def _find(self, id: str) -> Kept:
        kept = self.kept.get(id)
        if kept is None:
            raise Refused("not_found", f"nothing is kept under {id!r}")
        return kept


def _public(kept: Kept) -> dict[str, Any]:
    keys = ("kind", "state", "pid", "start", "started_at", "exit", "labels", "netns", "argv")
    return {"id": kept.id} | {k: kept.record[k] for k in keys if kept.record.get(k) is not None}


async def main(folder: str) -> None:
    """Run the keeper of ``folder`` until it is told to stop."""
    keeper = Keeper(folder)
    keeper.adopt()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, keeper.stopped.set)
    loop.add_signal_handler(signal.SIGINT, lambda: None)
    await keeper.serve()


def run(folder: str) -> None:
    """Entry point: one keeper a folder, in its own mount namespace, parent of all orphans."""
    os.makedirs(folder, mode=0o711, exist_ok=True)
    lock = os.open(f"{folder}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(0)  # Somebody else won; the provider connects to that one.
    linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
    if os.geteuid() == 0:  # without root there are no containers to assemble anything for
        linux.unshare(linux.CLONE_NEWNS)
        linux.mount(None, "/", None, linux.MS_REC | linux.MS_SLAVE)
        arrange_cgroups()
    os.chdir("/")
    asyncio.run(main(folder))

"""The node's side of the keeper: connect to it, start it when there is none, ask it for things.

One connection for the node's life; requests are answered in any order and changes of state arrive
in between. When the keeper dies it is started again and adopts what it had: the services never
noticed.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

import leasehold
from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError, unavailable
from leasehold.core.logs import get_logger
from leasehold.core.service import Service
from leasehold.node.sockets import short

REQUEST_TIMEOUT = 30.0
"""Seconds a request to the keeper may take; a stop includes its grace."""

RECONNECT_WAIT = 0.2
"""Seconds between attempts to get a keeper again."""

MAX_MESSAGE = 16 << 20

log = get_logger(__name__)

ROOT = str(Path(leasehold.__file__).parent.parent)
"""Where ``leasehold`` is imported from, for the processes we start."""


class ProcessState(msgspec.Struct, frozen=True):
    """How a process is doing. ``state``: starting, running, backoff, failed (crash loop), exited,
    stopping, stopped. ``exit`` is the last exit code, negative for a signal, None when unknown."""

    id: str
    state: str
    pid: int = 0
    restarts: int = 0
    exit: int | None = None
    started_at: float = 0.0


class Supervisor(Service):
    """Host processes by id. ``on_change`` is told of every change of state."""

    def __init__(
        self,
        root: Path,
        *,
        clock: Clock | None = None,
        on_change: Callable[[ProcessState], None] | None = None,
    ) -> None:
        super().__init__("supervisor", clock=clock)
        self.root = root
        self.on_change = on_change
        self.states: dict[str, ProcessState] = {}
        self._serial = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._connected = asyncio.Event()
        self._ending = False
        self._watchers: dict[str, set[asyncio.Future[None]]] = {}

    async def start(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        reader = await self._connect()
        self.spawn(self._follow(reader), name="follow")
        await self.refresh()

    async def stop(self) -> None:
        if self._writer is not None:
            self._writer.close()

    async def refresh(self) -> dict[str, ProcessState]:
        """Every process of the keeper, by id."""
        answer = await self._ask({"op": "list"})
        found = msgspec.convert(answer["processes"], list[ProcessState])
        self.states = {state.id: state for state in found}
        return self.states

    async def launch(self, id: str, spec: dict[str, Any]) -> ProcessState:
        """Start ``id`` as ``spec`` says; when there already is one of that id, nothing is done.

        ``spec``: ``argv``, ``env``, ``cwd``, ``dir`` (log and output), ``socket``, ``limits``,
        ``restart``, ``log_bytes``.
        """
        return await self._state({"op": "start", "id": id, "spec": spec})

    async def halt(self, id: str, *, grace: float = 5.0) -> None:
        """End ``id`` and everything it started, and forget it; unknown ids are fine."""
        await self._ask({"op": "stop", "id": id, "grace": grace}, timeout=REQUEST_TIMEOUT + grace)
        self.states.pop(id, None)

    async def restart(self, id: str) -> ProcessState | None:
        """Kill and start again, also out of a crash loop. None for an unknown id."""
        answer = await self._ask({"op": "restart", "id": id})
        found = answer["process"]
        return None if found is None else msgspec.convert(found, ProcessState)

    async def changed(self, id: str) -> None:
        """Return at the next change of state of ``id``."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        watchers = self._watchers.setdefault(id, set())
        watchers.add(future)
        try:
            await future
        finally:
            watchers.discard(future)
            if not watchers:
                self._watchers.pop(id, None)

    async def shutdown_keeper(self) -> None:
        """End every process and the keeper. For tests and for removing a node."""
        self._ending = True
        with contextlib.suppress(LeaseholdError):
            await self._ask({"op": "shutdown"})

    async def _state(self, request: dict[str, Any]) -> ProcessState:
        return msgspec.convert((await self._ask(request))["process"], ProcessState)

    def _seen(self, raw: object) -> ProcessState:
        state = msgspec.convert(raw, ProcessState)
        for future in self._watchers.get(state.id, ()):
            if not future.done():
                future.set_result(None)
        if state.state == "stopped":
            self.states.pop(state.id, None)
        else:
            self.states[state.id] = state
        return state

    async def _ask(
        self, request: dict[str, Any], *, timeout: float = REQUEST_TIMEOUT
    ) -> dict[str, Any]:
        try:
            async with asyncio.timeout(timeout):
                await self._connected.wait()
                assert self._writer is not None
                n = next(self._serial)
                answer = self._waiting[n] = asyncio.get_running_loop().create_future()
                try:
                    self._writer.write(msgspec.json.encode({"n": n, **request}) + b"\n")
                    reply: dict[str, Any] = await answer
                finally:
                    self._waiting.pop(n, None)
        except (TimeoutError, OSError) as error:
            raise unavailable(
                "keeper_unreachable",
                f"the process keeper of this node does not answer: {error or 'timeout'}",
                got=str(self.root),
            ) from None
        if "error" in reply:
            raise LeaseholdError("keeper_refused", str(reply["error"]), kind=Kind.INTERNAL)
        return reply

    # -- the connection -----------------------------------------------------------------------

    async def _connect(self) -> asyncio.StreamReader:
        path = str(self.root / "keeper.sock")
        try:
            reader, writer = await self._open(path)
        except OSError:
            await self._spawn_keeper()
            reader, writer = await self._open(path)
        self._writer = writer
        self._connected.set()
        return reader

    async def _open(self, path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        with short(path) as name:
            return await asyncio.open_unix_connection(name, limit=MAX_MESSAGE)

    async def _spawn_keeper(self) -> None:
        """Run the keeper's launcher, which returns once the keeper listens."""
        environment = {"PYTHONPATH": ROOT, "PATH": os.environ.get("PATH", os.defpath)}

        def run() -> subprocess.CompletedProcess[bytes]:
            return subprocess.run(
                [sys.executable, "-S", "-s", "-m", "leasehold.node.keeper", str(self.root)],
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=False,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=REQUEST_TIMEOUT,
                check=False,
            )

        done = await asyncio.to_thread(run)
        if done.returncode:
            raise unavailable(
                "keeper_start_failed",
                f"the process keeper ended with {done.returncode}; see {self.root}/keeper.log",
            )

    async def _follow(self, reader: asyncio.StreamReader) -> None:
        while not self.stopping and not self._ending:
            with contextlib.suppress(OSError, ValueError):
                while line := await reader.readline():
                    self._receive(msgspec.json.decode(line))
            self._connected.clear()
            for answer in self._waiting.values():
                if not answer.done():
                    answer.set_exception(OSError("the connection was lost"))
            while not self.stopping and not self._ending:
                log.warning("keeper.lost", root=str(self.root))
                try:
                    reader = await self._connect()
                    self.spawn(self._resync(), name="resync")
                    break
                except (OSError, LeaseholdError):
                    await self.clock.sleep(RECONNECT_WAIT)

    async def _resync(self) -> None:
        with contextlib.suppress(LeaseholdError):
            for state in (await self.refresh()).values():
                if self.on_change is not None:
                    self.on_change(state)

    def _receive(self, message: dict[str, Any]) -> None:
        # Seen in the order in which the keeper said it: whoever waits for the answer goes on
        # later, when a newer state may have come already.
        state = self._seen(message["process"]) if message.get("process") else None
        n = message.get("n")
        if n is None:
            if state is not None and self.on_change is not None:
                self.on_change(state)
            return
        answer = self._waiting.get(n)
        if answer is not None and not answer.done():
            answer.set_result(message)

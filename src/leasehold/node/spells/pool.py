"""Warm worker processes for scripts.

A run takes an idle worker, or starts one while there are fewer than the maximum, or waits. A worker
whose run exceeds its time is killed, together with whatever the script was doing, and replaced. A
worker that dies by itself (out of memory) fails the run it had and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import sys
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from leasehold.core.clock import Clock
from leasehold.core.errors import LeaseholdError
from leasehold.core.logs import get_logger
from leasehold.core.metrics import counter, gauge
from leasehold.core.service import Service
from leasehold.node.spells.worker import MAX_FRAME
from leasehold.node.supervisor import ROOT

Answer = Callable[[str, list[Any]], Awaitable[Any]]
"""Answers a script's request: ``(what, arguments) -> value``; raises LeaseholdError to refuse."""

log = get_logger(__name__)

killed = counter("leasehold_spell_workers_killed", "Spell workers ended by force", ["reason"])
alive = gauge("leasehold_spell_workers", "Spell worker processes")


class Outcome(msgspec.Struct):
    """How a run ended: ok, error, timeout, killed; what it returned, printed and reported."""

    outcome: str
    value: Any = None
    logs: list[str] = []
    errors: list[tuple[str, str]] = []


class Pool(Service):
    """At least ``warm`` and at most ``most`` workers of ``memory_mb`` address space each."""

    def __init__(
        self, *, warm: int = 2, most: int = 8, memory_mb: int = 512, clock: Clock | None = None
    ) -> None:
        super().__init__("spell workers", clock=clock)
        self.warm = warm
        self.most = max(warm, most)
        self.memory_mb = memory_mb
        self._idle: list[_Worker] = []
        self._all: set[_Worker] = set()
        self._starting = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def start(self) -> None:
        # A resource rather than a stop: workers must end on a cancelled start or stop too.
        self.resources.push_async_callback(self._end_all)

    def warm_up(self) -> None:
        """Start the workers that are kept warm. Until then runs start theirs when they need one:
        a node that is being deployed has better use for its processors."""
        for _ in range(self.warm - len(self._all) - self._starting):
            self.spawn(self._replace(), name="warm up")

    async def _end_all(self) -> None:
        await asyncio.gather(*(worker.end() for worker in list(self._all)))
        alive.dec(len(self._all))
        self._all.clear()

    async def run(self, job: dict[str, Any], answer: Answer, *, ttl: float) -> Outcome:
        """Run one script. ``ttl`` seconds count from when it gets a worker."""
        worker = await self._take()
        try:
            async with self.clock.timeout(ttl):
                outcome = await worker.run(job, answer)
        except TimeoutError:
            await self._discard(worker, "timeout")
            return Outcome("timeout", errors=[("timeout", f"ended after {ttl:g} s")])
        except (OSError, EOFError):
            code = await self._discard(worker, "died")
            reason = "it took too much memory" if code in (-6, -9, -11) else f"exit code {code}"
            return Outcome("killed", errors=[("worker_died", f"the run was ended: {reason}")])
        except BaseException:
            await self._discard(worker, "cancelled")
            raise
        self._give_back(worker)
        return outcome

    async def _take(self) -> _Worker:
        while True:
            if self._idle:
                return self._idle.pop()
            if len(self._all) + self._starting < self.most:
                return await self._start_one()
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn
            finally:
                with contextlib.suppress(ValueError):
                    self._waiting.remove(turn)

    def _give_back(self, worker: _Worker) -> None:
        self._idle.append(worker)
        self._wake()

    def _wake(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return

    async def _start_one(self) -> _Worker:
        self._starting += 1
        try:
            worker = await _Worker.spawn(self.memory_mb)
        finally:
            self._starting -= 1
        self._all.add(worker)
        alive.inc()
        return worker

    async def _discard(self, worker: _Worker, reason: str) -> int | None:
        killed.labels(reason).inc()
        if worker in self._all:
            self._all.discard(worker)
            alive.dec()
        code = await worker.end()
        if not self.stopping and len(self._all) + self._starting < self.warm:
            self.spawn(self._replace(), name="replace")
        self._wake()
        return code

    async def _replace(self) -> None:
        try:
            self._give_back(await self._start_one())
        except OSError as error:
            log.error("spell_worker.start_failed", error=str(error))


class _Worker:
    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.process = process
        self.reader = reader
        self.writer = writer

    @classmethod
    async def spawn(cls, memory_mb: int) -> _Worker:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-s",
                "-m",
                "leasehold.node.spells.worker",
                str(theirs.fileno()),
                str(memory_mb),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
                env={"PYTHONPATH": ROOT, "PATH": os.environ.get("PATH", os.defpath)},
                cwd="/",
                start_new_session=True,
            )
        finally:
            theirs.close()
        reader, writer = await asyncio.open_connection(sock=ours, limit=1 << 20)
        return cls(process, reader, writer)

    async def run(self, job: dict[str, Any], answer: Answer) -> Outcome:
        await self._send(job)
        while True:
            (size,) = struct.unpack(">I", await self.reader.readexactly(4))
            if size > MAX_FRAME:
                raise EOFError("a frame is too long")
            message = msgspec.json.decode(await self.reader.readexactly(size))
            if "done" in message:
                return msgspec.convert(message["done"], Outcome)
            await self._send(await self._answered(message, answer))

    async def _answered(self, message: dict[str, Any], answer: Answer) -> dict[str, Any]:
        try:
            return {"value": await answer(message["ask"], message["args"])}
        except LeaseholdError as error:
            return {"error": error.message}
        except (TypeError, ValueError) as error:
            return {"error": f"{message['ask']}: {error}"}

    async def _send(self, message: dict[str, Any]) -> None:
        data = msgspec.json.encode(message)
        self.writer.write(struct.pack(">I", len(data)) + data)
        await self.writer.drain()

    async def end(self) -> int | None:
        """Kill it and wait until it is gone; returns its exit code."""
        self.writer.close()
        with contextlib.suppress(ProcessLookupError):
            if self.process.returncode is None and self.reader.at_eof():
                # It closed its end: give it a moment to end by itself, for its exit code.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.2):
                        await self.process.wait()
            self.process.kill()
        return await self.process.wait()

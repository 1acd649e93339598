"""Running service instances, whatever they are: host processes, containers, parts of the node.

Each instance has a directory ``services/<id>`` (its socket, log and output), and shares
``data/<package>/<name>`` with the versions before and after it, so that an update keeps what the
service stored. The files of a distro are written once per content to ``blueprints/<code>``, so that
an old version goes on from its own files while a new one starts.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError, unavailable
from leasehold.core.logs import get_logger
from leasehold.core.metrics import histogram
from leasehold.core.service import Service
from leasehold.node import rpc
from leasehold.node.distro import PackageDistro, ServiceDistro
from leasehold.node.journal import Instance
from leasehold.node.ports import Containers, ContainerSpec
from leasehold.node.settings import NodeSettings
from leasehold.node.supervisor import ROOT, Supervisor

READY_RETRY = 0.01
"""Seconds between attempts to reach a service that does not get its socket handed over; doubles."""

READY_RETRY_CAP = 0.5

log = get_logger(__name__)

call_seconds = histogram("leasehold_service_call_seconds", "Calls to services", ["outcome"])

BuiltinFunctions = Mapping[str, Mapping[str, rpc.Function]]
"""Builtin name to its functions."""


class Services(Service):
    """Starts, stops and calls instances. Every operation may be repeated."""

    def __init__(
        self,
        root: Path,
        supervisor: Supervisor,
        *,
        containers: Containers | None = None,
        builtins: BuiltinFunctions | None = None,
        clock: Clock | None = None,
        settings: NodeSettings | None = None,
    ) -> None:
        super().__init__("node services", clock=clock)
        self.root = root
        self.supervisor = supervisor
        self.containers = containers
        self.builtins = builtins or {}
        self.settings = settings or NodeSettings()
        self._servers: dict[str, rpc.BuiltinServer] = {}
        self._container_states: dict[str, str] = {}
        self._calls: dict[str, int] = {}
        self._call_ended = asyncio.Condition()

    async def start(self) -> None:
        for name in ("services", "data", "blueprints"):
            (self.root / name).mkdir(parents=True, exist_ok=True)

    async def stop(self) -> None:
        for server in self._servers.values():
            server.request_stop()

    # -- files ---------------------------------------------------------------------------------

    def directory(self, id: str) -> Path:
        return self.root / "services" / id

    def socket(self, id: str) -> Path:
        return self.directory(id) / "socket"

    def data(self, instance: Instance) -> Path:
        return self.root / "data" / (instance.package or f"own-{instance.id}") / instance.name

    def on_disk(self) -> set[str]:
        return {path.name for path in (self.root / "services").iterdir()}

    def write_blueprint(self, code: str, artifacts: Mapping[str, bytes]) -> Path:
        """The directory with the files of ``code``; written completely or not at all."""
        target = self.root / "blueprints" / code
        if not target.is_dir():
            temporary = Path(tempfile.mkdtemp(prefix=".new-", dir=target.parent))
            for name, data in artifacts.items():
                path = temporary / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
                path.chmod(0o755 if data.startswith(b"#!") else 0o644)
            try:
                temporary.rename(target)
            except OSError:
                shutil.rmtree(temporary)  # Another package with the same files was faster.
        return target

    def prune_blueprints(self, used: set[str]) -> None:
        """Remove the files of services that no instance uses any more."""
        for path in (self.root / "blueprints").iterdir():
            if path.name not in used:
                shutil.rmtree(path, ignore_errors=True)

    def spec(self, package: PackageDistro, service: ServiceDistro) -> dict[str, Any]:
        """What is stored with an instance to start it again."""
        return {
            "run": list(service.run),
            "image": service.image,
            "builtin": service.builtin,
            "env": dict(service.env),
            "config": dict(package.config),
            "limits": msgspec.to_builtins(service.limits),
            "restart": msgspec.to_builtins(service.restart),
            "ready": service.ready,
        }

    # -- life ----------------------------------------------------------------------------------

    async def launch(self, instance: Instance) -> None:
        """Start ``instance`` unless it runs already."""
        directory, data = self.directory(instance.id), self.data(instance)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        spec = instance.spec
        if instance.kind == "process":
            await self.supervisor.launch(instance.id, self._process(instance, directory, data))
        elif instance.kind == "container":
            limits = spec["limits"]
            await self._containers().start(
                ContainerSpec(
                    id=instance.id,
                    image=spec["image"],
                    args=tuple(spec["run"]),
                    env=self._env(instance, "/data")
                    | {"LEASEHOLD_SOCKET": "/run/leasehold/socket"}
                    | dict(spec["env"]),
                    socket_dir=directory,
                    data_dir=data,
                    log_path=directory / "log",
                    memory_mb=limits["memory_mb"],
                    cpu=limits["cpu"],
                    pids=limits["pids"],
                )
            )
            self._container_states[instance.id] = "running"
        elif instance.id not in self._servers:
            functions = self.builtins.get(spec["builtin"])
            if functions is None:
                raise LeaseholdError(
                    "builtin_missing",
                    f"this node has nothing that answers as {spec['builtin']!r}",
                    kind=Kind.UNSUPPORTED,
                    got=spec["builtin"],
                )
            server = rpc.BuiltinServer(
                str(self.socket(instance.id)),
                functions,
                limit=self.settings.max_call_bytes,
                clock=self.clock,
            )
            self._servers[instance.id] = server
            self.spawn(server.serve(), name=f"builtin {instance.name}")

    def _process(self, instance: Instance, directory: Path, data: Path) -> dict[str, Any]:
        spec = instance.spec
        app = str(self.root / "blueprints" / instance.code)
        argv = [
            word.replace("{python}", sys.executable).replace("{app}", app) for word in spec["run"]
        ]
        env = self._env(instance, str(data)) | {
            "LEASEHOLD_SOCKET": str(self.socket(instance.id)),
            "PATH": os.environ.get("PATH", os.defpath),
            "PYTHONPATH": ROOT,
            "PYTHONUNBUFFERED": "1",
            "LANG": "C.UTF-8",
        }
        return {
            "argv": argv,
            "env": env | dict(spec["env"]),
            "cwd": str(data),
            "dir": str(directory),
            "socket": str(self.socket(instance.id)) if spec["ready"] == "rpc" else "",
            "limits": spec["limits"],
            "restart": spec["restart"],
            "log_bytes": self.settings.log_bytes,
        }

    def _env(self, instance: Instance, data: str) -> dict[str, str]:
        return {
            "LEASEHOLD_SERVICE": instance.name,
            "LEASEHOLD_INSTANCE": instance.id,
            "LEASEHOLD_OWNER": instance.owner,
            "LEASEHOLD_DATA": data,
            "LEASEHOLD_CONFIG": msgspec.json.encode(instance.spec["config"]).decode(),
            "LEASEHOLD_MAX_CALL_BYTES": str(self.settings.max_call_bytes),
        }

    async def wait_ready(self, instance: Instance) -> None:
        """Return when ``instance`` answers; raise when it ends, crash-loops or takes too long."""
        timeout = self.settings.ready_timeout_sec
        try:
            async with self.clock.timeout(timeout):
                await self._until_ready(instance)
        except TimeoutError:
            raise self._not_ready(instance, f"does not answer after {timeout:g} s") from None

    async def _until_ready(self, instance: Instance) -> None:
        wait = READY_RETRY
        while True:
            state = self.state_of(instance)
            if state in ("failed", "exited"):
                raise self._not_ready(instance, f"ended ({state})")
            if instance.spec["ready"] == "started" and state == "running":
                began = self.supervisor.states.get(instance.id)
                await self.clock.sleep(self.settings.settle_sec)
                if self.supervisor.states.get(instance.id) == began:
                    return
            if instance.spec["ready"] == "rpc" and await self._answers(instance):
                return
            await self.clock.sleep(wait)
            wait = min(wait * 2, READY_RETRY_CAP)

    async def _answers(self, instance: Instance) -> bool:
        """Whether ``instance`` answers; False as soon as its process has changed its state.

        A call to a process that keeps ending waits in its socket, which outlives it: without
        looking at the state one would wait for the deadline of the call.
        """
        call = asyncio.ensure_future(self.call(instance, "system.ready", [], rpc.Context()))
        change = asyncio.ensure_future(self.supervisor.changed(instance.id))
        try:
            await asyncio.wait({call, change}, return_when=asyncio.FIRST_COMPLETED)
            if not call.done():
                return False
            await call
            return True
        except LeaseholdError as error:
            if error.code not in ("service_unreachable", "call_timeout"):
                raise
            return False
        finally:
            change.cancel()
            call.cancel()
            await asyncio.gather(call, change, return_exceptions=True)

    def _not_ready(self, instance: Instance, reason: str) -> LeaseholdError:
        tail = self.logs(instance, 3)
        return unavailable(
            "service_not_ready",
            f"{instance.name} {reason}" + (f"; it said: {' / '.join(tail)}" if tail else ""),
            got=instance.id,
        )

    async def drain(self, instance: Instance) -> None:
        """Return when no call to ``instance`` is under way, or after ``node.drain_sec``."""
        try:
            async with self.clock.timeout(self.settings.drain_sec), self._call_ended:
                await self._call_ended.wait_for(lambda: instance.id not in self._calls)
        except TimeoutError:
            log.warning("service.not_drained", name=instance.name, calls=self._calls[instance.id])

    async def halt(self, instance: Instance) -> None:
        """End ``instance`` and everything it started; its files stay."""
        if instance.kind == "process":
            await self.supervisor.halt(instance.id)
        elif instance.kind == "container" and self.containers is not None:
            await self.containers.stop(instance.id)
            self._container_states.pop(instance.id, None)
        elif server := self._servers.pop(instance.id, None):
            await server.shutdown()

    async def remove(self, instance: Instance) -> None:
        """End ``instance`` and delete its directory, not its data."""
        await self.halt(instance)
        await asyncio.to_thread(shutil.rmtree, self.directory(instance.id), ignore_errors=True)

    async def remove_data(self, package: str) -> None:
        await asyncio.to_thread(shutil.rmtree, self.root / "data" / package, ignore_errors=True)

    async def restart(self, instance: Instance) -> None:
        """End and start it again, also out of a crash loop."""
        if instance.kind == "process":
            await self.supervisor.restart(instance.id)
        elif instance.kind == "container":
            await self._containers().restart(instance.id)
        else:
            await self.halt(instance)
            await self.launch(instance)

    # -- state ---------------------------------------------------------------------------------

    async def refresh(self) -> None:
        """Learn anew what runs."""
        await self.supervisor.refresh()
        if self.containers is not None:
            self._container_states = await self.containers.running()

    def state_of(self, instance: Instance) -> str:
        """running, backoff, failed, exited, stopping, absent, or unknown."""
        if instance.kind == "process":
            state = self.supervisor.states.get(instance.id)
            return state.state if state else "absent"
        if instance.kind == "container":
            if self.containers is None:
                return "unknown"
            if supervised := self.supervisor.states.get(instance.id):
                return supervised.state
            return self._container_states.get(instance.id, "absent")
        return "running" if instance.id in self._servers else "absent"

    def process_ids(self) -> set[str]:
        """Ids of everything that runs as a process or container of this node."""
        return set(self.supervisor.states) | set(self._container_states)

    async def halt_stranger(self, id: str) -> None:
        """End something that runs under an id nobody knows."""
        if id in self._container_states:
            await self._containers().stop(id)
            self._container_states.pop(id, None)
        else:
            await self.supervisor.halt(id)

    def _containers(self) -> Containers:
        if self.containers is None:
            raise LeaseholdError(
                "no_container_runtime",
                "this node cannot run containers; install crun or runc",
                kind=Kind.UNSUPPORTED,
            )
        return self.containers

    # -- use -----------------------------------------------------------------------------------

    async def call(
        self,
        instance: Instance,
        function: str,
        args: list[Any] | dict[str, Any],
        context: rpc.Context,
        *,
        timeout: float | None = None,
    ) -> Any:
        """Call a function; see :func:`leasehold.node.rpc.call`."""
        began = self.clock.monotonic()
        outcome = "error"
        # Counted before the first await, so that whoever moved the alias sees every call that
        # was sent to the old instance.
        self._calls[instance.id] = self._calls.get(instance.id, 0) + 1
        try:
            value = await rpc.call(
                str(self.socket(instance.id)),
                function,
                args,
                context,
                clock=self.clock,
                timeout=timeout or self.settings.call_timeout_sec,
                limit=self.settings.max_call_bytes,
            )
            outcome = "ok"
            return value
        finally:
            call_seconds.labels(outcome).observe(self.clock.monotonic() - began)
            self._calls[instance.id] -= 1
            if not self._calls[instance.id]:
                del self._calls[instance.id]
                async with self._call_ended:
                    self._call_ended.notify_all()

    def logs(self, instance: Instance, lines: int = 100) -> list[str]:
        """The newest ``lines`` of output, oldest first."""
        kept: deque[str] = deque(maxlen=lines)
        for name in ("log.1", "log"):
            path = self.directory(instance.id) / name
            try:
                with path.open(errors="replace") as file:
                    kept.extend(line.rstrip("\n") for line in file)
            except OSError:
                continue
        return list(kept)

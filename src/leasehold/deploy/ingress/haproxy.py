"""The haproxy process and its admin socket.

A change goes to disk first (table, maps, configuration) and then to the running proxy, where it
holds from the reply on, 0.05 ms later. Servers are switched so that no request is lost: new ones
are made ready, old ones are drained (they finish what they have and get nothing new), and only
when they have no request left, or the patience ends, are they gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError, unavailable
from leasehold.core.logs import get_logger
from leasehold.core.service import Service
from leasehold.deploy.ingress import config
from leasehold.deploy.ingress.table import Options, Server, Table, Target, name
from leasehold.deploy.keeper.client import KeeperClient
from leasehold.deploy.programs import find_program

PROCESS = "ingress"
"""The proxy's id at the keeper."""

READY_SECONDS = 10.0
"""How long a started or reloaded proxy may take to answer its admin socket."""

BATCH = 40
"""Commands in one line: the proxy reads at most 16 KiB at once."""

NOTICES = ("IP changed", "no need to change", "port changed")

log = get_logger(__name__)


class Ingress(Service):
    """HTTP by host name on the first port of ``ports`` that is free.

    ``network`` is the keeper's name of the network namespace the proxy runs in (None: the host's).
    :attr:`port` is the one it listens on.
    """

    def __init__(
        self,
        keeper: KeeperClient,
        folder: Path,
        *,
        network: str | None,
        address: str = "0.0.0.0",
        ports: Sequence[int] = (80, 8081),
        threads: int = 2,
        maxconn: int = 4096,
        drain_seconds: float = 30.0,
        clock: Clock | None = None,
    ) -> None:
        super().__init__("ingress", clock=clock)
        self.keeper = keeper
        self.folder = folder
        self.network = network
        self.address = address
        self.ports = tuple(ports)
        self.threads = threads
        self.maxconn = maxconn
        self.drain_seconds = drain_seconds
        self.port = 0
        self.table = Table()
        self._lock = asyncio.Lock()

    # -- life -------------------------------------------------------------------------------------

    async def start(self) -> None:
        self.folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._load()
        kept = (await self.keeper.list()).get(PROCESS)
        if kept is not None and kept["state"] == "running":
            self.port = int(kept["labels"]["port"])
        else:
            await self._launch()
        await self._wait_ready()

    def _load(self) -> None:
        with contextlib.suppress(FileNotFoundError, msgspec.MsgspecError):
            self.table = msgspec.json.decode((self.folder / "table.json").read_bytes(), type=Table)
        # What was draining when we stopped has drained.
        for target in self.table.targets.values():
            for slot in target.draining:
                target.slots.pop(slot, None)
            target.draining.clear()

    async def _launch(self) -> None:
        program = find_program("haproxy")
        if program is None:
            raise LeaseholdError(
                "haproxy_missing",
                "ingress needs haproxy; install it (Debian: apt-get install haproxy)",
                kind=Kind.UNSUPPORTED,
            )
        listener = self._listen()
        admin = socket.socket(socket.AF_UNIX)
        try:
            self.port = listener.getsockname()[1]
            with self._directory() as folder:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.folder / "admin.sock")
                admin.bind(f"/proc/self/fd/{folder}/admin.sock")
            os.chmod(self.folder / "admin.sock", 0o600)
            admin.listen(64)
            self._write()
            await self.keeper.ask("delete", id=PROCESS)
            await self.keeper.ask(
                "spawn",
                id=PROCESS,
                argv=[program, "-W", "-f", "haproxy.cfg"],
                cwd=str(self.folder),
                fds=[listener.fileno(), admin.fileno()],
                numbers=[config.HTTP_FD, config.ADMIN_FD],
                netns=self.network,
                restart=True,
                output={"path": str(self.folder / "haproxy.log")},
                labels={"port": self.port},
            )
        finally:
            listener.close()
            admin.close()

    def _listen(self) -> socket.socket:
        refused: OSError | None = None
        for port in self.ports:
            sock = socket.socket(socket.AF_INET)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind((self.address, port))
                sock.listen(4096)
                return sock
            except OSError as error:
                sock.close()
                refused = error
        raise LeaseholdError(
            "port_in_use",
            f"ingress found none of the ports {', '.join(map(str, self.ports))} free: {refused}; "
            "change deploy.ingress_ports",
            kind=Kind.CONFLICT,
            got=str(self.ports),
        )

    async def _wait_ready(self) -> None:
        try:
            async with self.clock.timeout(READY_SECONDS):
                while True:
                    try:
                        await self.command("show version")
                        return
                    except LeaseholdError:
                        await self.clock.sleep(0.01)
        except TimeoutError:
            raise unavailable(
                "ingress_not_ready",
                f"the proxy does not answer its admin socket; see {self.folder / 'haproxy.log'}",
            ) from None

    async def retire(self) -> None:
        """End the proxy and remove its files."""
        await self.keeper.ask("delete", id=PROCESS)
        shutil.rmtree(self.folder, ignore_errors=True)

    # -- the admin socket -------------------------------------------------------------------------

    async def command(self, *lines: str) -> list[str]:
        """Run admin commands and return their replies, one each."""
        return [await self._command(line) for line in lines]

    async def _command(self, line: str) -> str:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX) as sock, self._directory() as folder:
            sock.setblocking(False)
            try:
                async with self.clock.timeout(READY_SECONDS):
                    await loop.sock_connect(sock, f"/proc/self/fd/{folder}/admin.sock")
                    await loop.sock_sendall(sock, line.encode() + b"\n")
                    reply = bytearray()
                    while chunk := await loop.sock_recv(sock, 65536):
                        reply += chunk
            except (OSError, TimeoutError) as error:
                raise unavailable(
                    "ingress_away", f"the proxy's admin socket does not answer: {error!r}"
                ) from None
        return reply.decode(errors="replace").strip()

    async def _must(self, *lines: str) -> None:
        """Commands whose only good reply is silence (or a notice of what was done).

        They go in one line, so they take effect together and cost one connection.
        """
        for first in range(0, len(lines), BATCH):
            batch = lines[first : first + BATCH]
            reply = await self._command("; ".join(batch))
            for line in reply.splitlines():
                if line and not line.startswith(NOTICES):
                    raise LeaseholdError(
                        "ingress_refused",
                        f"haproxy answered {line!r} to one of {batch!r}",
                        kind=Kind.INTERNAL,
                    )

    @contextlib.contextmanager
    def _directory(self):  # type: ignore[no-untyped-def]
        """Our folder as a descriptor: a socket's own path may have 107 bytes only."""
        fd = os.open(self.folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)

    # -- the table --------------------------------------------------------------------------------

    async def point(
        self,
        key: str,
        *,
        hosts: Iterable[str],
        servers: Iterable[Server],
        options: Options | None = None,
    ) -> None:
        """Make ``hosts`` lead to ``servers``; returns when the old servers have no request left."""
        async with self._lock:
            drained = await self._point(key, sorted(set(hosts)), set(servers), options or Options())
        if drained:
            await self._drain(key, drained)

    async def _point(
        self, key: str, hosts: list[str], servers: set[Server], options: Options
    ) -> list[int]:
        reload = False
        target = self.table.targets.get(key)
        new = target is None
        if target is None:
            number = self.table.free_backend()
            if number is None:
                self.table.pool *= 2
                number = self.table.free_backend()
                reload = True
            assert number is not None
            target = self.table.targets[key] = Target(number, [], {}, [], Options())
        backend = name(target.backend)
        commands: list[str] = []
        added = sorted(servers - target.serving)
        leaving = [
            slot
            for slot, server in target.slots.items()
            if slot not in target.draining and server not in servers
        ]
        free = [slot for slot in range(1, self.table.slots + 1) if slot not in target.slots]
        while len(free) < len(added):
            free.append(self.table.slots + 1)
            self.table.slots += 1
            reload = True
        for slot, server in zip(free, added, strict=False):
            target.slots[slot] = server
            commands += [
                f"set server {backend}/s{slot} addr {server.address} port {server.port}",
                f"set server {backend}/s{slot} weight 100%",
                f"set server {backend}/s{slot} state ready",
            ]
        for slot in leaving:
            target.draining.append(slot)
            commands.append(f"set server {backend}/s{slot} state drain")
        # A host may come from another target (a migration): it is moved in the map, in one step.
        known = dict(self.table.by_host())
        for host in hosts:
            other = known.get(host)
            if other is None:
                commands.append(f"add map hosts.map {host} {backend}")
            elif other is not target:
                other.hosts.remove(host)
                commands.append(f"set map hosts.map {host} {backend}")
        for host in target.hosts:
            if host not in hosts:
                commands.append(f"del map hosts.map {host}")
        target.hosts = hosts
        if options != target.options:
            reload = reload or options.tries != target.options.tries
            commands += self._option_commands(backend, target.options, options)
            target.options = options
        if not commands and not new:
            return []
        self._write()
        if reload:
            await self._reload()
        else:
            await self._must(*commands)
        return leaving

    def _option_commands(self, backend: str, old: Options, new: Options) -> list[str]:
        commands = []
        for file, before, after, default in (
            ("body.map", old.max_body, new.max_body, config.DEFAULTS.max_body),
            ("read.map", old.read_timeout_ms, new.read_timeout_ms, config.DEFAULTS.read_timeout_ms),
        ):
            if before == after:
                continue
            if before != default:
                commands.append(f"del map {file} {backend}")
            if after != default:
                commands.append(f"add map {file} {backend} {after}")
        return commands

    async def _drain(self, key: str, slots: list[int]) -> None:
        """Wait until the draining servers are idle, then give their slots free."""
        target = self.table.targets.get(key)
        if target is None:
            return
        with contextlib.suppress(TimeoutError):
            async with self.clock.timeout(self.drain_seconds):
                while await self._sessions(target.backend, slots):
                    await self.clock.sleep(0.02)
        async with self._lock:
            if self.table.targets.get(key) is not target:
                return
            for slot in slots:
                target.slots.pop(slot, None)
                with contextlib.suppress(ValueError):
                    target.draining.remove(slot)
            self._write()
            backend = name(target.backend)
            # Whoever is still being served past our patience hears so now, not at a timeout.
            for slot in slots:
                await self._command(f"shutdown sessions server {backend}/s{slot}")
            await self._must(*(f"set server {backend}/s{slot} state maint" for slot in slots))

    async def _sessions(self, backend: int, slots: list[int]) -> int:
        """Requests the given servers are still busy with."""
        (reply,) = await self.command(f"show stat {name(backend)} 4 -1")
        servers = {f"s{slot}" for slot in slots}
        total = 0
        for line in reply.splitlines():
            fields = line.split(",")
            if len(fields) > 4 and fields[0] == name(backend) and fields[1] in servers:
                total += int(fields[4] or 0)
        return total

    async def remove(self, keys: Iterable[str]) -> None:
        """Forget targets: their hosts answer 404 at once."""
        async with self._lock:
            commands = []
            for key in keys:
                target = self.table.targets.pop(key, None)
                if target is None:
                    continue
                backend = name(target.backend)
                commands += [f"del map hosts.map {host}" for host in target.hosts]
                commands += self._option_commands(backend, target.options, Options())
                commands += [f"set server {backend}/s{slot} state maint" for slot in target.slots]
            if commands:
                self._write()
                await self._must(*commands)

    def _write(self) -> None:
        """Everything to disk, each file in one step, before the running proxy is told."""
        files = config.maps(self.table)
        files["haproxy.cfg"] = config.render(self.table, threads=self.threads, maxconn=self.maxconn)
        files["table.json"] = msgspec.json.encode(self.table).decode()
        for file, text in files.items():
            temporary = self.folder / f".{file}"
            temporary.write_text(text)
            os.replace(temporary, self.folder / file)

    async def _reload(self) -> None:
        """A new worker with the new configuration; the old one finishes what it has."""
        (before,) = await self.command("show info")
        await self.keeper.ask("signal", id=PROCESS, signal=int(signal.SIGUSR2))
        async with self.clock.timeout(READY_SECONDS):
            while True:
                with contextlib.suppress(LeaseholdError):
                    (info,) = await self.command("show info")
                    if _pid(info) != _pid(before):
                        return
                await self.clock.sleep(0.01)


def _pid(info: str) -> str:
    return next((line for line in info.splitlines() if line.startswith("Pid:")), "")

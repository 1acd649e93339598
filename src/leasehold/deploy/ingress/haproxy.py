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
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError, unavailable
from leasehold.core.logs import get_logger
from leasehold.core.service import Service
from leasehold.deploy.ingress import config
from leasehold.deploy.ingress.admin import PAYLOAD_BYTES, Admin
from leasehold.deploy.ingress.options import Options, Shape
from leasehold.deploy.ingress.table import Server, Table, Target, name
from leasehold.deploy.keeper.client import KeeperClient
from leasehold.deploy.programs import find_program

PROCESS = "ingress"
"""The proxy's id at the keeper."""

READY_SECONDS = 10.0
"""How long a started or reloaded proxy may take to answer its admin socket."""

MISSED_SECONDS = 0.5
"""After so long without a new worker the proxy is told again."""

log = get_logger(__name__)


class Ingress(Service):
    """HTTP by host name on the first port of ``ports`` that is free, HTTPS likewise on one of
    ``tls_ports`` (none: no HTTPS) for the names that :meth:`certify` was given certificates of.

    ``network`` is the keeper's name of the network namespace the proxy runs in (None: the host's).
    :attr:`port` and :attr:`tls_port` (0: none) are those it listens on. Functions in
    :attr:`on_hosts` are called when the host names served have changed.
    """

    def __init__(
        self,
        keeper: KeeperClient,
        folder: Path,
        *,
        network: str | None,
        address: str = "0.0.0.0",
        ports: Sequence[int] = (80, 8081),
        tls_ports: Sequence[int] = (),
        redirect: bool = False,
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
        self.tls_ports = tuple(tls_ports)
        self.redirect = redirect
        self.threads = threads
        self.maxconn = maxconn
        self.drain_seconds = drain_seconds
        self.port = self.tls_port = 0
        self.table = Table()
        self._written: dict[str, str] = {}
        self._old: set[int] = set()
        self.admin = Admin(folder, self.clock)
        self.on_hosts: list[Callable[[], None]] = []
        self.secure: frozenset[str] = frozenset()
        """Host names served with a certificate of theirs."""
        self._lock = asyncio.Lock()

    # -- life -------------------------------------------------------------------------------------

    async def start(self) -> None:
        self.folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        (self.folder / "certs").mkdir(mode=0o700, exist_ok=True)
        self._load()
        kept = (await self.keeper.list()).get(PROCESS)
        if kept is not None and kept["state"] == "running" and self._fits(kept["labels"]):
            self.port = int(kept["labels"]["port"])
            self.tls_port = int(kept["labels"].get("tls_port", 0))
            adopted = True
        else:
            await self._launch()
            adopted = False
        await self._wait_ready()
        if adopted and self._write():
            # An older version of us wrote it otherwise, or settings have changed.
            await self._reload()

    def _fits(self, labels: Mapping[str, Any]) -> bool:
        """Whether the proxy that runs listens on what it should."""
        return bool(labels.get("tls_port")) == bool(self.tls_ports)

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
        await self.keeper.ask("delete", id=PROCESS)
        with contextlib.ExitStack() as mine:
            listener = mine.enter_context(self._listen(self.ports, "deploy.ingress_ports"))
            given = [(config.HTTP_FD, listener)]
            self.port = listener.getsockname()[1]
            if self.tls_ports:
                secure = mine.enter_context(
                    self._listen(self.tls_ports, "deploy.ingress_tls_ports")
                )
                given.append((config.HTTPS_FD, secure))
                self.tls_port = secure.getsockname()[1]
            given.append((config.ADMIN_FD, mine.enter_context(self.admin.bind())))
            self._write()
            await self.keeper.ask(
                "spawn",
                id=PROCESS,
                argv=[program, "-W", "-f", "haproxy.cfg"],
                cwd=str(self.folder),
                fds=[sock.fileno() for _, sock in given],
                numbers=[number for number, _ in given],
                netns=self.network,
                restart=True,
                output={"path": str(self.folder / "haproxy.log")},
                labels={"port": self.port, "tls_port": self.tls_port},
            )

    def _listen(self, ports: Sequence[int], setting: str) -> socket.socket:
        refused: OSError | None = None
        for port in ports:
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
            f"ingress found none of the ports {', '.join(map(str, ports))} free: {refused}; "
            f"change {setting}",
            kind=Kind.CONFLICT,
            got=str(ports),
        )

    async def _wait_ready(self) -> None:
        try:
            async with self.clock.timeout(READY_SECONDS):
                while True:
                    try:
                        await self.admin.ask("show version")
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
        options = options or Options()
        async with self._lock:
            drained = await self._point(key, sorted(set(hosts)), set(servers), options)
            if not drained:
                await self._reshape(key, options)
        self._tell()
        if drained:
            # A worker that is replaced finishes what it has: until then it must know the servers
            # that are to stay, so the reload comes last.
            await self._drain(key, drained)
            async with self._lock:
                await self._reshape(key, options)

    async def _point(
        self, key: str, hosts: list[str], servers: set[Server], options: Options
    ) -> list[int]:
        target = self.table.targets.get(key)
        new = target is None
        if target is None:
            number = await self._backend(Shape.of(options))
            target = self.table.targets[key] = Target(number, [], {}, [], Options())
        backend = name(target.backend)
        commands: list[str] = []
        added = sorted(servers - target.serving)
        leaving = [
            slot
            for slot, server in target.slots.items()
            if slot not in target.draining and server not in servers
        ]
        if len(target.slots) + len(added) > self.table.slots:
            self.table.slots = len(target.slots) + len(added)
            self._write()
            await self._reload()
        free = [slot for slot in range(1, self.table.slots + 1) if slot not in target.slots]
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
            commands += self._option_commands(backend, target.options, options)
            target.options = options
        if commands or new:
            self._write()
            await self.admin.must(*commands)
        return leaving

    async def _backend(self, shape: Shape) -> int:
        """A free backend, with room made if there is none."""
        number = self.table.free_backend(shape)
        if number is None:
            number = self.table.pool
            self.table.pool *= 2
            self.table.reshape(number, shape)
            self._write()
            await self._reload()
        return number

    async def _reshape(self, key: str, options: Options) -> None:
        """Give the target's backend the text its options need."""
        target = self.table.targets.get(key)
        if target is None or target.options != options:
            return
        before = self.table.shape(target.backend)
        if not self.table.reshape(target.backend, Shape.of(options)):
            return
        try:
            self._write()
            await self._reload()
        except BaseException:
            self.table.reshape(target.backend, before)
            raise

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
                while self._replaced() or await self._sessions(target.backend, slots):
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
                await self.admin.ask(f"shutdown sessions server {backend}/s{slot}")
            await self.admin.must(*(f"set server {backend}/s{slot} state maint" for slot in slots))

    def _replaced(self) -> set[int]:
        """Workers that a reload has replaced and that still have requests, of whichever server."""
        self._old = {pid for pid in self._old if os.path.exists(f"/proc/{pid}")}
        return self._old

    async def _sessions(self, backend: int, slots: list[int]) -> int:
        """Requests the given servers are still busy with."""
        reply = await self.admin.ask(f"show stat {name(backend)} 4 -1")
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
                await self.admin.must(*commands)
        self._tell()

    def _tell(self) -> None:
        for listener in self.on_hosts:
            listener()

    @property
    def hosts(self) -> set[str]:
        """Every host name that leads somewhere."""
        return {host for host, _ in self.table.by_host()}

    # -- certificates -----------------------------------------------------------------------------

    async def certify(self, certificates: Mapping[str, str], secure: Iterable[str]) -> None:
        """Serve exactly these certificates: name to chain and key (PEM). ``secure`` are the host
        names they are for."""
        async with self._lock:
            secure = frozenset(secure)
            known = {file.name: file.read_text() for file in (self.folder / "certs").iterdir()}
            wanted = {f"{name}.pem": _dense(text) for name, text in certificates.items()}
            if wanted != known:
                await self._certify(known, wanted)
            if secure != self.secure:
                commands = [f"add map secure.map {host} 1" for host in secure - self.secure]
                commands += [f"del map secure.map {host}" for host in self.secure - secure]
                self.secure = secure
                self._write()
                if self.redirect:  # otherwise nothing asks that map
                    await self.admin.must(*commands)

    async def _certify(self, known: Mapping[str, str], wanted: Mapping[str, str]) -> None:
        # The proxy first: what the files say it is told again at our next start.
        reload = not known.keys() <= wanted.keys()
        for file, text in wanted.items():
            if known.get(file) == text or reload:
                continue
            try:
                await self._install(f"certs/{file}", text, new=file not in known)
            except LeaseholdError as error:
                log.warning("ingress.certificate_by_reload", file=file, error=error.message)
                reload = True
        for file, text in wanted.items():
            _replace(self.folder / "certs" / file, text, mode=0o600)
        for file in known.keys() - wanted.keys():
            (self.folder / "certs" / file).unlink()
        self.table.certificates = sorted(wanted)
        self._write()
        if reload:
            await self._reload()

    async def _install(self, path: str, text: str, *, new: bool) -> None:
        if len(text) > PAYLOAD_BYTES:
            raise LeaseholdError("too_long", "a certificate chain that needs a reload")
        if new:
            await self.admin.must_take(f"new ssl cert {path}")
        await self.admin.must_take(f"set ssl cert {path}", text)
        await self.admin.must_take(f"commit ssl cert {path}")
        if new:
            await self.admin.must_take(f"add ssl crt-list certs.list {path}")

    async def prove(self, token: str, text: str | None) -> None:
        """Answer ``text`` to a certificate authority that asks for ``token``; None: no longer."""
        async with self._lock:
            if text is None:
                if self.table.challenges.pop(token, None) is not None:
                    self._write()
                    await self.admin.must(f"del map acme.map {token}")
            elif self.table.challenges.get(token) != text:
                self.table.challenges[token] = text
                self._write()
                await self.admin.must(f"add map acme.map {token} {text}")

    # -- what is on disk --------------------------------------------------------------------------

    def _write(self) -> bool:
        """Everything to disk, each file in one step, before the running proxy is told.

        True when the configuration itself is another one.
        """
        frame = config.Frame(self.threads, self.maxconn, self.tls_port, self.redirect)
        files = config.files(self.table, frame, self.secure)
        files["table.json"] = msgspec.json.encode(self.table).decode()
        changed = False
        for file, text in files.items():
            before = self._written.get(file)
            if before == text:
                continue
            if before is None and file == "haproxy.cfg":
                with contextlib.suppress(FileNotFoundError):
                    before = (self.folder / file).read_text()
            changed = changed or (file == "haproxy.cfg" and before != text)
            _replace(self.folder / file, text)
            self._written[file] = text
        return changed

    async def _reload(self) -> None:
        """A new worker with the new configuration; the old one finishes what it has."""
        before = _pid(await self.admin.ask("show info"))
        began = self.clock.monotonic()
        while self.clock.monotonic() < began + READY_SECONDS:
            # A proxy that is just starting may miss the signal.
            await self.keeper.ask("signal", id=PROCESS, signal=int(signal.SIGUSR2))
            sent = self.clock.monotonic()
            while self.clock.monotonic() < sent + MISSED_SECONDS:
                with contextlib.suppress(LeaseholdError):
                    if _pid(await self.admin.ask("show info")) != before:
                        self._old.add(before)
                        return
                await self.clock.sleep(0.01)
        raise unavailable(
            "ingress_reload_failed",
            f"the proxy goes on with its old configuration; see {self.folder / 'haproxy.log'}",
        )


def _pid(info: str) -> int:
    found = (line for line in info.splitlines() if line.startswith("Pid:"))
    return int(next(found, "Pid: 0").split()[1])


def _dense(text: str) -> str:
    """Without empty lines, which end a command's payload."""
    return "".join(f"{line.strip()}\n" for line in text.splitlines() if line.strip())


def _replace(path: Path, text: str, *, mode: int = 0o644) -> None:
    temporary = path.with_name(f".{path.name}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    with open(fd, "w") as file:
        file.write(text)
    os.replace(temporary, path)

"""Starts and ends replicas with crun, runc or runsc, through the keeper.

What a replica is (lease, service, revision, number, network) is kept as labels by the keeper, so a
provider that starts again learns all of it from there. Disks, bundles and logs are below one state
folder; see :meth:`OciRuntime.remove_replica` for what goes when.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from leasehold.core import metrics
from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.core.logs import get_logger
from leasehold.core.service import Service
from leasehold.deploy.keeper.client import KeeperClient
from leasehold.deploy.net.node import NodeNetwork
from leasehold.deploy.net.rules import GATEWAY, Attachment
from leasehold.deploy.oci import bundle, cdi, cgroups, disk, image
from leasehold.deploy.oci.image import HealthCheck
from leasehold.deploy.oci.program import Program
from leasehold.deploy.replica import Ended, Order, Replica, State
from leasehold.deploy.settings import DeploySettings
from leasehold.deploy.workload import VolumeMount, disk_bytes, lease_name, volume_mounts
from leasehold.model.market import LeaseId

STARTS = metrics.counter("leasehold_deploy_starts_total", "replicas started", ["runtime", "result"])
START_SECONDS = metrics.histogram("leasehold_deploy_start_seconds", "start of a replica", [])

EARLY_EXITS = 1024
"""Ends kept that came before the answer to their start; only the newest can still be asked for."""

log = get_logger(__name__)


class OciRuntime(Service):
    """``folder`` is absolute and private to this provider."""

    def __init__(
        self,
        keeper: KeeperClient,
        network: NodeNetwork,
        folder: Path,
        settings: DeploySettings | None = None,
        *,
        clock: Clock | None = None,
    ) -> None:
        super().__init__("oci-runtime", clock=clock)
        self.keeper = keeper
        self.network = network
        self.folder = folder
        self.settings = settings or DeploySettings()
        self.program = Program.find(
            self.settings.runtime, user_namespace=self.settings.user_namespace
        )
        self._known: dict[str, Replica] = {}
        self._labels: dict[str, dict[str, Any]] = {}
        self._leases: dict[LeaseId, set[str]] = {}
        self._early: dict[str, dict[str, Any]] = {}
        self._gpus = cdi.Pool(self.settings.gpus)
        self._lost = False
        self._exit_listeners: list[Callable[[Replica], None]] = []
        self._lost_listeners: list[Callable[[], None]] = []
        self._starting = asyncio.Semaphore(self.settings.parallel_starts)
        self._disks = self.settings.disk_limits and disk.available()

    async def start(self) -> None:
        for part in ("bundles", "disks", "logs", "runtime"):
            # Bundles hold tenants' secrets, disks their files: for nobody else on this machine.
            (self.folder / part).mkdir(mode=0o700, parents=True, exist_ok=True)
        self.keeper.on_event.append(self._on_event)
        self.resources.callback(self.keeper.on_event.remove, self._on_event)
        self.keeper.on_reconnect.append(self._on_reconnect)
        self.resources.callback(self.keeper.on_reconnect.remove, self._on_reconnect)
        await self._adopt()

    async def _adopt(self) -> None:
        """Give the network what runs already."""
        await self._look()
        await self.network.adopt(
            {r.key: Attachment(**self._labels[r.key]["network"]) for r in self._known.values()}
        )

    async def _look(self) -> None:
        """Ask the keeper for everything; afterwards what we do and what it tells keeps us right."""
        items = await self.keeper.list()
        self._known.clear()
        self._leases.clear()
        for item in items.values():
            if item["kind"] == "container" and "lease" in item["labels"]:
                self._note(item)
        self._lost = False

    def _note(self, item: dict[str, Any]) -> Replica:
        replica = self._known[item["id"]] = _replica(item)
        self._labels[item["id"]] = item["labels"]
        self._leases.setdefault(replica.lease, set()).add(replica.key)
        return replica

    def _forget(self, key: str) -> None:
        replica = self._known.pop(key, None)
        self._labels.pop(key, None)
        if replica is not None:
            mine = self._leases[replica.lease]
            mine.discard(key)
            if not mine:
                del self._leases[replica.lease]

    def on_exit(self, listener: Callable[[Replica], None]) -> None:
        self._exit_listeners.append(listener)

    def on_lost(self, listener: Callable[[], None]) -> None:
        self._lost_listeners.append(listener)

    def _on_event(self, event: dict[str, Any]) -> None:
        if event["event"] == "exited" and event["kind"] == "container":
            if event["id"] not in self._known:
                # Being removed, or so short-lived that its start is not told yet.
                self._early[event["id"]] = event
                if len(self._early) > EARLY_EXITS:
                    del self._early[next(iter(self._early))]
                return
            replica = self._note(event)
            for listener in self._exit_listeners:
                listener(replica)

    def _on_reconnect(self) -> None:
        self._lost = True
        for listener in self._lost_listeners:
            listener()

    # -- start ------------------------------------------------------------------------------------

    async def start_replica(self, order: Order) -> Replica:
        """Start it, or answer with what runs already under its key."""
        async with self._starting:
            began = self.clock.monotonic()
            try:
                replica = await self._start_replica(order)
            except BaseException:
                STARTS.labels(self.program.name, "failed").inc()
                raise
            STARTS.labels(self.program.name, "started").inc()
            START_SECONDS.observe(self.clock.monotonic() - began)
            return replica

    async def _start_replica(self, order: Order) -> Replica:
        await self._sure()
        known = self._known.get(order.key)
        if known is not None:
            if known.state is State.RUNNING:
                return replace(known)
            await self._delete(order.key, keep_network=True)
        mounts = volume_mounts(order.service)
        self._check(order, mounts)
        busy = [name for labels in self._labels.values() for name in labels.get("gpus", ())]
        gpus = self._gpus.take(order.key, order.service.resources.gpu_units, busy)
        edits = cdi.find(gpus, self.settings.cdi_folders) if gpus else cdi.Edits()
        joined = await self.network.inherit(order.replaces or order.key, order.key)
        if joined is None:
            joined = await self.network.join(
                order.key, mark=order.mark, egress=self.settings.egress
            )
        try:
            home = self.home(order.key)
            spec = self._rootfs(order, mounts, edits)
            await asyncio.to_thread(self._prepare, order, mounts, edits, joined.path, home)
            labels = {
                "lease": str(order.lease),
                "service": order.service.name,
                "revision": order.revision,
                "number": order.number,
                "hash": order.hash,
                "network": asdict(joined.attachment),
                "mark": order.mark,
                "cgroup": self.cgroup(order.lease, order.key),
                "gpus": gpus,
            }
            check = image.health_check(order.image.config)
            if check is not None:
                labels["health"] = asdict(check)
            found = await self.keeper.ask(
                "run",
                id=order.key,
                rootfs=spec,
                run=self.command(order.key, "run", "--detach", "--bundle", str(home),
                                  "--pid-file", str(home / "pid"), order.key),
                delete=self.command(order.key, "delete", "--force", order.key),
                pid_file=str(home / "pid"),
                runtime_log=str(home / "runtime.log"),
                output=self._output(order),
                labels=labels,
            )  # fmt: skip
            return replace(self._note(self._early.pop(order.key, found)))
        except BaseException:
            with contextlib.suppress(LeaseholdError):
                await self._delete(order.key)
            raise
        finally:
            self._gpus.told(order.key)

    def _check(self, order: Order, mounts: list[VolumeMount]) -> None:
        """Refuse what this machine cannot give, with a reason, before anything is made."""
        for mount in mounts:
            if mount.storage.persistent and mount.storage.name not in order.volumes:
                raise LeaseholdError(
                    "volume_missing",
                    f"volume {mount.storage.name!r} was not prepared",
                    kind=Kind.INTERNAL,
                )

    def _rootfs(self, order: Order, mounts: list[VolumeMount], edits: cdi.Edits) -> dict[str, Any]:
        folders, files = edits.places
        volumes: list[dict[str, Any]] = []
        for mount in mounts:
            if mount.storage.storage_class == "ram":
                continue
            volume: dict[str, Any] = {"readonly": mount.readonly}
            if mount.storage.persistent:
                volume["source"] = str(order.volumes[mount.storage.name])
            else:
                volume["inside"] = f"e-{mount.storage.name}"
            volumes.append(volume)
        hosts = f"127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {self._hostname(order)}\n"
        return {
            "layers": [str(layer) for layer in order.image.layers],
            "writable": str(self.folder / "disks" / order.key),
            "disk": str(self._disk_file(order.key)) if self._disks else None,
            "idmap": self._idmap,
            "volatile": True,
            "volumes": volumes,
            "directories": [mount.mount for mount in mounts]
            + folders
            + [
                "/proc",
                "/sys",
                "/dev",
                image.settings_of(order.image.config).get("WorkingDir") or "/",
            ],
            "files": [
                {"path": "/etc/resolv.conf", "text": f"nameserver {GATEWAY}\noptions ndots:0\n"},
                {"path": "/etc/hosts", "text": hosts},
                {"path": "/etc/hostname", "text": self._hostname(order) + "\n"},
                *({"path": file, "text": ""} for file in files),
            ],
        }

    def _prepare(
        self,
        order: Order,
        mounts: list[VolumeMount],
        edits: cdi.Edits,
        netns: str,
        home: Path,
    ) -> None:
        """Bundle and disk, in a thread: it writes files."""
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        own = self.folder / "disks" / order.key
        own.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._disks:
            inside = sum(
                m.size
                for m in mounts
                if not m.storage.persistent and m.storage.storage_class != "ram"
            )
            disk.make(
                self._disk_file(order.key),
                disk_bytes(order.service) + inside,
                self.folder / "disks" / ".templates",
            )
        config = bundle.config(self._plan(order, mounts, netns))
        edits.apply(config)
        (home / "config.json").write_text(json.dumps(config))

    def _plan(self, order: Order, mounts: list[VolumeMount], netns: str) -> bundle.Plan:
        service, config = order.service, order.image.config
        assembled = self.keeper.roots / order.key
        binds = []
        index = 0
        for mount in mounts:
            if mount.storage.storage_class == "ram":
                binds.append(bundle.Mount(mount.mount, None, mount.readonly, mount.size))
            else:
                source = str(assembled / f"v{index}")
                binds.append(bundle.Mount(mount.mount, source, mount.readonly))
                index += 1
        user = image.resolve_user(image.settings_of(config).get("User") or "", order.image.layers)
        defaults = {**order.environment, "HOSTNAME": self._hostname(order), "HOME": user.home}
        return bundle.Plan(
            rootfs=str(assembled / "rootfs"),
            netns=netns,
            cgroup=self.cgroup(order.lease, order.key),
            hostname=self._hostname(order),
            args=image.command(config, entrypoint=service.command, args=service.args),
            env=image.environment(config, service.env or (), defaults),
            limits=bundle.Limits(
                service.resources.cpu_milli, service.resources.memory_bytes, self.settings.pids
            ),
            user=user,
            cwd=image.settings_of(config).get("WorkingDir") or "/",
            mounts=tuple(binds),
            idmap=(self._idmap[0], self._idmap[1]) if self._idmap else None,
            capabilities=bundle.CAPABILITIES if self.settings.capabilities else (),
            readonly_rootfs=self.settings.readonly_rootfs,
        )

    @property
    def _idmap(self) -> list[int] | None:
        if not self.program.user_namespace:
            return None
        return [self.settings.id_base, self.settings.id_count]

    def _hostname(self, order: Order) -> str:
        return f"{order.service.name[:48]}-{order.number}"

    def home(self, key: str) -> Path:
        """The replica's bundle."""
        return self.folder / "bundles" / key

    def _disk_file(self, key: str) -> Path:
        return self.folder / "disks" / key / "disk.ext4"

    def _output(self, order: Order) -> dict[str, Any]:
        path = self.log_folder(order.lease) / order.service.name / f"{order.number}.log"
        return {
            "path": str(path),
            "bytes": self.settings.log_bytes,
            "files": self.settings.log_files,
            "rate": self.settings.log_rate,
        }

    def log_folder(self, lease: LeaseId) -> Path:
        return self.folder / "logs" / lease_name(lease)

    def cgroup(self, lease: LeaseId, key: str = "") -> str:
        """The control group of a lease, or of one of its replicas."""
        path = f"{self.settings.cgroup_parent}/{lease_name(lease)}"
        return f"{path}/{key}" if key else path

    def command(self, key: str, *arguments: str) -> list[str]:
        """A command line of the runtime about the replica ``key``."""
        return self.program.command(
            self.folder / "runtime", self.home(key) / "runtime.log", *arguments
        )

    # -- end --------------------------------------------------------------------------------------

    async def remove_replica(
        self, key: str, *, grace: float = 0.0, keep_network: bool = False
    ) -> None:
        """End it and remove its disk, bundle, control group and network; its logs stay.

        ``keep_network``: another replica is about to inherit it.
        """
        group = self._labels.get(key, {}).get("cgroup", "")
        await self._delete(key, grace=grace, keep_network=keep_network)
        if group:
            cgroups.remove(group)

    async def _delete(self, key: str, *, grace: float = 0.0, keep_network: bool = False) -> None:
        await self.keeper.ask("delete", id=key, grace=grace)
        self._forget(key)
        self._early.pop(key, None)
        if not keep_network:
            await self.network.leave(key)
        await asyncio.to_thread(self._remove_files, key)

    def _remove_files(self, key: str) -> None:
        shutil.rmtree(self.home(key), ignore_errors=True)
        disk.remove(self.folder / "disks" / key)

    def forget_lease(self, lease: LeaseId) -> None:
        """Remove the lease's own control group, once its last replica is gone."""
        cgroups.remove(self.cgroup(lease))

    # -- look -------------------------------------------------------------------------------------

    async def replicas(self, lease: LeaseId | None = None) -> list[Replica]:
        await self._sure()
        keys = self._known if lease is None else self._leases.get(lease, ())
        return [replace(self._known[key]) for key in keys]

    async def _sure(self) -> None:
        """That what we know is what is: look again after the keeper was away."""
        self.keeper.check()
        if self._lost:
            await self._look()

    def usage(self, replica: Replica) -> cgroups.Usage | None:
        return cgroups.usage(self.cgroup(replica.lease, replica.key))

    async def answers(self, replica: Replica, ports: Sequence[int]) -> bool:
        if replica.state is not State.RUNNING:
            return False
        if replica.health is not None and self.program.can_exec:
            return await self._passes(replica, replica.health)
        loop = asyncio.get_running_loop()
        for port in ports:
            sock = await self.network.socket()
            try:
                async with self.clock.timeout(self.settings.check_timeout):
                    await loop.sock_connect(sock, (replica.address, port))
            except (OSError, TimeoutError):
                return False
            finally:
                sock.close()
        return True

    async def _passes(self, replica: Replica, check: HealthCheck) -> bool:
        home = self.home(replica.key)
        process = json.loads((home / "config.json").read_text())["process"]
        process.update(args=list(check.command), terminal=False)
        (home / "health.json").write_text(json.dumps(process))
        try:
            async with self.clock.timeout(check.timeout):
                return await self.run_inside(replica.key, home / "health.json") == 0
        except TimeoutError:
            return False

    async def run_inside(self, key: str, process: Path, fds: Sequence[int] = ()) -> int | None:
        """Run a process beside the replica's own, to its end; its exit code, None if unknown."""
        done: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        id = f"{key}/exec/{id_counter()}"

        def ended(event: dict[str, Any]) -> None:
            if event["event"] == "exited" and event["id"] == id and not done.done():
                done.set_result(event["exit"]["code"])

        self.keeper.on_event.append(ended)
        try:
            await self.keeper.ask(
                "spawn",
                id=id,
                argv=self.command(key, "exec", "--process", str(process), key),
                fds=list(fds),
                numbers=list(range(len(fds))),
                transient=True,
            )
            try:
                return await done
            except asyncio.CancelledError:
                with contextlib.suppress(LeaseholdError):
                    await self.keeper.ask("signal", id=id, signal=9)
                raise
        finally:
            self.keeper.on_event.remove(ended)


_counter = 0


def id_counter() -> int:
    """A number that no other call of this process gets."""
    global _counter
    _counter += 1
    return _counter


def _replica(item: dict[str, Any]) -> Replica:
    labels = item["labels"]
    ended = item.get("exit")
    health = labels.get("health")
    return Replica(
        key=item["id"],
        lease=LeaseId.parse(labels["lease"]),
        service=labels["service"],
        revision=labels["revision"],
        number=labels["number"],
        state=State(item["state"]) if item["state"] != "starting" else State.RUNNING,
        address=labels["network"]["address"],
        mark=labels["mark"],
        pid=item.get("pid", 0),
        started_at=item.get("started_at", 0.0),
        ended=Ended(ended["code"], ended["signal"], ended["at"]) if ended else None,
        health=HealthCheck(**{**health, "command": tuple(health["command"])}) if health else None,
    )

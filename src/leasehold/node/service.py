"""A node: its services, spells and packages as one Service.

Boot, in this order: read the journal; connect to the keeper; resume every service and spell that
was installed (spells are armed, the bus holds what they would fire); run. Only then packages are
deployed, and after the last one the bus opens: no spell fires before the packages it may call are
in place. Until then the node is *not ready*, whatever its HTTP endpoints answer.

A package whose policy is ``fail`` and that cannot be deployed ends the node with that error.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from leasehold.core import ids
from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError, unavailable
from leasehold.core.logs import get_logger
from leasehold.core.metrics import gauge
from leasehold.core.service import Group, Service
from leasehold.events.event import Entity, NewEvent
from leasehold.events.log import ANY, Log
from leasehold.model.events.node import PackageDeployed
from leasehold.node import builtins, bundled, rpc, sources, view
from leasehold.node.deployer import Deployer
from leasehold.node.distro import PackageDistro, SpellDistro
from leasehold.node.gate import TrustGate
from leasehold.node.identity import load_or_create, peer_id
from leasehold.node.install import Action, Result
from leasehold.node.instances import Instances, Principals
from leasehold.node.journal import ROOT_SCOPE, Instance, Journal
from leasehold.node.neighbours import HttpNeighbours
from leasehold.node.ports import Containers, Market, Neighbours, PackageImages
from leasehold.node.removal import Step
from leasehold.node.services import Services
from leasehold.node.settings import NodeSettings, SystemServices
from leasehold.node.spells.engine import SpellEngine
from leasehold.node.spells.log_triggers import LogTriggers
from leasehold.node.spells.pool import Outcome, Pool
from leasehold.node.spells.store import Role
from leasehold.node.spells.trigger import TriggerConfig
from leasehold.node.supervisor import Supervisor

log = get_logger(__name__)

boot_seconds = gauge("leasehold_node_boot_seconds", "From running to all packages in place")
packages_by_status = gauge("leasehold_node_packages", "Packages by status", ["status"])

NODE_START_DEADLINE = 120.0


class Node(Service):
    """``root`` is the state folder. ``packages`` are added to, and override, those configured.

    ``containers`` runs services with an image; a function is given the node's supervisor, as
    :class:`leasehold.node.containers.OciContainers` needs it. ``after`` is what the packages wait
    for before they are deployed: the main loop of a process that has more parts than this one.
    ``gate`` is for those who have to ask it before there is a node. ``offers`` says, by label, at
    which address others find something here; the registry is told once it is there.
    """

    start_deadline = NODE_START_DEADLINE

    def __init__(
        self,
        root: Path,
        *,
        clock: Clock | None = None,
        settings: NodeSettings | None = None,
        system_services: SystemServices | None = None,
        log: Log | None = None,
        market: Market | None = None,
        containers: Containers | Callable[[Supervisor], Containers] | None = None,
        images: PackageImages | None = None,
        neighbours: Neighbours | None = None,
        packages: Sequence[PackageDistro] = (),
        on_step: Step | None = None,
        after: asyncio.Event | None = None,
        gate: TrustGate | None = None,
        offers: Callable[[], Mapping[str, str]] | None = None,
    ) -> None:
        super().__init__("node", clock=clock)
        self.root = root
        self.settings = settings or NodeSettings()
        self.system_services = system_services or SystemServices()
        self.log = log
        self.market = market
        self.containers = containers
        self.images = images
        self.neighbours = neighbours
        self.extra = {package.name: package for package in packages}
        self.on_step = on_step
        self.after = after
        self.offers = offers
        self.gate = gate or TrustGate(
            clock=self.clock, enforce=self.system_services.trust_graph.enforce
        )
        self.deployed = asyncio.Event()
        self._routine: set[asyncio.Task[None]] = set()
        self.boot_ms: float | None = None
        self._signature: object = None

    # -- boot ----------------------------------------------------------------------------------

    async def start(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        self.root.chmod(0o700)
        self.principals = self._principals()
        self.journal = Journal(self.root / "node.db")
        self.resources.callback(self.journal.close)
        self.instances = Instances(self.journal, self.principals)
        self.gate.own, self.gate.weights = self.principals.host, self._weights
        if self.neighbours is None and self.settings.neighbours:
            self.neighbours = HttpNeighbours(
                self.settings.neighbours,
                self.key,
                self.gate,
                self.clock,
                self.settings.max_call_bytes,
            )
        self.supervisor = Supervisor(self.root, clock=self.clock)
        self.pool = Pool(
            warm=self.settings.spell_workers,
            most=self.settings.max_spell_workers,
            memory_mb=self.settings.spell_memory_mb,
            clock=self.clock,
        )
        containers = self.containers
        if callable(containers):
            containers = containers(self.supervisor)
        self.services = Services(
            self.root,
            self.supervisor,
            containers=containers,
            builtins=bundled.builtin_functions(self),
            clock=self.clock,
            settings=self.settings,
        )
        self.builtins = builtins.Builtins(self)
        self.spells = SpellEngine(
            self.root / "spells", self.builtins, self.pool, clock=self.clock, settings=self.settings
        )
        self.log_triggers = LogTriggers(self.log, self.spells, clock=self.clock)
        self.deployer = Deployer(
            self.journal,
            self.instances,
            self.services,
            self.spells,
            clock=self.clock,
            settings=self.settings,
            on_step=self.on_step,
            told=self._told,
        )
        self._parts = Group(
            [
                self.supervisor,
                self.pool,
                self.services,
                self.spells.bus,
                self.spells,
                self.log_triggers,
                self.gate,
            ],
            name="node parts",
            clock=self.clock,
        )
        self.spawn(self._parts.serve(), name="parts")
        await self._parts_started()
        await self._resume()
        self._keep_up(self._boot(), name="boot")

    def _keep_up(self, work: Coroutine[Any, Any, None], *, name: str) -> None:
        """Run ``work`` until the node stops or is cleared."""
        task = self.spawn(work, name=name)
        self._routine.add(task)
        task.add_done_callback(self._routine.discard)

    async def _parts_started(self) -> None:
        # The group runs as our task: when one of its parts cannot start, that error is ours.
        while not self._parts._started.is_set():
            await self.clock.sleep(0.001)

    async def stop(self) -> None:
        """End the node's own parts. Services go on, supervised by the keeper, until the next
        start finds them."""
        await self._rest()
        await self._parts.shutdown()

    async def _rest(self) -> None:
        """Leave off deploying and looking after services; what was half done is undone."""
        for task in list(self._routine):
            task.cancel()
        await asyncio.gather(*self._routine, return_exceptions=True)

    def _principals(self) -> Principals:
        self.key = load_or_create(self.root / "host.key")
        host = peer_id(self.key.public_key())
        management = self.settings.management_id or peer_id(
            load_or_create(self.root / "management.key").public_key()
        )
        return Principals(host, management)

    async def _resume(self) -> None:
        """Bring back what was installed: same ids, aliases and data. One that cannot be brought
        back is reported and does not keep the others."""
        await self.services.refresh()

        async def one(instance: Instance) -> None:
            try:
                if instance.is_spell:
                    scope = self.journal.scopes.get(instance.scope)
                    if scope is None or scope.active:
                        await self.spells.subscribe(instance.id)
                elif self.services.state_of(instance) == "absent":
                    await self.services.launch(instance)
            except (LeaseholdError, OSError) as error:
                log.warning("instance.not_resumed", name=instance.name, error=str(error))

        live = [i for i in self.journal.instances.values() if i.state == "live"]
        async with asyncio.TaskGroup() as tasks:
            for instance in live:
                tasks.create_task(one(instance))

    async def _boot(self) -> None:
        if self.after is not None:
            await self.after.wait()
        self._up_at = time.perf_counter()
        await self.reload()
        await self._offer()
        self.spells.open()
        self.boot_ms = (time.perf_counter() - self._up_at) * 1000
        boot_seconds.set(self.boot_ms / 1000)
        self.deployed.set()
        self.pool.warm_up()
        log.info(
            "node.deployed",
            ms=round(self.boot_ms),
            packages={r.package: r.status for r in self.deployer.results.values()},
        )
        self._keep_up(self._watch_health(), name="health")
        if self.settings.packages_dir and self.settings.rescan_sec:
            self._keep_up(self._rescan(), name="rescan")

    async def _offer(self) -> None:
        """Tell the registry what is here; its spell renews that for as long as this node is."""
        offers = self.offers() if self.offers is not None else {}
        if not offers or self.instances.find("registry") is None:
            return
        host = self.principals.host
        for label, value in offers.items():
            try:
                made = await self.call("registry", "create_resource", [label], caller=host)
                id = rpc.check_reply("registry.create_resource", made)["resource_id"]
                put = await self.call("registry", "put_record", [id, value], caller=host)
                rpc.check_reply("registry.put_record", put)
            except LeaseholdError as error:
                log.warning("registry.not_told", label=label, error=error.message)

    async def find_packages(self) -> sources.Found:
        """Every package that should be here: bundled, own files, own artifacts, given ones."""
        found = sources.Found(bundled.packages(self.system_services))
        if self.settings.packages_dir:
            folder = Path(self.settings.packages_dir)
            self._signature = await asyncio.to_thread(sources.signature, folder)
            found.merge(await asyncio.to_thread(sources.directory, folder, self.settings.packages))
        if self.settings.images:
            if self.images is None:
                raise unavailable(
                    "no_package_images", "node.images is set and this node cannot pull images"
                )
            found.merge(
                await sources.artifacts(self.settings.images, self.images, self.settings.packages)
            )
        found.packages.update(self.extra)
        found.keep({row.name: row.source for row in self.journal.packages.values()})
        found.check_configs(self.settings.packages)
        return found

    async def reload(self) -> dict[str, Result]:
        """Compare packages with what is installed and deploy the difference."""
        found = await self.find_packages()
        results = await self.deployer.deploy(found.packages, broken=found.broken)
        for status in ("unchanged", "ready", "degraded", "failed", "blocked", "held"):
            count = sum(1 for r in results.values() if r.status == status)
            packages_by_status.labels(status).set(count)
        return results

    async def plan(self) -> list[Action]:
        """What :meth:`reload` would change."""
        return self.deployer.plan((await self.find_packages()).packages)

    async def _rescan(self) -> None:
        folder = Path(self.settings.packages_dir)
        while True:
            await self.clock.sleep(self.settings.rescan_sec)
            if await asyncio.to_thread(sources.signature, folder) != self._signature:
                log.info("packages.changed", folder=str(folder))
                try:
                    await self.reload()
                except LeaseholdError as error:
                    log.error("packages.reload_failed", error=error.message)

    async def _watch_health(self) -> None:
        """Restart services that are up and do not answer, and those that vanished."""
        while self.settings.health_sec:
            await self.clock.sleep(self.settings.health_sec)
            await self.services.refresh()
            for instance in list(self.journal.instances.values()):
                if instance.is_spell or instance.state != "live":
                    continue
                try:
                    await self._check(instance)
                except (LeaseholdError, OSError) as error:
                    log.warning("service.unhealthy", name=instance.name, error=str(error))

    async def _check(self, instance: Instance) -> None:
        state = self.services.state_of(instance)
        if state == "absent":
            await self.services.launch(instance)
        elif state == "running" and instance.spec["ready"] == "rpc":
            try:
                await self.services.call(instance, "system.ready", [], rpc.Context())
            except LeaseholdError as error:
                if error.code != "call_timeout" or self.services.state_of(instance) != "running":
                    raise
                log.warning("service.hangs", name=instance.name)
                await self.services.restart(instance)

    async def _told(self, result: Result, version: str) -> None:
        await self.publish(
            "package",
            f"{self.principals.host}/{result.package}",
            PackageDeployed(
                package=result.package,
                version=version,
                status=result.status,
                changes=tuple(result.changes),
                warnings=tuple(result.warnings),
                message=result.message,
                seconds=round(result.seconds, 3),
            ),
        )

    async def publish(self, kind: str, id: str, payload: msgspec.Struct, *, key: str = "") -> None:
        """Append ``payload`` to the log, where there is one; with ``key`` only once."""
        if self.log is None:
            return
        event_id = ids.derived(0.0, kind, id, key) if key else ""
        event = NewEvent.of(payload, id=event_id, clock=self.clock)
        await self.log.append(Entity(kind, id), ANY, [event])

    # -- use -----------------------------------------------------------------------------------

    @property
    def deployer_exists(self) -> bool:
        """False before the node was started."""
        return hasattr(self, "deployer")

    @property
    def ready(self) -> bool:
        """True once every package was deployed (or its failure tolerated)."""
        return self.deployed.is_set()

    def versions(self) -> dict[str, str]:
        """Versions of the node, the spell engine, and every package: installed, else shipped."""
        return view.versions(self)

    def packages(self) -> list[dict[str, Any]]:
        """Every package that is installed or was tried, with its last result."""
        return view.packages(self)

    def list_instances(self, *, spells: bool) -> list[dict[str, Any]]:
        """Services or spells, for people."""
        return [
            self.show(instance)
            for instance in sorted(self.journal.instances.values(), key=lambda i: (i.scope, i.name))
            if instance.is_spell == spells
        ]

    def show(self, instance: Instance) -> dict[str, Any]:
        """One instance with its state."""
        return view.show(self, instance)

    def find(self, name: str, *, spell: bool) -> Instance:
        """A service or spell by id or root alias; the wrong sort counts as not found."""
        what = "spell" if spell else "service"
        found = self.instances.get(name, what=what)
        if found.is_spell != spell:
            raise LeaseholdError(
                f"{what}_not_found",
                f"{name!r} is a {'service' if spell else 'spell'}, not a {what}",
                kind=Kind.NOT_FOUND,
                got=name,
            )
        return found

    async def call(
        self,
        service: str,
        function: str,
        args: list[Any] | dict[str, Any],
        *,
        caller: str = "",
        timeout: float | None = None,
    ) -> Any:
        """Call a service by id or alias, as the management unless ``caller`` says otherwise."""
        target = self.find(service, spell=False)
        run = f"call_{ids.new(self.clock.now()).lower()}"
        context = rpc.Context(
            caller or self.principals.management, target.owner, self.principals.host, run
        )
        return await self.services.call(target, function, args, context, timeout=timeout)

    async def call_spell(
        self, spell: str, function: str, args: list[Any], *, caller: str = ""
    ) -> dict[str, Any]:
        """Call a spell like a service, as the host unless ``caller`` says otherwise."""
        target = self.find(spell, spell=True)
        role: Role = "host" if not caller or self.principals.is_management(caller) else "other"
        sender = caller or self.principals.host
        return await self.spells.function(target.id, role, function, args, sender=sender)

    async def run_spell(self, name: str) -> Outcome:
        """Run a spell once, now, and wait for it."""
        return await self.spells.run_now(self.find(name, spell=True).id)

    async def set_trigger(self, name: str, config: TriggerConfig) -> None:
        await self.spells.set_trigger(self.find(name, spell=True).id, config)

    async def install_spell(self, who: str, scope: str, alias: str, distro: SpellDistro) -> str:
        """Install a spell that belongs to no package; returns its id."""
        return await builtins.install_spell(self, who, scope, alias, distro)

    async def remove_instance(self, who: str, instance: Instance, *, spell: bool) -> None:
        """Remove a service or spell, if ``who`` may."""
        self.instances.check_removal(who, instance, spell=spell)
        await self.deployer.remove(instance)

    async def _weights(self) -> Mapping[str, int]:
        reply = await self.call("trust-graph", "get_weights", [])
        return dict(rpc.check_reply("trust-graph.get_weights", reply)["weights"])

    def connection(self, peer: str, *, connected: bool) -> None:
        """Tell spells that a peer connected or disconnected."""
        self.spells.bus.connection(peer, connected=connected)

    async def remove_everything(self) -> list[str]:
        """End every service, spell and the keeper, and start none again; answers what was ended.

        What is installed stays written down: the next start of the node brings it back.
        """
        await self._rest()
        for instance in self.journal.instances.values():
            if instance.is_spell:
                self.spells.unsubscribe(instance.id)
        services = len(self.supervisor.states)
        await self.supervisor.shutdown_keeper()
        return [f"{services} services of the node"] if services else []


def root_aliases(journal: Journal) -> Mapping[str, str]:
    """Alias to instance id in the root scope."""
    return {alias: id for (scope, alias), id in journal.aliases.items() if scope == ROOT_SCOPE}

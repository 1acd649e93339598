"""Every role in one process: what ``leasehold up`` runs.

The parts are started in the order of the path, each with what the ones before it offer, and stopped
in reverse. Ports that were asked for as 0 are known once their owner has started, so the parts are
made one after another rather than listed.
"""

from __future__ import annotations

import sys

import msgspec

from leasehold.app import public_status
from leasehold.app.adapters import (
    AccountKeys,
    DeployImages,
    DeployMarket,
    ManifestMarket,
    MarketCertificates,
)
from leasehold.app.deploying import make_deploy
from leasehold.app.event_log import open_log, volume_server
from leasehold.app.folder import StateFolder
from leasehold.app.image_node import images_node, in_fleet
from leasehold.app.market import enter, open_market
from leasehold.app.node import make_gate, make_node, signed_by, tell_of_peers
from leasehold.app.settings import Settings
from leasehold.app.traces import Traces
from leasehold.app.workloads import DeployedWorkloads
from leasehold.core.clock import Clock
from leasehold.core.logs import get_logger
from leasehold.core.ops import Ops
from leasehold.core.service import S, Service, running
from leasehold.deploy.doctor import require
from leasehold.dispatch.manager import Manager
from leasehold.dispatch.worker import Worker
from leasehold.gateway import gifts, inside, news, node, offers, services, stories, work
from leasehold.gateway import images as image_routes
from leasehold.gateway import log as log_routes
from leasehold.gateway import volumes as volume_routes
from leasehold.gateway.front import Front
from leasehold.gateway.server import Gateway
from leasehold.images.node import ImagesNode
from leasehold.images.service import Images
from leasehold.index.api import application as index_api
from leasehold.index.follower import Follower
from leasehold.index.handlers import worker_handlers
from leasehold.index.operations import Operations
from leasehold.index.store import Store
from leasehold.manifest.service import ManifestService
from leasehold.market.accounts import Key
from leasehold.market.bids import BidActivity, Bidder
from leasehold.market.client import LedgerClient
from leasehold.market.feed import Feed
from leasehold.market.funds import Funds, FundsActivity
from leasehold.model.market import LeaseId
from leasehold.model.sealing import Vault
from leasehold.observe.engine import Engine
from leasehold.schedule.scheduler import Scheduler
from leasehold.schedule.store import ScheduleStore
from leasehold.storage.volumes import Volumes

START_DEADLINE = 120.0
"""Seconds all parts together may take to start, with workloads to adopt."""

DECOMMISSION = 10001
"""Close reason when the operator gives a lease up."""

log = get_logger(__name__)


class Provider(Service):
    """The whole of Leasehold on one machine, kept in ``folder`` (opened by the caller)."""

    start_deadline = START_DEADLINE
    stop_deadline = 60.0

    def __init__(
        self, folder: StateFolder, settings: Settings | None = None, *, clock: Clock | None = None
    ) -> None:
        super().__init__("provider", clock=clock)
        self.folder = folder
        self.settings = settings or Settings()
        self.address = ""

    async def start(self) -> None:
        self.began = self.clock.monotonic()
        if self.settings.deploy.driver == "oci":
            require(self.settings.deploy)
        self.key = Key.ensure(self.folder / "provider.key")
        self.address = self.key.address
        await self._log_and_market()
        await self._index()
        await self._systems()
        await self._faces()

    async def _add(self, service: S) -> S:
        started = self.clock.monotonic()
        await self.resources.enter_async_context(running(service))
        log.debug("part.ready", service=service.name, s=round(self.clock.monotonic() - started, 3))
        return service

    async def _log_and_market(self) -> None:
        self.ops = await self._add(Ops(self.settings.ops, clock=self.clock))
        self.ops.add_check("provider", lambda: None if self._started.is_set() else "starting")
        self.log = await open_log(self._add, self.folder, self.settings.events, self.clock)
        market = self.settings.market
        self.market_url = await open_market(
            self._add, self.folder, market, self.log, self.clock, self.address
        )
        self.client = LedgerClient(self.market_url, self.key, clock=self.clock, denom=market.denom)
        self.resources.push_async_callback(self.client.close)

    async def _index(self) -> None:
        settings = msgspec.structs.replace(
            self.settings.index, rpc=self.market_url, chain_id=self.settings.market.chain_id
        )
        self.store = await self._add(Store.at(self.folder / "index.sqlite3", self.clock))
        key = self.folder / "node" / "host.key"
        self.gate = make_gate(key, self.settings.system_services, self.clock)
        manager = Manager(
            self.clock,
            self.settings.dispatch,
            admit=self.gate.check_worker if self.gate.enforce else None,
        )
        operations = Operations(manager, self.store, settings, self.clock)
        operations.register()
        manager.mount(index_api(operations, self.clock))
        await self._add(manager)
        assert manager.http is not None
        self.workers = manager.http.app.workers
        self.manager_url = manager.url
        worker = msgspec.structs.replace(
            self.settings.dispatch,
            managers=(f"127.0.0.1:{manager.http.port}",),
            network=settings.network,
            chain_id=settings.chain_id,
        )
        sign = signed_by(key, self.clock) if self.gate.enforce else None
        await self._add(Worker(self.clock, worker, worker_handlers(settings), sign=sign))
        self.follower = await self._add(Follower(manager, self.store, self.clock, settings))
        schedule = msgspec.structs.replace(
            self.settings.schedule,
            managers=self.settings.schedule.managers or (f"127.0.0.1:{manager.http.port}",),
        )
        tasks = await self._add(
            ScheduleStore.at(
                self.folder / "schedule.sqlite3", self.clock, keep_runs=schedule.keep_runs
            )
        )
        self.tasks = tasks
        self.scheduler = await self._add(Scheduler(tasks, self.clock, schedule))

    async def _systems(self) -> None:
        settings = self.settings
        self.engine = Engine(self.log, self.clock, settings.observe)
        self.fleet: ImagesNode | None = None
        root = self.folder / "images"
        if in_fleet(settings.images):
            self.fleet = await self._add(images_node(root, settings, self.gate, self.clock))
            self.ops.add_check("fleet", self._fleet_unready)
            self.images = self.fleet.images
        else:
            self.images = await self._add(Images(root, self.clock, settings.images))
        self.volumes = await self._add(
            Volumes(self.folder / "volumes", self.log, self.engine, self.clock, settings.storage)
        )
        if settings.events.host:
            await self._add(volume_server(self.volumes, settings.events, self.clock))
        vault = Vault.ensure(self.folder / "secrets.key")
        self.deploy = await self._add(
            make_deploy(
                self.log,
                self.engine,
                DeployImages(self.images),
                self.volumes,
                self.folder / "deploy",
                self.address,
                settings.deploy,
                market=DeployMarket(self.client),
                clock=self.clock,
                unseal=vault.open_group,
            )
        )
        self.manifest = await self._add(
            ManifestService(
                self.log,
                self.engine,
                ManifestMarket(self.client),
                self.client,
                provider=self.address,
                vault=vault,
                settings=settings.manifest,
                clock=self.clock,
                capabilities=self.deploy,
            )
        )
        self.bidder = Bidder(
            self.address,
            self.client,
            self.client,
            self.deploy.inventory,
            clock=self.clock,
            settings=settings.market,
        )
        self.engine.register(self.bidder.activity, kind=BidActivity)
        funds = Funds(
            self.address, self.client, self.client, clock=self.clock, settings=settings.market
        )
        self.engine.register(funds.activity, kind=FundsActivity)
        if settings.traces.endpoint:
            await self._add(Traces(self.engine, self.address, settings.traces))
        await self._add(self.engine)
        # Its packages are deployed when everything else runs.
        self.node = await self._add(
            make_node(
                self.folder / "node",
                clock=self.clock,
                events=self.log,
                provider=self.address,
                images=self.images,
                settings=settings.node,
                system_services=settings.system_services,
                after=self._started,
                gate=self.gate,
                offers=lambda: {"gateways": self.gateway.url, "managers": self.manager_url},
            )
        )
        if self.fleet is not None:
            tell_of_peers(self.node, self.fleet.host)
        self.ops.add_check("node", lambda: None if self.node.ready else "packages being deployed")
        await self._add(
            Feed(self.log, self.follower, self.address, clock=self.clock, reader=self.client)
        )

    async def _faces(self) -> None:
        workloads = DeployedWorkloads(self.deploy)

        async def give_up(lease: LeaseId) -> None:
            await self.client.close_bid(lease, DECOMMISSION)

        async def give(to: str, amount: str) -> None:
            await self.client.mint(to, amount)

        front = Front(
            self.folder / "dashboard",
            lambda pages, api: [
                *(sys.executable, "-m", "leasehold.dashboard"),
                *("--pages", str(pages), "--api", str(api), "--ledger", self.market_url),
                *("--sessions", str(self.folder / "sessions")),
            ],
            self.settings.gateway,
            clock=self.clock,
        )
        self.gateway = await self._add(
            Gateway(
                self.settings.gateway,
                clock=self.clock,
                manifest=self.manifest,
                workloads=workloads,
                addresses=self.deploy.addresses,
                keys=AccountKeys(self.client),
                registry=MarketCertificates(self.client),
                operator_token=self.folder.operator_token(),
                parts=public_status.parts(self.deploy, self.engine),
                routes=[
                    *stories.routes(
                        self.log,
                        self.address,
                        workloads,
                        give_up,
                        self.clock,
                        self.settings.gateway,
                    ),
                    *gifts.routes(give),
                    *image_routes.routes(lambda: self.images),
                    *node.routes(self._clear),
                    *services.routes(lambda: self.node),
                    *log_routes.routes(self.log, self.engine),
                    *volume_routes.routes(self.volumes),
                    *offers.routes(self.deploy),
                    *news.routes(self.log, self.address, self.clock, self.volumes.ls),
                    *inside.routes(self.manifest, workloads),
                    *work.routes(self.workers, self.tasks, self.scheduler.wake),
                ],
                wrap=front.around,
            )
        )
        await self._add(front)
        if self.settings.market.rpc:
            entering = enter(self.client, self.gateway.url, self.settings.market, self.clock)
            self.spawn(entering, name="market entry")
        else:
            await self.client.set_provider(self.gateway.url, self.settings.market.attributes)
        log.info("provider.ready", seconds=round(self.clock.monotonic() - self.began, 3))

    def _fleet_unready(self) -> str | None:
        return "; ".join(self.fleet.not_ready()) or None if self.fleet else None

    async def _clear(self) -> list[str]:
        """Remove every workload and everything the node runs from this machine."""
        return [*await self.deploy.teardown_all(), *await self.node.remove_everything()]

    @property
    def ingress_url(self) -> str:
        """Where HTTP to workloads goes; the host name says which."""
        return self.deploy.local_ingress_url

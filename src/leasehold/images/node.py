"""A node among others: the image system with everything that makes a fleet share.

One service out of the two halves: ``Images`` (store, origin, mirror, transfer) and coordination
(libp2p host, DHT, discovery, coord, resolver). It starts in the order in which the parts need one
another: who we are and who else there is, the wire, the content, and only when content can be
served do others learn of it. ``leasehold node --only images`` runs it beside containerd, podman or
skopeo; ``leasehold up`` runs it inside a provider.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from leasehold.core.clock import Clock
from leasehold.core.logs import get_logger
from leasehold.core.service import Group, Service
from leasehold.images.coord.client import Client
from leasehold.images.coord.pump import PullerPump
from leasehold.images.coord.server import Server
from leasehold.images.coord.settings import CoordSettings
from leasehold.images.discovery import TARGET_CAP, Discovery
from leasehold.images.fleet import Fleet
from leasehold.images.gate import DirectGate
from leasehold.images.gossip import Gossip
from leasehold.images.inflight import InFlight
from leasehold.images.membership import AnnouncedMembers, Member, Members
from leasehold.images.negative import NegativeCache
from leasehold.images.ports import Origin, StoreUnavailable
from leasehold.images.resolver import Resolver
from leasehold.images.service import Images
from leasehold.images.settings import ImagesSettings
from leasehold.model.digest import Digest
from leasehold.p2p.host import Host
from leasehold.p2p.kad.dht import Kademlia
from leasehold.p2p.keys import KeyPair, PeerId
from leasehold.p2p.multiaddr import Multiaddr
from leasehold.p2p.settings import P2PSettings

ANNOUNCE_RETRY = 5.0
"""Seconds until a store that could not be listed at the start is asked again."""

log = get_logger(__name__)


class ImagesNode(Service):
    """``node`` is this node's name in the cluster, ``root`` the folder of its content and identity.

    ``members`` tells who else there is (default: this node alone, until others are announced);
    ``bootstrap`` are addresses to find the DHT by beside those of the members, and seeds where
    members announce themselves, which ``fleet_secret`` then restricts to those who know it.
    ``allow`` may refuse a peer that has proven who it is.
    """

    start_deadline = 60.0

    def __init__(
        self,
        root: Path,
        node: str,
        *,
        clock: Clock | None = None,
        settings: ImagesSettings | None = None,
        p2p: P2PSettings | None = None,
        coord: CoordSettings | None = None,
        members: Members | None = None,
        keys: KeyPair | None = None,
        bootstrap: Sequence[Multiaddr] = (),
        fleet_secret: bytes = b"",
        zone: str = "",
        origin: Origin | None = None,
        mirror: bool = True,
        allow: Callable[[PeerId], bool] | None = None,
    ) -> None:
        super().__init__("images node", clock=clock)
        self.allow = allow
        self.node = node
        self.zone = zone
        self.settings = settings or ImagesSettings()
        self.coord_settings = coord or CoordSettings()
        self.keys = keys or KeyPair.load_or_create(root / "identity")
        self.members = members or AnnouncedMembers(clock=self.clock)
        self.images = Images(
            root,
            self.clock,
            self.settings,
            origin=origin,
            keys=self.keys,
            mirror=mirror,
            transfer=True,
        )
        self.host = Host(self.keys, p2p, clock=self.clock, allow=self._allowed)
        self.kad = Kademlia(self.host, clock=self.clock)
        self.discovery = Discovery(
            node,
            self.kad,
            lambda: self.members.known,
            self.clock,
            transfer_port=self.settings.transfer_port,
            bootstrap=bootstrap,
        )
        self.gossip = (
            Gossip(self.host, self.members, seeds=bootstrap, secret=fleet_secret, clock=self.clock)
            if isinstance(self.members, AnnouncedMembers)
            else None
        )
        self._wire()
        self._began = self.clock.monotonic()

    def _wire(self) -> None:
        clock, limits = self.clock, self.coord_settings
        self.flights = InFlight(clock)
        self.negative = NegativeCache(
            clock,
            initial=limits.cooldown_initial,
            multiplier=limits.cooldown_multiplier,
            longest=limits.cooldown_max,
        )
        self.pump = PullerPump(
            self.images.store,
            self.images.downloads,
            self.flights,
            self.negative,
            clock,
            spawn=self.spawn,
            provide=self.discovery.provide,
            settings=limits,
        )
        self.server = Server(
            self.node,
            lambda: self.members.view,
            self.images.store,
            self.flights,
            self.negative,
            self.pump,
            clock,
            limits,
        )
        self.client = Client(self.host, lambda: self.members.known, clock, limits)
        self.gate = DirectGate(
            clock,
            self.flights,
            health=self.discovery.health,
            members=lambda: len(self.members.view),
            held_elsewhere=self._held_elsewhere,
            bootstrapping=self._bootstrapping,
            per_minute=limits.fallback_per_minute,
            jitter=limits.fallback_jitter,
        )
        self.resolver = Resolver(
            self.node,
            lambda: self.members.view,
            self.client,
            self.server,
            self.discovery,
            self.gate,
            clock,
            spawn=self.spawn,
            zone=self.zone,
            settings=limits,
        )
        self.images.cooperate(self.resolver, self.discovery, self.node)
        self.images.fleet = Fleet(
            self.node, lambda: self.members.known, self.discovery, self.negative, clock
        )

    async def start(self) -> None:
        self._began = self.clock.monotonic()
        parts = Group(
            [
                self.members,
                self.host,
                self.kad,
                *([self.gossip] if self.gossip is not None else []),
                self.images,
                self.discovery,
            ],
            "images node parts",
            clock=self.clock,
        )
        self.spawn(parts.serve(), name="parts")
        self._parts = parts
        await parts._started.wait()
        self.server.bind(self.host)
        member = self.member
        log.info("images.node.listening", addresses=member.addresses, transfer=member.transfer)
        self.members.announce_own(member)
        self.spawn(self._announce_all(), name="announce")

    async def stop(self) -> None:
        self.pump.draining = True
        self.server.unbind(self.host)
        await self._parts.shutdown()

    @property
    def member(self) -> Member:
        """This node as others should know it. Known once started."""
        server = self.images.transfer_server
        port = server.port if server is not None else self.settings.transfer_port
        host = next((w[0] for a in self.host.addresses if (w := a.tcp())), "127.0.0.1")
        if self.settings.transfer_host not in ("0.0.0.0", "::"):
            host = self.settings.transfer_host
        return Member(
            node=self.node,
            peer_id=str(self.keys.peer_id),
            addresses=tuple(str(a.with_peer(self.keys.peer_id)) for a in self.host.addresses),
            transfer=f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
            zone=self.zone,
        )

    def not_ready(self) -> list[str]:
        """Why this node cannot serve the fleet yet; empty when it can."""
        reasons = self.members.unready()
        view = self.members.known
        if not reasons and self.node not in view.members and len(view):
            reasons.append("announce pending")
        if not any(a.tcp() for a in self.host.addresses):
            reasons.append("no dialable p2p address")
        if len(view) > 1 and not len(self.kad.table):
            reasons.append("DHT table empty")
        return reasons

    def _allowed(self, peer: PeerId) -> bool:
        if self.allow is not None and not self.allow(peer):
            return False
        if self.gossip is not None:
            return True  # one has to come in to announce oneself
        return not self.coord_settings.members_only or peer in self.members.known.by_peer

    def _bootstrapping(self) -> bool:
        """The first moments: over after the window, or as soon as the table is full enough."""
        limits = self.coord_settings
        if self.clock.monotonic() - self._began >= limits.bootstrap_window:
            return False
        target = min(len(self.members.known) - 1, TARGET_CAP)
        return target <= 0 or len(self.kad.table) < target * limits.bootstrap_table_percent / 100

    async def _held_elsewhere(self, digest: Digest) -> bool:
        return bool(await self.discovery.find(digest))

    async def _announce_all(self) -> None:
        while True:
            try:
                count = await self.discovery.announce_all(self.images.store)
            except StoreUnavailable as error:
                log.warning("images.announce_postponed", error=error.message)
                await self.clock.sleep(ANNOUNCE_RETRY)
            else:
                log.info("images.announced", digests=count)
                return

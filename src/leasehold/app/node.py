"""The node of this machine, wired: its market is the log, its images are this provider's."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from leasehold.core.clock import Clock
from leasehold.core.logs import get_logger
from leasehold.events.log import Log
from leasehold.images.service import Images
from leasehold.node import legacy
from leasehold.node.containers import OciContainers
from leasehold.node.gate import TrustGate, sign
from leasehold.node.identity import load_or_create, peer_id
from leasehold.node.log_market import LogMarket
from leasehold.node.ports import PackageImages, PulledImage
from leasehold.node.service import Node
from leasehold.node.settings import NodeSettings, SystemServices
from leasehold.p2p.host import Host

log = get_logger(__name__)


class NodeImages:
    """Implements ``node.ports.PackageImages`` with the image system."""

    def __init__(self, images: Images) -> None:
        self.images = images

    async def ensure(self, reference: str, *, holder: str) -> PulledImage:
        return await self.images.ensure(reference, holder=holder)

    async def release(self, holder: str, *, keep: Collection[str] = ()) -> None:
        self.images.keeping.release(holder, keep=keep)


def make_node(
    root: Path,
    *,
    clock: Clock,
    events: Log,
    provider: str,
    images: Images,
    settings: NodeSettings,
    system_services: SystemServices,
    environ: Mapping[str, str] = os.environ,
    after: asyncio.Event | None = None,
    gate: TrustGate | None = None,
    offers: Callable[[], Mapping[str, str]] | None = None,
) -> Node:
    """A node kept in ``root``; old variables of ``environ`` come last, each with a warning.

    Its packages are deployed once ``after`` is set, and then others find ``offers`` by name.
    """
    services, warnings = legacy.apply(system_services, environ)
    for warning in warnings:
        log.warning("settings.old_variable", message=warning)
    source: PackageImages = NodeImages(images)
    return Node(
        root,
        clock=clock,
        settings=settings,
        system_services=services,
        log=events,
        market=LogMarket(events, provider),
        images=source,
        containers=lambda supervisor: OciContainers(supervisor, root / "containers", source),
        after=after,
        gate=gate,
        offers=offers,
    )


def make_gate(key: Path, settings: SystemServices, clock: Clock) -> TrustGate:
    """Who may join this node, whose key is (or will be) in the file ``key``."""
    own = peer_id(load_or_create(key).public_key())
    return TrustGate(own, clock=clock, enforce=settings.trust_graph.enforce)


def signed_by(key: Path, clock: Clock) -> Callable[[bytes], dict[str, str]]:
    """What a worker proves itself with: the key in a file of its own, made when it is not there."""
    private = load_or_create(key)
    return lambda body: sign(private, body, clock.now())


def tell_of_peers(node: Node, host: Host) -> None:
    """Let spells know of every peer that ``host`` got to know, or lost."""
    host.on_identified.append(
        lambda connection, _identity: node.connection(str(connection.peer), connected=True)
    )
    host.on_disconnected.append(lambda peer: node.connection(str(peer), connected=False))

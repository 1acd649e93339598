"""The node of this machine, wired: its market is the log, its images are this provider's."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path

from leasehold.core.clock import Clock
from leasehold.core.logs import get_logger
from leasehold.events.log import Log
from leasehold.images.service import Images
from leasehold.node import legacy
from leasehold.node.containers import OciContainers
from leasehold.node.log_market import LogMarket
from leasehold.node.ports import PackageImages, PulledImage
from leasehold.node.service import Node
from leasehold.node.settings import NodeSettings, SystemServices

log = get_logger(__name__)


class NodeImages:
    """Implements ``node.ports.PackageImages`` with the image system."""

    def __init__(self, images: Images) -> None:
        self.images = images

    async def ensure(self, reference: str) -> PulledImage:
        return await self.images.ensure(reference)


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
) -> Node:
    """A node kept in ``root``; old variables of ``environ`` come last, each with a warning.

    Its packages are deployed once ``after`` is set.
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
    )

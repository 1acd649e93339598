"""The deploy system that the settings name: of this machine, or of a cluster."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leasehold.core.clock import Clock
from leasehold.deploy.ports import Images, LeaseMarket, Volumes
from leasehold.deploy.service import DeployService
from leasehold.deploy.settings import DeploySettings
from leasehold.events.log import Log
from leasehold.model.manifest import ManifestGroup
from leasehold.observe.engine import Engine

if TYPE_CHECKING:
    from leasehold.deploy.kubernetes.service import KubernetesService


def make_deploy(
    log: Log,
    engine: Engine,
    images: Images,
    volumes: Volumes,
    folder: Path,
    provider: str,
    settings: DeploySettings,
    *,
    market: LeaseMarket,
    clock: Clock,
    unseal: Callable[[dict[str, Any], str], ManifestGroup],
) -> DeployService | KubernetesService:
    """``provider`` is the address whose leases are deployed. On a cluster, images and persistent
    volumes are the cluster's affair."""
    if settings.driver == "kubernetes":
        # Its client is only loaded where it is used.
        from leasehold.deploy.kubernetes.service import KubernetesService

        return KubernetesService(
            log, engine, folder, provider, settings, market=market, clock=clock, unseal=unseal
        )
    return DeployService(
        log, engine, images, volumes, folder, settings, market=market, clock=clock, unseal=unseal
    )

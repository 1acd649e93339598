"""What happens to a lease after it was won, on the lease's own entity: its timeline."""

from __future__ import annotations

from typing import Any

import msgspec

from leasehold.model.events import payload
from leasehold.model.market import LeaseId


@payload("manifest.received")
class ManifestReceived(msgspec.Struct, frozen=True, kw_only=True):
    """An accepted manifest of this lease's group; once per (lease, hash).

    ``group`` is the manifest group as JSON, with secrets replaced by references where a secret
    store is configured; ``hash`` is the hex version hash of the whole manifest.
    """

    id: LeaseId
    hash: str
    group: dict[str, Any]
    leased: dict[str, Any] = {}
    """The group as leased on the market."""
    withheld: list[str] = []
    """Host names of the group that another lease of the same owner holds: not to be routed."""


@payload("deploy.image_pulled")
class ImagePulled(msgspec.Struct, frozen=True, kw_only=True):
    """``bytes`` came from origin and peers together; 0 when everything was held."""

    id: LeaseId
    service: str
    reference: str
    digest: str
    bytes: int
    seconds: float


@payload("deploy.volume_ready")
class VolumeReady(msgspec.Struct, frozen=True, kw_only=True):
    id: LeaseId
    service: str
    volume: str
    seconds: float


@payload("deploy.started")
class ServiceStarted(msgspec.Struct, frozen=True, kw_only=True):
    """One replica's process exists. ``key`` names the container."""

    id: LeaseId
    service: str
    replica: int
    key: str
    hash: str = ""


@payload("deploy.running")
class WorkloadRunning(msgspec.Struct, frozen=True, kw_only=True):
    """Every replica of every service of the manifest ``hash`` was started."""

    id: LeaseId
    hash: str
    uris: list[str] = []
    revisions: dict[str, str] = {}
    """By service: a hash of what its containers are made of."""
    digests: dict[str, str] = {}
    """By service: the image that runs, whatever its tag names later."""


@payload("deploy.healthy")
class WorkloadHealthy(msgspec.Struct, frozen=True, kw_only=True):
    """Every service answers (image HEALTHCHECK, else a TCP accept on its ports)."""

    id: LeaseId
    hash: str


@payload("deploy.unhealthy")
class WorkloadUnhealthy(msgspec.Struct, frozen=True, kw_only=True):
    id: LeaseId
    hash: str
    reason: str


@payload("deploy.failed")
class DeployFailed(msgspec.Struct, frozen=True, kw_only=True):
    """This manifest could not be deployed; what ran before goes on running."""

    id: LeaseId
    hash: str
    code: str
    message: str
    final: bool = False
    """True when trying again cannot help until the manifest changes."""
    path: str = ""


@payload("deploy.exited")
class ReplicaExited(msgspec.Struct, frozen=True, kw_only=True):
    """``status`` is the wait status, None when it ended unseen (unknown is not zero)."""

    id: LeaseId
    service: str
    replica: int
    key: str
    status: int | None = None
    reason: str = ""


@payload("deploy.removed")
class WorkloadRemoved(msgspec.Struct, frozen=True, kw_only=True):
    """Nothing of the lease is left on the node."""

    id: LeaseId

"""What a lease asks to run, worked out of its manifest group: names, revisions, environment.

A *revision* is a hash of everything that goes into a service's containers: an update that changes
only hosts or the number of replicas leaves running ones alone. A replica's *key* is made of lease,
service, revision and number, so what should run and what does run are compared by name alone.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec

from leasehold.core.errors import LeaseholdError, Violation
from leasehold.model.hostname import static_host
from leasehold.model.manifest import Expose, ManifestGroup, ManifestService, StorageParams
from leasehold.model.market import LeaseId
from leasehold.model.resources import Storage

REVISION_CHARS = 10
LEASE_CHARS = 20
"""Characters of the lease's name in a replica's key: 100 bits."""


def lease_name(lease: LeaseId) -> str:
    """The name of everything that belongs to a lease: a hash, so it fits where names are short.

    Base 32 (hex alphabet, lower case, unpadded) of the SHA-224 of the lease's id as text.
    """
    digest = hashlib.sha224(str(lease).encode()).digest()
    return base64.b32hexencode(digest).decode().lower().rstrip("=")


@dataclass(frozen=True)
class Workload:
    """One accepted manifest group of a lease; ``hash`` is the version hash it came with."""

    lease: LeaseId
    hash: str
    group: ManifestGroup

    @classmethod
    def of(cls, lease: LeaseId, hash: str, group: Mapping[str, Any]) -> Workload:
        try:
            return cls(lease, hash, msgspec.convert(group, ManifestGroup))
        except msgspec.ValidationError as error:
            raise LeaseholdError(
                "manifest_unusable", f"the manifest group is unusable: {error}"
            ) from None

    @cached_property
    def name(self) -> str:
        return lease_name(self.lease)

    @property
    def services(self) -> list[ManifestService]:
        return self.group.all_services

    def environment(self, public_host: str) -> dict[str, str]:
        """What every container is told about its lease unless the manifest says otherwise."""
        lease = self.lease
        return {
            "AKASH_GROUP_SEQUENCE": str(lease.gseq),
            "AKASH_DEPLOYMENT_SEQUENCE": str(lease.dseq),
            "AKASH_ORDER_SEQUENCE": str(lease.oseq),
            "AKASH_OWNER": lease.owner,
            "AKASH_PROVIDER": lease.provider,
            "AKASH_CLUSTER_PUBLIC_HOSTNAME": public_host,
        }

    def hosts(self, service: ManifestService, expose: Expose, domain: str) -> list[str]:
        """The host names of an ingress port: those asked for, else a generated one."""
        if expose.hosts:
            return [host.lower() for host in expose.hosts]
        return [static_host(str(self.lease), service.name, domain)] if domain else []

    def key(self, service: ManifestService, revision: str, number: int) -> str:
        return f"{self.name[:LEASE_CHARS]}-{service.name[:40]}-{revision}-{number}"


def revision(service: ManifestService, digest: str) -> str:
    """A hash of what a container of ``service`` is made of, with the image's ``digest``."""
    parts = msgspec.to_builtins(service)
    for key in ("expose", "count", "credentials"):
        parts.pop(key, None)
    text = msgspec.json.encode([parts, digest], order="sorted")
    return hashlib.sha256(text).hexdigest()[:REVISION_CHARS]


@dataclass(frozen=True, slots=True)
class VolumeMount:
    """A volume of a service and where it is mounted."""

    storage: Storage
    mount: str
    readonly: bool

    @property
    def size(self) -> int:
        return int(self.storage.size)


def volume_mounts(service: ManifestService) -> list[VolumeMount]:
    """The volumes with a mount point; the nameless rest is the container's own disk."""
    by_name = {storage.name: storage for storage in service.resources.volumes}
    found = []
    for params in service.mounts:
        storage = by_name.get(params.name)
        if storage is None:
            raise LeaseholdError(
                "volume_unknown",
                f"service {service.name!r} mounts volume {params.name!r}, which it was not leased",
                path=f"services.{service.name}.params.storage.{params.name}",
                expected=", ".join(sorted(by_name)) or "none",
                got=params.name,
            )
        _check_mount(service, params)
        found.append(VolumeMount(storage, params.mount, params.read_only))
    return found


def stateful(service: ManifestService) -> bool:
    """True when two versions of it must not run side by side: it has a persistent volume."""
    return any(mount.storage.persistent for mount in volume_mounts(service))


def exclusive(service: ManifestService) -> bool:
    """True when the old version must end before the new one starts: they need the same thing."""
    return stateful(service) or service.resources.gpu_units > 0


def disk_bytes(service: ManifestService) -> int:
    """Bytes of the container's own disk: the volumes that are not mounted anywhere."""
    mounted = {params.name for params in service.mounts}
    return sum(int(s.size) for s in service.resources.volumes if s.name not in mounted)


def _check_mount(service: ManifestService, params: StorageParams) -> None:
    parts = params.mount.split("/")
    forbidden = {"", "proc", "sys", "dev"}
    if not params.mount.startswith("/") or ".." in parts or parts[1] in forbidden:
        raise LeaseholdError(
            "bad_mount_point",
            f"service {service.name!r} cannot mount volume {params.name!r} at {params.mount!r}",
            path=f"services.{service.name}.params.storage.{params.name}.mount",
            expected="an absolute path outside /proc, /sys and /dev",
            got=params.mount,
        )


def unsupported(group: ManifestGroup, gpus: int = 0, leased_ips: int = 0) -> list[Violation]:
    """Everything of ``group`` that a container on one machine, which offers so many GPUs and
    addresses, cannot be given."""
    found = []
    for index, service in enumerate(group.all_services):
        path = f"services[{index}]"
        if service.resources.gpu_units > gpus:
            found.append(
                Violation(
                    "no_gpu",
                    f"this provider has {gpus or 'no'} GPUs",
                    f"{path}.resources.gpu.units",
                    str(gpus),
                    str(service.resources.gpu_units),
                )
            )
        try:
            volume_mounts(service)
        except LeaseholdError as error:
            found.append(
                Violation(
                    error.code, error.message, f"{path}.params.storage", error.expected, error.got
                )
            )
        for number, expose in enumerate(service.exposes):
            if expose.ip and not leased_ips:
                found.append(
                    Violation(
                        "no_leased_ip",
                        "this provider leases no IP addresses",
                        f"{path}.expose[{number}].ip",
                        got=expose.ip,
                    )
                )
        if service.params is not None and service.params.tee is not None:
            found.append(
                Violation(
                    "no_tee",
                    "this provider has no trusted execution environment",
                    f"{path}.params.tee",
                    got=service.params.tee.type,
                )
            )
    return found

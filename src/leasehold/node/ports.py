"""What a node needs from the rest of Leasehold, as small Protocols. Wired in ``app/``."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec


class ContainerSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A service to be run as a container.

    ``socket_dir`` is a directory of the host to be seen at ``/run/leasehold`` inside, where the
    service listens at ``$LEASEHOLD_SOCKET``; ``data_dir`` is seen at ``/data``. An empty ``args``
    means the image's own command. Limits: MiB, cores, processes; 0 for none.
    """

    id: str
    image: str
    args: tuple[str, ...]
    env: dict[str, str]
    socket_dir: Path
    data_dir: Path
    log_path: Path
    memory_mb: int = 0
    cpu: float = 0.0
    pids: int = 0


class Containers(Protocol):
    """Runs services as containers. Every call may be repeated."""

    async def start(self, spec: ContainerSpec) -> None:
        """Run it unless a container of that id runs already."""
        ...

    async def stop(self, id: str, *, grace: float = 5.0) -> None:
        """End and remove it; unknown ids are fine."""
        ...

    async def restart(self, id: str) -> None: ...

    async def running(self) -> dict[str, str]:
        """Id to state (``running``, ``exited``, ``unknown``) of this node's service containers."""
        ...


class PulledImage(Protocol):
    """An image whose layers are unpacked, bottom first."""

    @property
    def digest(self) -> str: ...

    @property
    def layers(self) -> Sequence[Path]: ...


class PackageImages(Protocol):
    """Fetches OCI artifacts by digest, and keeps those that are held."""

    async def ensure(self, reference: str, *, holder: str) -> PulledImage:
        """Have it here, unpacked, until ``holder`` releases it."""
        ...

    async def release(self, holder: str, *, keep: Collection[str] = ()) -> None:
        """``holder`` uses no image any more, except the digests in ``keep``."""
        ...


class LeaseView(msgspec.Struct, frozen=True, kw_only=True):
    """A lease as the market says, and what is deployed for it.

    ``state`` and ``deployed`` are ``None`` when they could not be learned: unknown, not ended.
    ``manifest`` is the hash of the manifest that is to run, ``running`` of what runs.
    """

    id: str
    state: str | None
    manifest: str | None = None
    deployed: str | None = None
    running: str | None = None


class Market(Protocol):
    """The leases of this provider, and what is deployed for them."""

    async def leases(self) -> list[LeaseView] | None:
        """Every lease of this provider that is not long closed; None when the market does not
        answer. A lease whose details cannot be read is in the list, with state None."""
        ...

    async def lease(self, id: str) -> LeaseView | None:
        """One lease; None when the market says that there is none. Raises when it is unknown."""
        ...


class Neighbours(Protocol):
    """Other nodes that run the same registry."""

    async def peers(self) -> list[str]:
        """Peer ids of the nodes to copy records to."""
        ...

    async def call(self, peer: str, service: str, function: str, args: list[Any]) -> Any:
        """Call a service of another node; raises when it does not answer."""
        ...


class Publisher(Protocol):
    """Where steps of deploys and findings of spells become events."""

    async def publish(self, kind: str, id: str, payload: msgspec.Struct, *, key: str = "") -> None:
        """Append ``payload`` to the entity ``kind:id``; with a ``key`` only once."""
        ...

"""What deploy needs from others."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from leasehold.model.market import LeaseId


class Image(Protocol):
    """An image on this machine, unpacked."""

    @property
    def reference(self) -> str: ...

    @property
    def digest(self) -> str: ...

    @property
    def config(self) -> Mapping[str, Any]:
        """The OCI image configuration."""
        ...

    @property
    def layers(self) -> Sequence[Path]:
        """Directories, bottom first, owned by root and never changed."""
        ...


class Images(Protocol):
    """Where images come from."""

    async def ensure(
        self,
        reference: str,
        *,
        credentials: Any = None,
        progress: Callable[[int, int | None], None] | None = None,
        holder: str = "",
    ) -> Image:
        """``holder`` (a lease) uses the image until :meth:`release`: it stays on this machine."""
        ...

    async def release(self, holder: str, *, keep: Collection[str] = ()) -> None:
        """``holder`` uses no image any more, except those with the digests in ``keep``."""
        ...


class Volumes(Protocol):
    """Where persistent volumes come from."""

    async def ensure(
        self, owner: str, dseq: int, service: str, volume: str, size_bytes: int
    ) -> Path:
        """The host's directory of the volume, made when it is new."""
        ...

    async def release(self, owner: str, dseq: int) -> None:
        """Nothing of the deployment runs here any more; what becomes of its data is the storage
        system's policy."""
        ...

    def reserved_bytes(self) -> int:
        """What all volumes of this machine may take, those of leases that are over included."""
        ...


class LeaseMarket(Protocol):
    """What deploy tells the market about a lease."""

    async def close_bid(self, lease: LeaseId, *, reason: int) -> None:
        """Give the lease up. Closed already counts as done."""
        ...

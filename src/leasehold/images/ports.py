"""What the parts of the image system ask of one another.

The **data plane** (store, origin, downloads, mirror, transfer) works alone: with no ``Resolver``
every digest comes from its origin. **Coordination** (coord, DHT, HRW) supplies a ``Resolver`` and
an ``Announcer`` and in turn consumes ``Store`` (is it here?) and ``Puller`` (fetch it from the
origin now, as the node chosen for it). Digests are ``sha256:<hex>`` everywhere.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import msgspec

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.model.digest import Digest


class ContentKind(enum.IntEnum):
    """What a digest is; the values are the wire's (``PleasePullRequest.Kind``), 0 reads as BLOB."""

    BLOB = 1
    MANIFEST = 2
    CONFIG = 3

    @property
    def label(self) -> str:
        """The metric label: never "blob"."""
        return {1: "layer", 2: "manifest", 3: "config"}[self.value]

    @property
    def path(self) -> str:
        """The part of a registry URL: only manifests have their own."""
        return "manifests" if self is ContentKind.MANIFEST else "blobs"


class FailureClass(enum.IntEnum):
    """How an origin failed; the values are the wire's. Trusted ones hold for every node."""

    AUTH = 1
    NOT_FOUND = 2
    RATE_LIMITED = 3
    TRANSIENT = 4

    @property
    def trusted(self) -> bool:
        """True when one node's failure is the cluster's (only a transient one is its own)."""
        return self is not FailureClass.TRANSIENT


class OriginError(LeaseholdError):
    """The origin refused or failed: ``failure`` says how, ``code`` is ``origin_<class>``."""

    def __init__(
        self,
        failure: FailureClass,
        message: str,
        *,
        code: str | None = None,
        retry_after: float | None = None,
        got: object = None,
    ) -> None:
        kinds = {
            FailureClass.AUTH: Kind.UNAUTHENTICATED,
            FailureClass.NOT_FOUND: Kind.NOT_FOUND,
            FailureClass.RATE_LIMITED: Kind.RATE_LIMITED,
            FailureClass.TRANSIENT: Kind.UNAVAILABLE,
        }
        super().__init__(
            code or f"origin_{failure.name.lower()}",
            message,
            kind=kinds[failure],
            retry_after=retry_after,
            got=got,
        )
        self.failure = failure


class DigestMismatch(LeaseholdError):
    """What arrived is not what its digest says."""

    def __init__(self, digest: Digest, got: str, source: str = "") -> None:
        super().__init__(
            "digest_mismatch",
            f"content from {source or 'its source'} hashes to {got}, not to {digest}",
            kind=Kind.UNAVAILABLE,
            expected=digest,
            got=got,
        )


class StoreUnavailable(LeaseholdError):
    """The store cannot be asked: neither "here" nor "not here". Withdraw nothing because of it."""

    def __init__(self, message: str) -> None:
        super().__init__("store_unavailable", message, kind=Kind.UNAVAILABLE, retry_after=5.0)


class Credentials(msgspec.Struct, frozen=True):
    """Registry credentials. Never printed: ``repr`` masks the password.

    ``header`` instead is a ready ``Authorization`` value, as a mirror's client sent it.
    """

    username: str = ""
    password: str = ""
    header: str = ""

    def __repr__(self) -> str:
        return f"Credentials({self.username!r}, '***')"


# --- the store ------------------------------------------------------------------------------------


class Reader(Protocol):
    """Open content; keeps readable when the store evicts it meanwhile."""

    @property
    def size(self) -> int: ...

    async def read(self, offset: int, length: int) -> bytes:
        """Up to ``length`` bytes at ``offset``; empty at the end."""
        ...

    async def close(self) -> None: ...


class Writer(Protocol):
    """Content on its way in: invisible until ``commit``, which alone makes a digest held."""

    async def write(self, offset: int, data: bytes) -> None:
        """Store ``data`` at ``offset``, in any order; each byte once."""
        ...

    async def read(self, offset: int, length: int) -> bytes:
        """Bytes written before (unverified)."""
        ...

    async def commit(self) -> int:
        """Verify, make durable and visible; the size. ``DigestMismatch`` drops what was written."""
        ...

    async def abort(self) -> None:
        """Drop what was written. Harmless after ``commit``."""
        ...


class Store(Protocol):
    """Content by digest. A backend that cannot be asked raises ``StoreUnavailable``, always."""

    async def has(self, digest: Digest) -> bool: ...

    async def size(self, digest: Digest) -> int | None:
        """Bytes, or None when the digest is not held."""
        ...

    async def open(self, digest: Digest) -> Reader | None:
        """None when the digest is not held. Opening counts as a use."""
        ...

    async def writer(self, digest: Digest, size: int | None = None) -> Writer:
        """A place for ``digest``; ``disk_full`` when ``size`` bytes plus headroom do not fit."""
        ...

    async def delete(self, digest: Digest) -> bool: ...

    def digests(self) -> AsyncIterator[Digest]:
        """Everything held, oldest use first."""
        ...


# --- the origin -----------------------------------------------------------------------------------


class OriginContent(Protocol):
    """An answer of the origin: ``size`` bytes in all (None: not said), body from ``offset`` on."""

    digest: Digest | None
    size: int | None
    media_type: str
    offset: int

    def chunks(self) -> AsyncIterator[bytes]: ...


class Origin(Protocol):
    """The registries images come from. Failures are :class:`OriginError`."""

    async def head(
        self,
        kind: ContentKind,
        registry: str,
        repository: str,
        target: str,
        credentials: Credentials | None = None,
    ) -> OriginContent:
        """Size, type and digest of a tag or digest."""
        ...

    def fetch(
        self,
        kind: ContentKind,
        registry: str,
        repository: str,
        target: str,
        credentials: Credentials | None = None,
        offset: int = 0,
    ) -> AbstractAsyncContextManager[OriginContent]:
        """The content itself; ``offset`` asks for a Range, ``OriginContent.offset`` what came."""
        ...


# --- coordination, supplied by the p2p half -------------------------------------------------------


class Holder(msgspec.Struct, frozen=True):
    """A node that has a digest, or is receiving it now (``complete`` False: bytes unverified).

    ``address`` is the transfer endpoint ``host:port``; ``peer_id`` (base58) is what its TLS
    certificate must prove; without one only plaintext transfer can reach it.
    """

    node: str
    address: str
    peer_id: str | None = None
    complete: bool = True
    puller: bool = False
    """True for the node that reads from the origin: its chunk digests are the reference."""


class Resolution(msgspec.Struct, frozen=True):
    """Where to get a digest. ``local``: this very node is (or just became) the puller.

    ``outcome`` is the label of section 3.2 of the original (``rule2_cache_hit``, ...).
    """

    holders: Sequence[Holder] = ()
    local: bool = False
    outcome: str = ""


class Resolver(Protocol):
    """Decides, digest by digest, who fetches from the origin and who from a node.

    Raises ``OriginError`` for a failure the cluster already knows, ``LeaseholdError`` code
    ``cooldown`` for one to wait out, and code ``exhausted`` when only the direct way is left.
    """

    async def resolve(
        self,
        digest: Digest,
        kind: ContentKind,
        registry: str,
        repository: str,
        size: int | None,
        authorization: str = "",
    ) -> Resolution:
        """``authorization`` is what the origin is to be asked with, when not by the node's own."""
        ...

    async def refresh(self, digest: Digest, size: int | None) -> Sequence[Holder]:
        """Holders known by now, asking the DHT and the puller again; used when those given failed
        or were busy."""
        ...

    def direct(self, digest: Digest, kind: ContentKind) -> AbstractAsyncContextManager[None]:
        """The gate of a direct origin pull after ``exhausted``: entering raises
        ``LeaseholdError`` code ``fallback_declined`` with the reason in ``got``, and holds the
        digest in the in-flight map while entered."""
        ...

    def prefetch(
        self,
        registry: str,
        repository: str,
        children: Sequence[tuple[Digest, ContentKind, int]],
    ) -> None:
        """A manifest was served: start its children (digest, kind, size) in the background."""
        ...

    def failed(self, digest: Digest, holder: Holder, outcome: str) -> None:
        """A holder let us down: ``outcome`` notfound, error, stall, busy or corrupt."""
        ...

    def member(self, node: str) -> Holder | None:
        """The transfer address of a known member; None for strangers."""
        ...


class Announcer(Protocol):
    """Provider records of this node."""

    def announce(self, digest: Digest) -> None:
        """In the background: this node holds ``digest`` (after commit only)."""
        ...

    def withdraw(self, digest: Digest) -> None: ...

    async def holder_count(self, digest: Digest) -> int:
        """Nodes holding ``digest``; raises when discovery cannot tell."""
        ...


# --- what the data plane offers coordination ------------------------------------------------------


class Puller(Protocol):
    """Fetches from the origin as the node chosen for a digest. Detached from any request.

    While it runs, the transfer endpoint already serves the bytes received so far.
    """

    async def pull(
        self,
        digest: Digest,
        kind: ContentKind,
        registry: str,
        repository: str,
        size: int | None = None,
        credentials: Credentials | None = None,
    ) -> int:
        """Origin -> verifying writer -> commit; the size. Failures are ``OriginError`` with their
        class, anything else (store, copy, digest) counts as transient. Joins a running pull."""
        ...

    def progress(self, digest: Digest) -> tuple[int, int | None] | None:
        """(bytes received, size) of a transfer under way, None when there is none."""
        ...

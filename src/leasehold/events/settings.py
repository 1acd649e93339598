"""Settings of the event log."""

from __future__ import annotations

from typing import Annotated

import msgspec


class Reach(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an observer elsewhere may read and write. ``everything`` beats the rest.

    ``prefixes`` are texts like ``lease:akash1…`` or, for repos, global paths below which they are.
    """

    registries: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
    everything: bool = False

    def volume(self, registry: str, path: str) -> bool:
        """Whether a volume of ``registry`` at the global ``path`` is reached."""
        return self.everything or (
            registry in self.registries
            and any(not p or f"{path}/".startswith(f"{p.rstrip('/')}/") for p in self.prefixes)
        )


class Observer(Reach, frozen=True, kw_only=True):
    """An observer in another process or on another host, known by its token."""

    token: Annotated[str, msgspec.Meta(min_length=16)]


class EventsSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the log is, who else may use it, and its bounds."""

    url: Annotated[
        str,
        msgspec.Meta(
            description="PostgreSQL that keeps the event log, postgresql://user:password@host/db; "
            "empty: the file events.sqlite3 in the state folder.",
            pattern="^$|^postgres(ql)?://",
            extra={"secret": True},
        ),
    ] = ""
    host: Annotated[
        str,
        msgspec.Meta(
            description="Address observers elsewhere reach the log at, by gRPC; empty: none do. "
            "Beyond loopback it needs TLS."
        ),
    ] = ""
    port: Annotated[
        int, msgspec.Meta(description="Port of the log's gRPC streams.", ge=0, le=65535)
    ] = 29190
    tls_certificate: Annotated[
        str, msgspec.Meta(description="PEM file of the gRPC streams' certificate and its chain.")
    ] = ""
    tls_key: Annotated[str, msgspec.Meta(description="PEM file of its private key.")] = ""
    observers: Annotated[
        dict[str, Observer],
        msgspec.Meta(
            description="Who may use the gRPC streams, by name: token (16 characters or more), and "
            "registries with prefixes of paths, prefixes of kind:id, or everything = true.",
            extra={"secret": True},
        ),
    ] = {}

    max_pending_appends: Annotated[
        int,
        msgspec.Meta(ge=1, description="Appends waiting for the writer; more wait for room."),
    ] = 10_000
    poll_s: Annotated[
        float,
        msgspec.Meta(
            gt=0,
            description="PostgreSQL: seconds between looks for what other instances appended, "
            "should a notification be lost.",
        ),
    ] = 1.0
    lease_ttl_s: Annotated[
        float,
        msgspec.Meta(
            gt=0,
            description="PostgreSQL: seconds an instance owns its partitions without renewing.",
        ),
    ] = 10.0
    max_wal_bytes: Annotated[
        int,
        msgspec.Meta(
            ge=1 << 20,
            description="Bytes of SQLite's write-ahead log after which it is copied back even "
            "under load.",
        ),
    ] = 256 << 20

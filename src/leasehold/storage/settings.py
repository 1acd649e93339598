"""Settings of volumes."""

from __future__ import annotations

from typing import Annotated

import msgspec


class StorageSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How volumes are kept on this host."""

    registry: Annotated[
        str, msgspec.Meta(min_length=1, description="Name of the registry this provider keeps.")
    ] = "local"
    host: Annotated[
        str, msgspec.Meta(min_length=1, description="Name of this storage host in the registry.")
    ] = "local"
    port: Annotated[
        int,
        msgspec.Meta(
            ge=0,
            le=65535,
            description="Port of the volumes' gRPC service, on events.host and with its observers.",
        ),
    ] = 29191
    prefixes: Annotated[
        list[str],
        msgspec.Meta(description="Global paths this host looks after; an empty one is all."),
    ] = msgspec.field(default_factory=lambda: [""])
    retention_s: Annotated[
        float,
        msgspec.Meta(ge=0, description="Seconds a closed lease's frozen volumes are kept."),
    ] = 7 * 86400.0
    snapshot_every_s: Annotated[
        float,
        msgspec.Meta(ge=0, description="Seconds between scheduled snapshots; 0 takes none."),
    ] = 0.0
    sweep_every_s: Annotated[
        float,
        msgspec.Meta(
            ge=0,
            description="Seconds between sweeps that delete contents no snapshot needs any more; "
            "0 never sweeps.",
        ),
    ] = 86400.0
    trim_events: Annotated[
        int,
        msgspec.Meta(
            ge=10, description="Events of a volume or registry after which its state is written."
        ),
    ] = 1000
    trim_keep_s: Annotated[
        float,
        msgspec.Meta(
            ge=0, description="Seconds the events before a written state are kept after it."
        ),
    ] = 30 * 86400.0
    keep_free_bytes: Annotated[
        int,
        msgspec.Meta(
            ge=0,
            description="Bytes to keep free on the file system: below it the oldest frozen "
            "volumes are deleted first.",
        ),
    ] = 1 << 30
    move_timeout_s: Annotated[
        float,
        msgspec.Meta(gt=0, description="Seconds after which an unfinished move is aborted."),
    ] = 3600.0
    ready_timeout_s: Annotated[
        float, msgspec.Meta(gt=0, description="Seconds to wait for a volume to become usable.")
    ] = 60.0
    gitlab_url: Annotated[
        str, msgspec.Meta(description="Base address of a GitLab API; empty: no GitLab projects.")
    ] = ""
    gitlab_token: Annotated[
        str,
        msgspec.Meta(description="Access token for GitLab.", extra={"secret": True}),
    ] = ""
    gitlab_group: Annotated[
        int, msgspec.Meta(ge=0, description="GitLab namespace id for new projects; 0: the user's.")
    ] = 0

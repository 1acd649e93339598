"""Settings of the event log."""

from __future__ import annotations

from typing import Annotated

import msgspec


class EventsSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds of the log; where it lives is the application's business."""

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

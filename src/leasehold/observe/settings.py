"""Settings of the engine."""

from __future__ import annotations

from typing import Annotated

import msgspec


class ObserveSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many activities run at once, and how patient the engine is."""

    general: Annotated[int, msgspec.Meta(description="Runs at once of most activities.", ge=1)] = 20
    repo: Annotated[int, msgspec.Meta(description="Runs at once of repo activities.", ge=1)] = 10
    retry_first_s: Annotated[
        float, msgspec.Meta(description="Ceiling of the wait after a first failure, seconds.", gt=0)
    ] = 0.05
    retry_cap_s: Annotated[
        float, msgspec.Meta(description="Longest wait between retries, seconds.", gt=0)
    ] = 60.0
    drain_s: Annotated[
        float, msgspec.Meta(description="How long runs may finish at shutdown, seconds.", ge=0)
    ] = 5.0
    resync_s: Annotated[
        float,
        msgspec.Meta(
            description="Seconds between looks into the log for signals that did not arrive.", gt=0
        ),
    ] = 10.0
    resident: Annotated[
        int,
        msgspec.Meta(
            description="Sleeping activities kept in memory as objects; others are rebuilt from "
            "their saved state, or by reading their history, when they wake.",
            ge=0,
        ),
    ] = 10_000
    report_after: Annotated[
        int,
        msgspec.Meta(description="Failures in a row after which an error is stored.", ge=1),
    ] = 3

"""Settings of the scheduler."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta


class ScheduleSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Times are seconds."""

    host: Annotated[str, Meta(description="address the scheduler's HTTP server binds")] = (
        "127.0.0.1"
    )
    port: Annotated[
        int, Meta(description="port of the scheduler's HTTP server; 0 picks one", ge=0, le=65535)
    ] = 8075
    store: Annotated[
        str,
        Meta(
            description="SQLAlchemy URL of the scheduler's database; empty: a SQLite file in the"
            " state folder"
        ),
    ] = ""
    schedules: Annotated[
        str, Meta(description="folder of JSON files with tasks to add at the start; empty: none")
    ] = ""
    destinations: Annotated[
        str, Meta(description="folder of JSON files with destinations, or the JSON itself")
    ] = ""
    managers: Annotated[
        tuple[str, ...], Meta(description="managers (host:port) to find workers at")
    ] = ()
    poll: Annotated[float, Meta(description="seconds between looks for due tasks", gt=0)] = 1.0
    lease: Annotated[
        float,
        Meta(
            description="seconds until a task of an instance that went silent is taken over;"
            " clocks of instances must agree better than that",
            gt=0,
        ),
    ] = 15.0
    concurrency: Annotated[
        int, Meta(description="tasks one instance runs at the same time", ge=1)
    ] = 32
    discovery: Annotated[
        float, Meta(description="seconds between questions to managers for their workers", gt=0)
    ] = 10.0
    http_timeout: Annotated[float, Meta(description="seconds for a call over HTTP", gt=0)] = 40.0
    ws_timeout: Annotated[float, Meta(description="seconds for a call over a websocket", gt=0)] = (
        300.0
    )
    keep_runs: Annotated[int, Meta(description="results kept of each task", ge=1, le=100_000)] = (
        1000
    )
    auth_user: Annotated[
        str, Meta(description="user of the HTTP API; empty together with the password: open")
    ] = ""
    auth_password: Annotated[
        str, Meta(description="password of the HTTP API", extra={"secret": True})
    ] = ""

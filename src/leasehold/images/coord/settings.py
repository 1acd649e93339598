"""Settings of coordination. Seconds, bytes and counts; defaults are the original's."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta


class CoordSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[images.coord]``: the election, what peers may ask of us, and how long we wait for them."""

    zone_scope: Annotated[
        bool, Meta(description="elect among the nodes of this node's zone only")
    ] = False
    members_only: Annotated[
        bool,
        Meta(
            description="talk only to peers that the membership knows; where nodes announce "
            "themselves, the fleet's secret keeps strangers out instead"
        ),
    ] = False
    candidates: Annotated[
        int, Meta(description="nodes asked about a digest (K), best rank first", ge=1, le=64)
    ] = 3
    expansion: Annotated[
        int, Meta(description="factor on candidates in the second pass", ge=1, le=16)
    ] = 2
    query_timeout: Annotated[
        float, Meta(description="seconds for the answers about a digest, all together", gt=0)
    ] = 2.0
    pull_timeout: Annotated[
        float, Meta(description="seconds for a please_pull to be answered", gt=0)
    ] = 2.0
    lookup_timeout: Annotated[float, Meta(description="seconds for a lookup of holders", gt=0)] = (
        2.0
    )
    stream_deadline: Annotated[
        float, Meta(description="seconds a peer's request may take, both ways", gt=0)
    ] = 5.0
    dispatch_timeout: Annotated[float, Meta(description="seconds to work an answer out", gt=0)] = (
        2.0
    )
    max_streams: Annotated[
        int, Meta(description="requests of one peer answered at a time; more are reset", ge=1)
    ] = 512
    max_streams_total: Annotated[
        int, Meta(description="requests of all peers answered at a time; more are reset", ge=1)
    ] = 4096
    max_batch: Annotated[
        int, Meta(description="digests in one please_pull; a longer one is refused", ge=1)
    ] = 256
    pulls_per_minute: Annotated[
        int, Meta(description="digests one peer may have pulled, a minute", ge=1)
    ] = 1200
    pump_idle: Annotated[
        float, Meta(description="seconds without a byte until a pull is given up", gt=0)
    ] = 120.0
    cooldown_initial: Annotated[
        float, Meta(description="seconds a digest rests after its first failure", gt=0)
    ] = 10.0
    cooldown_multiplier: Annotated[
        float, Meta(description="factor from one cooldown to the next", ge=1)
    ] = 3.0
    cooldown_max: Annotated[float, Meta(description="longest cooldown, seconds", gt=0)] = 600.0
    honor_window: Annotated[
        float, Meta(description="longest another node's cooldown is honoured, seconds", ge=0)
    ] = 30.0
    fallback_per_minute: Annotated[
        int, Meta(description="direct origin pulls when nobody else can, a minute", ge=1)
    ] = 2
    fallback_jitter: Annotated[
        float, Meta(description="seconds times ln(nodes): the wait before such a pull", ge=0)
    ] = 3.0
    bootstrap_window: Annotated[
        float, Meta(description="seconds after the start without direct origin pulls", ge=0)
    ] = 30.0
    bootstrap_table_percent: Annotated[
        float, Meta(description="percent of the routing table that ends that window early", gt=0)
    ] = 25.0

"""What an operator may set about the peer-to-peer host. Sizes in bytes, times in seconds."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta


class P2PSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds of one libp2p host. The defaults suit a node among thousands."""

    listen: Annotated[list[str], Meta(description="addresses to listen on, as multiaddrs")] = (
        msgspec.field(default_factory=lambda: ["/ip4/0.0.0.0/tcp/29401"])
    )
    announce: Annotated[
        list[str],
        Meta(description="addresses told to others; empty: those of the sockets and interfaces"),
    ] = msgspec.field(default_factory=list)
    dial_timeout: Annotated[float, Meta(description="seconds to reach a peer", gt=0)] = 2.0
    handshake_timeout: Annotated[
        float, Meta(description="seconds from an accepted socket to a usable connection", gt=0)
    ] = 5.0
    negotiate_timeout: Annotated[
        float, Meta(description="seconds a new stream may take to name its protocol", gt=0)
    ] = 5.0
    max_connections: Annotated[
        int, Meta(description="connections in all; idle ones make room for new ones", ge=1)
    ] = 1024
    max_connections_per_peer: Annotated[int, Meta(description="connections of one peer", ge=1)] = 4
    max_pending: Annotated[
        int, Meta(description="sockets still in their handshake; the oldest gives way", ge=1)
    ] = 256
    max_streams_per_connection: Annotated[
        int, Meta(description="streams a peer may have open on a connection; more are reset", ge=1)
    ] = 512
    receive_budget: Annotated[
        int, Meta(description="bytes received and not yet read, of all peers together", ge=1 << 20)
    ] = 64 << 20
    receive_budget_per_connection: Annotated[
        int, Meta(description="bytes received and not yet read, of one connection", ge=1 << 19)
    ] = 8 << 20
    max_output: Annotated[
        int,
        Meta(description="bytes a peer that does not read makes us keep, then it is cut off",
             ge=1 << 20),
    ] = 4 << 20  # fmt: skip
    keepalive_interval: Annotated[
        float, Meta(description="seconds of silence before a ping", gt=0)
    ] = 30.0
    keepalive_timeout: Annotated[
        float, Meta(description="seconds without an answer to a ping until the end", gt=0)
    ] = 10.0
    idle_timeout: Annotated[
        float, Meta(description="seconds a connection without streams is kept", gt=0)
    ] = 600.0
    max_known_peers: Annotated[int, Meta(description="peers whose addresses are kept", ge=16)] = (
        16384
    )

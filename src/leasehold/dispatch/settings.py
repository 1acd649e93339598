"""Settings of managers and workers."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

MIB = 1 << 20


class DispatchSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One struct for both roles; defaults are for everything on one machine."""

    # manager
    manager_host: Annotated[str, Meta(description="address the manager's HTTP server binds")] = (
        "127.0.0.1"
    )
    manager_port: Annotated[
        int, Meta(description="port of the manager's HTTP server; 0 picks one", ge=0, le=65535)
    ] = 8085
    policy: Annotated[
        str,
        Meta(
            description="who gets the next task: round_robin or least_outstanding",
            pattern="^(round_robin|least_outstanding)$",
        ),
    ] = "round_robin"
    task_timeout: Annotated[
        float, Meta(description="seconds a task may take when its caller says nothing", gt=0)
    ] = 300.0
    max_attempts: Annotated[
        int, Meta(description="workers a task is given to before it fails", ge=1, le=100)
    ] = 5
    queue_limit: Annotated[
        int, Meta(description="tasks of a pool that may wait while all workers are busy", ge=0)
    ] = 10_000
    prefetch: Annotated[
        int, Meta(description="tasks sent to a worker beyond what it runs at once", ge=0, le=1000)
    ] = 4
    assumed_concurrency: Annotated[
        int,
        Meta(description="tasks at once of a worker that does not say (the original's 20)", ge=1),
    ] = 20
    max_concurrency: Annotated[
        int, Meta(description="most tasks at once granted to a worker, whatever it claims", ge=1)
    ] = 1024
    task_window: Annotated[
        int,
        Meta(description="responses a worker may send ahead of a task's caller", ge=1, le=65536),
    ] = 64
    task_buffer: Annotated[
        int,
        Meta(description="responses kept for a caller when the worker knows no credits", ge=1),
    ] = 400
    task_buffer_bytes: Annotated[
        int, Meta(description="bytes of responses kept for one caller", ge=1024)
    ] = 64 * MIB
    heartbeat: Annotated[
        float,
        Meta(description="seconds between pings on a stream (the worker dies at 2 misses)", gt=0),
    ] = 5.0
    connect_timeout: Annotated[
        float, Meta(description="seconds to dial a worker and get its first pong", gt=0)
    ] = 5.0
    worker_expiry: Annotated[
        float, Meta(description="seconds without an HTTP ping until a worker is expired", gt=0)
    ] = 30.0
    worker_grace: Annotated[
        float, Meta(description="seconds an expired, offline worker stays listed", ge=0)
    ] = 60.0
    max_workers: Annotated[int, Meta(description="workers a manager keeps records of", ge=1)] = 1000
    max_dials: Annotated[int, Meta(description="workers dialled at the same time", ge=1)] = 32
    dial_allow: Annotated[
        tuple[str, ...],
        Meta(
            description="networks (CIDR) a manager may dial workers in; the rest is refused,"
            " whatever a ping says"
        ),
    ] = ("127.0.0.0/8", "::1/128")
    required: Annotated[
        tuple[str, ...],
        Meta(
            description="networks, or network/chain id, without whose workers the manager is not"
            " ready; empty: any worker will do"
        ),
    ] = ()
    max_http_body: Annotated[
        int, Meta(description="bytes of a request body or websocket message", ge=1024)
    ] = MIB
    max_websockets: Annotated[int, Meta(description="open /ws connections", ge=1)] = 256

    # worker
    worker_host: Annotated[str, Meta(description="address the worker's gRPC server binds")] = (
        "127.0.0.1"
    )
    worker_port: Annotated[
        int, Meta(description="port of the worker's gRPC server; 0 picks one", ge=0, le=65535)
    ] = 29300
    worker_address: Annotated[
        str, Meta(description="host:port told to managers; empty for what was bound")
    ] = ""
    managers: Annotated[
        tuple[str, ...], Meta(description="managers to announce this worker to, host:port or URL")
    ] = ("127.0.0.1:8085",)
    ping_interval: Annotated[
        float, Meta(description="seconds between announcements to each manager", gt=0)
    ] = 10.0
    attach: Annotated[
        bool,
        Meta(description="the worker dials the managers' attach port instead of being dialled"),
    ] = False
    attach_port: Annotated[
        int,
        Meta(
            description="port on which a manager accepts workers that cannot be dialled;"
            " -1 for none",
            ge=-1,
            le=65535,
        ),
    ] = -1
    network: Annotated[str, Meta(description="network the worker works for")] = "ledger"
    chain_id: Annotated[str, Meta(description="chain the worker works for")] = "leasehold-1"
    version: Annotated[str, Meta(description="version in the pool's key")] = "0.0.1"
    concurrency: Annotated[
        int, Meta(description="tasks a worker runs at once for each manager", ge=1, le=1024)
    ] = 20
    backlog: Annotated[
        int, Meta(description="tasks of one manager that may wait at the worker", ge=0)
    ] = 1000
    max_streams: Annotated[int, Meta(description="managers a worker serves at once", ge=1)] = 64
    handler_timeout: Annotated[
        float, Meta(description="seconds a handler may take when nobody says less", gt=0)
    ] = 300.0
    drain_timeout: Annotated[
        float, Meta(description="seconds a stopping worker gives its tasks to finish", ge=0)
    ] = 8.0

    # both
    max_message_bytes: Annotated[
        int, Meta(description="bytes of one message on a stream, either way", ge=64 * 1024)
    ] = 16 * MIB
    token: Annotated[
        str,
        Meta(
            description="join token: workers and managers that do not know it are refused;"
            " empty for none",
            extra={"secret": True},
        ),
    ] = ""
    tls_cert: Annotated[str, Meta(description="PEM file of the own certificate; empty: no TLS")] = (
        ""
    )
    tls_key: Annotated[str, Meta(description="PEM file of the own key")] = ""
    tls_ca: Annotated[
        str, Meta(description="PEM file of the authority peers must be signed by (mTLS)")
    ] = ""

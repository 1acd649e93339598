"""Opens the event log the settings name, and the door for observers elsewhere.

In a file it belongs to this process alone. In PostgreSQL it may outlive the host: an instance
claims all of it before it does anything, and every append carries the number of its claim. A second
instance waits for one lease and then refuses to start, unless the first has ended; an instance that
was paused so long that another took over can change nothing any more, and ends.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leasehold.app.folder import StateFolder
from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.core.service import Service
from leasehold.events.log import Log
from leasehold.events.settings import EventsSettings
from leasehold.events.sqlite import SqliteLog

if TYPE_CHECKING:
    from leasehold.storage.volumes import Volumes


async def open_log(
    add: Callable[[Service], Awaitable[Service]],
    folder: StateFolder,
    settings: EventsSettings,
    clock: Clock,
) -> Log:
    """Start what the log needs by ``add``; the log.

    LeaseholdError ``log_in_use`` while another instance answers for the database.
    """
    log: Log
    if settings.url:
        from leasehold.events.fenced import FencedLog
        from leasehold.events.partitions import Partitions
        from leasehold.events.postgres import PostgresLog

        instance = f"{socket.gethostname()}:{folder.path}"
        shared = PostgresLog(settings.url, clock, settings, instance=instance)
        await add(shared)
        partitions = Partitions(shared, clock, exclusive=True)
        await add(partitions)
        log = FencedLog(shared, partitions.epoch)
    else:
        log = SqliteLog(folder / "events.sqlite3", clock, settings)
        await add(log)
    if settings.host:
        await add(_server(log, settings, clock))
    return log


def _server(log: Log, settings: EventsSettings, clock: Clock) -> Service:
    from leasehold.events.rpc_server import LogServer

    return LogServer(
        log,
        {observer.token: observer for observer in settings.observers.values()},
        host=settings.host,
        port=settings.port,
        credentials=_credentials(settings),
        clock=clock,
    )


def volume_server(volumes: Volumes, settings: EventsSettings, clock: Clock) -> Service:
    """The volumes of this host, for the same observers."""
    from leasehold.storage.serving import VolumeServer

    return VolumeServer(
        volumes,
        {observer.token: observer for observer in settings.observers.values()},
        host=settings.host,
        port=volumes.settings.port,
        credentials=_credentials(settings),
        clock=clock,
    )


def _credentials(settings: EventsSettings) -> Any:
    import grpc

    if settings.tls_certificate and settings.tls_key:
        key, certificate = _read(settings.tls_key), _read(settings.tls_certificate)
        return grpc.ssl_server_credentials([(key, certificate)])
    if not _loopback(settings.host):
        raise LeaseholdError(
            "tls_required",
            f"the event log may be reached on {settings.host} only with TLS: set "
            "events.tls_certificate and events.tls_key, or use 127.0.0.1",
            kind=Kind.MALFORMED,
            path="events.tls_certificate",
            expected="a PEM file",
            got="nothing",
        )
    return None


def _read(file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise LeaseholdError(
            "tls_unreadable", f"cannot read {file}: {error.strerror}", kind=Kind.MALFORMED, got=file
        ) from None


def _loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

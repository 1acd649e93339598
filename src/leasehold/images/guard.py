"""Where a registry may send us: connections are checked at the address they really go to.

A registry answers with redirects and token realms. Both are names chosen by a stranger, so they
must not lead to this machine, its metadata service or the private network behind it. The check is
made on the resolved address inside the connect, so a name that changes its mind between the check
and the connection gains nothing. A registry that itself lives on loopback or in the private
network may point to its own kind of address. Link-local addresses are never allowed.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Iterable
from typing import Any

import httpcore
import httpx

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.core.metrics import counter

REFUSED = counter(
    "leasehold_images_redirects_refused_total", "Redirects and token realms that led inwards"
)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class RedirectRefused(LeaseholdError):
    """A registry pointed at an address it has no business with."""

    def __init__(self, target: str, why: str) -> None:
        REFUSED.inc()
        super().__init__(
            "redirect_refused",
            f"the registry sent us to {target}, {why}",
            kind=Kind.FORBIDDEN,
            got=target,
        )


def realm_of(address: Address) -> str:
    """``public``, ``private``, ``loopback`` or ``forbidden``."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if address.is_loopback:
        return "loopback"
    if address.is_link_local or address.is_multicast or address.is_unspecified:
        return "forbidden"
    if address.is_reserved:
        return "forbidden"
    return "public" if address.is_global else "private"


async def resolve(host: str, port: int) -> list[Address]:
    """The addresses of ``host``; ``OSError`` when it has none."""
    try:
        return [ipaddress.ip_address(host.strip("[]"))]
    except ValueError:
        pass
    infos = await asyncio.get_running_loop().getaddrinfo(
        host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP
    )
    return [ipaddress.ip_address(info[4][0]) for info in infos]


class GuardedBackend(httpcore.AsyncNetworkBackend):
    """Connects only to addresses of the allowed realms."""

    def __init__(self, allowed: frozenset[str], inner: httpcore.AsyncNetworkBackend) -> None:
        self.allowed = allowed
        self.inner = inner

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            addresses = await resolve(host, port)
        except OSError as error:
            raise httpcore.ConnectError(str(error)) from error
        good = [a for a in addresses if realm_of(a) in self.allowed]
        if not good:
            raise RedirectRefused(f"{host}:{port}", "which is inside this machine or its network")
        return await self.inner.connect_tcp(
            str(good[0]), port, timeout, local_address, socket_options
        )

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.AsyncNetworkStream:
        raise RedirectRefused(path, "a socket file")

    async def sleep(self, seconds: float) -> None:
        await self.inner.sleep(seconds)


class GuardedTransport(httpx.AsyncHTTPTransport):
    """An httpx transport whose connections a :class:`GuardedBackend` makes."""

    def __init__(self, allowed: frozenset[str], *, verify: ssl.SSLContext) -> None:
        super().__init__(verify=verify, http1=True)
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=verify,
            max_connections=100,
            max_keepalive_connections=20,
            keepalive_expiry=30.0,
            network_backend=GuardedBackend(allowed, httpcore.AnyIOBackend()),
        )

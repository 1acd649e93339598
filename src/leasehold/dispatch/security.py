"""Who may talk to whom: the join token, and which addresses a manager may dial.

A ping makes a manager open a connection, so without a limit anyone who can ping could make it
connect anywhere. Addresses are resolved, every result is checked against the allowed networks,
and the address that was checked is the one that is dialled.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import socket
from collections.abc import Sequence

from leasehold.core.errors import Kind, LeaseholdError

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def check_token(expected: str, header: str | None) -> None:
    """Compare ``authorization`` with the join token; LeaseholdError ``bad_join_token``."""
    if expected and not hmac.compare_digest(f"Bearer {expected}".encode(), (header or "").encode()):
        raise LeaseholdError(
            "bad_join_token",
            "the join token is missing or wrong; give the manager's dispatch.token to the worker",
            kind=Kind.UNAUTHENTICATED,
        )


def split_address(address: str) -> tuple[str, int]:
    """``host:port`` or ``[v6]:port``; LeaseholdError ``bad_address`` otherwise."""
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise LeaseholdError(
            "bad_address",
            f"{address!r} is no host:port",
            kind=Kind.MALFORMED,
            path="connectivity.address",
            expected="host:port",
            got=address,
        )
    return host, int(port)


def parse_networks(texts: Sequence[str]) -> list[Network]:
    """CIDR texts to networks; LeaseholdError ``bad_network``."""
    try:
        return [ipaddress.ip_network(text, strict=False) for text in texts]
    except ValueError as error:
        raise LeaseholdError(
            "bad_network", str(error), kind=Kind.INVALID, path="dispatch.dial_allow"
        ) from None


async def resolve(address: str, allowed: Sequence[Network]) -> str:
    """``ip:port`` to dial for ``address``; LeaseholdError ``dial_refused`` if not allowed."""
    host, port = split_address(address)
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise LeaseholdError(
            "unknown_host",
            f"cannot resolve the worker's host {host!r}: {error.strerror}",
            kind=Kind.UNAVAILABLE,
            got=address,
        ) from None
    for *_, sockaddr in found:
        ip = ipaddress.ip_address(str(sockaddr[0]).partition("%")[0])
        if any(ip in network for network in allowed):
            return f"[{ip}]:{port}" if ip.version == 6 else f"{ip}:{port}"
    raise LeaseholdError(
        "dial_refused",
        f"the worker's address {address} is not in dispatch.dial_allow",
        kind=Kind.FORBIDDEN,
        path="dispatch.dial_allow",
        expected=", ".join(map(str, allowed)),
        got=address,
    )

"""Proof of who owns a host name: a TXT record that only its owner can set."""

from __future__ import annotations

import dns.asyncresolver
import dns.exception
import dns.name
import dns.resolver

from leasehold.core.errors import unavailable

LIFETIME = 5.0
"""Seconds a look-up may take in all."""


class DnsResolver:
    """Asks the system's name servers, or those given as ``addresses`` (with ``port``)."""

    def __init__(self, addresses: list[str] | None = None, port: int = 53) -> None:
        self._resolver = dns.asyncresolver.Resolver(configure=addresses is None)
        if addresses is not None:
            self._resolver.nameservers = list(addresses)
            self._resolver.port = port
        self._resolver.lifetime = LIFETIME

    async def txt(self, name: str) -> list[str]:
        """The texts at ``name``, empty when there are none; UNAVAILABLE when DNS fails."""
        try:
            answer = await self._resolver.resolve(name, "TXT")
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer, dns.name.LabelTooLong):
            return []
        except dns.exception.DNSException as error:
            raise unavailable(
                "dns_unavailable", f"cannot look up {name}: {error}", got=name
            ) from None
        return [b"".join(record.strings).decode("utf-8", "replace") for record in answer]

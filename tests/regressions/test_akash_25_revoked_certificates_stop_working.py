"""Defect 25: a revoked certificate stayed trusted, because it was cached and never asked about.

Seen failing when ``ClientCertificates.owner`` remembers a certificate without a time (``fresh``
set to minus infinity): the second call still answers.
"""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from leasehold.core.clock import VirtualClock
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.gateway.certificates import ClientCertificates, Registered
from leasehold.gateway.testing import certificate


class Registry:
    valid = True
    pem = ""
    down = False

    async def all(self) -> list[Registered]:
        return []

    async def find(self, owner: str, serial: str) -> Registered | None:
        if self.down:
            raise LeaseholdError("rpc", "down", kind=Kind.UNAVAILABLE)
        return Registered(owner, serial, self.pem, self.valid)


def test_revocation_counts_within_a_second(virtual: VirtualClock) -> None:
    async def main() -> None:
        made = certificate("akash1me", virtual.now())
        der = made.public_bytes(Encoding.DER)
        registry = Registry()
        registry.pem = made.public_bytes(Encoding.PEM).decode()
        certificates = ClientCertificates(registry, clock=virtual)
        assert await certificates.owner(der) == "akash1me"
        registry.valid = False
        await virtual.sleep(1.1)
        with pytest.raises(LeaseholdError) as caught:
            await certificates.owner(der)
        assert caught.value.kind is Kind.UNAUTHENTICATED
        registry.valid, registry.down = True, True
        with pytest.raises(LeaseholdError) as caught:
            await certificates.owner(der)
        assert caught.value.kind is Kind.UNAVAILABLE, "unknown is not valid"
        registry.down = False
        await virtual.sleep(2 * 86400)
        with pytest.raises(LeaseholdError):
            await certificates.owner(der)
        registry.pem = certificate("akash1me", virtual.now()).public_bytes(Encoding.PEM).decode()
        with pytest.raises(LeaseholdError):
            await certificates.owner(der)

    virtual.run(main)

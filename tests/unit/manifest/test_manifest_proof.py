"""TXT look-ups against a name server of our own."""

from __future__ import annotations

import asyncio

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.manifest.proof import DnsResolver


class NameServer(asyncio.DatagramProtocol):
    """Knows one record; fails for names that begin with ``broken``."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        query = dns.message.from_wire(data)
        name = query.question[0].name.to_text()
        reply = dns.message.make_response(query)
        reply.flags |= dns.flags.AA | dns.flags.RA
        if name == "_leasehold.x.com.":
            reply.answer.append(
                dns.rrset.from_text(name, 60, "IN", "TXT", '"akash1" "owner"', '"other"')
            )
        elif name.startswith("broken"):
            reply.set_rcode(dns.rcode.SERVFAIL)
        else:
            reply.set_rcode(dns.rcode.NXDOMAIN)
        self.transport.sendto(reply.to_wire(), address)  # type: ignore[attr-defined]


async def test_records_none_and_failure() -> None:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(NameServer, local_addr=("127.0.0.1", 0))
    try:
        resolver = DnsResolver(["127.0.0.1"], transport.get_extra_info("sockname")[1])
        assert sorted(await resolver.txt("_leasehold.x.com")) == ["akash1owner", "other"]
        assert await resolver.txt("_leasehold.y.com") == []
        assert await resolver.txt("a" * 70 + ".com") == []
        with pytest.raises(LeaseholdError) as caught:
            await resolver.txt("broken.com")
        assert caught.value.kind is Kind.UNAVAILABLE
    finally:
        transport.close()

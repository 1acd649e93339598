"""Defect 24: a PUT's body had no limit.

Seen failing without ``request_max_body_size`` in ``gateway/server.py`` (the manifest's own limit
then still answers 413, but only after everything was read: the count of sent bytes shows it).
"""

from __future__ import annotations

import asyncio
import time

from leasehold.core.clock import SystemClock
from leasehold.core.service import running
from leasehold.gateway.server import Gateway
from leasehold.gateway.settings import GatewaySettings
from leasehold.manifest.testing import world
from leasehold.market.accounts import Key, sign_token

TENANT = Key.generate()
HUGE = 100 * 1024 * 1024


class Keys:
    async def public_key(self, address: str) -> dict[str, str] | None:
        return TENANT.public.jwk()


async def put(port: int, length: str, chunk: bytes, count: int) -> tuple[bytes, int]:
    """Send a PUT by hand; returns the answer and the bytes the server took of its body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    token = sign_token(TENANT, time.time())
    head = (
        f"PUT /deployment/1/manifest HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
        f"{length}\r\n\r\n"
    )
    writer.write(head.encode())
    answer = asyncio.ensure_future(reader.readline())
    sent = 0
    try:
        for _ in range(count):
            if answer.done():
                break
            writer.write(chunk)
            await writer.drain()
            sent += len(chunk)
    except ConnectionError:
        pass
    line = await asyncio.wait_for(answer, 10)
    writer.close()
    return line, sent


async def test_a_hundred_megabytes_are_refused_early() -> None:
    async with world(SystemClock()).up() as service:
        gateway = Gateway(
            GatewaySettings(port=0, body_timeout_s=1.0), manifest=service, keys=Keys()
        )
        async with running(gateway):
            assert gateway.server is not None
            port = gateway.server.port
            line, sent = await put(port, f"Content-Length: {HUGE}", b" " * 65536, HUGE // 65536)
            assert b" 413 " in line and sent < HUGE // 4
            chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
            line, sent = await put(port, "Transfer-Encoding: chunked", chunk, HUGE // 65536)
            assert b" 413 " in line and sent < HUGE // 4
            began = time.monotonic()
            line, _ = await put(port, "Content-Length: 1000", b" ", 1)  # and then nothing
            assert b" 400 " in line and time.monotonic() - began < 5

"""Fixtures: hosts on loopback."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from leasehold.core.service import running
from leasehold.p2p.host import Host
from leasehold.p2p.keys import KeyPair
from leasehold.p2p.settings import P2PSettings

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "interop"))

from loopback import ECHO, MakeHost, echo


@pytest.fixture
async def make_host() -> AsyncIterator[MakeHost]:
    """``await make_host(max_streams_per_connection=4)``: a running host with an echo protocol."""
    async with AsyncExitStack() as stack:

        async def make(keys: KeyPair | None = None, **settings: object) -> Host:
            host = Host(
                keys or KeyPair.generate(),
                P2PSettings(**{"listen": ["/ip4/127.0.0.1/tcp/0"], **settings}),  # type: ignore
            )
            host.handle(ECHO, echo, deadline=5.0)
            return await stack.enter_async_context(running(host))

        yield make

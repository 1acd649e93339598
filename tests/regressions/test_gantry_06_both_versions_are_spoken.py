"""Agents of either minor version talk to this one, and it to them.

The original bound and dialled exactly one protocol id, so that 1.0.0 and 1.1.0 could not talk.
Leave ``PROTOCOL_1_0`` out of the loop in ``Server.bind``, or out of ``client.PROTOCOLS``, and the
older agent is refused here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from leasehold.core.clock import SystemClock
from leasehold.core.service import running
from leasehold.images.coord import PROTOCOL_1_0, PROTOCOL_1_1
from leasehold.images.coord.client import Client
from leasehold.images.coord.server import Server
from leasehold.images.inflight import InFlight
from leasehold.images.membership import Member, View
from leasehold.images.negative import NegativeCache
from leasehold.model.digest import Digest
from leasehold.p2p.host import Host
from leasehold.p2p.keys import KeyPair
from leasehold.p2p.settings import P2PSettings

DIGEST = Digest.of(b"x")


class Held:
    async def has(self, digest: Digest) -> bool:
        return digest == DIGEST


class OldServer(Server):
    """An agent that binds one version, as the original's did."""

    only = PROTOCOL_1_0

    def bind(self, host: Host) -> None:
        host.handle(self.only, self._serve, deadline=5.0)


def host() -> Host:
    return Host(KeyPair.generate(), P2PSettings(listen=["/ip4/127.0.0.1/tcp/0"]))


def bound(kind: type[Server], there: Host) -> None:
    clock, view, store = SystemClock(), View([Member(node="b")]), Held()
    args: Any = ("b", lambda: view, store, InFlight(clock), NegativeCache(clock), None, clock)
    kind(*args).bind(there)


@pytest.mark.parametrize(
    ("kind", "protocols"),
    [
        (Server, (PROTOCOL_1_0,)),
        (Server, (PROTOCOL_1_1,)),
        (OldServer, None),
        (type("NewServer", (OldServer,), {"only": PROTOCOL_1_1}), None),
    ],
)
async def test_old_and_new_talk(kind: type[Server], protocols: Sequence[str] | None) -> None:
    async with running(host()) as here, running(host()) as there:
        bound(kind, there)
        here.learn(there.peer_id, there.addresses)
        options: Any = {} if protocols is None else {"protocols": protocols}
        client = Client(here, None, SystemClock(), **options)
        assert (await client.pull_intent_query(str(there.peer_id), DIGEST)).has_cached

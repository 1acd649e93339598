"""Coordination on real hosts: what the wire answers is what the local call answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from loopback import Attacker, MakeHost, until

from leasehold.core.clock import SystemClock
from leasehold.images.coord import PROTOCOL_1_0, PROTOCOL_1_1
from leasehold.images.coord.client import Client
from leasehold.images.coord.messages import (
    ALREADY_PULLING,
    RECENTLY_FAILED,
    STARTED,
    UNSPECIFIED,
    Intent,
    PleasePullRequest,
    encode,
)
from leasehold.images.coord.pump import PullerPump
from leasehold.images.coord.server import Hooks, Server
from leasehold.images.coord.settings import CoordSettings
from leasehold.images.inflight import InFlight
from leasehold.images.membership import Member, View
from leasehold.images.negative import NegativeCache
from leasehold.images.ports import ContentKind, FailureClass, OriginError, StoreUnavailable
from leasehold.model.digest import Digest
from leasehold.p2p import multistream, varint
from leasehold.p2p.errors import PeerError
from leasehold.p2p.host import Host

BLOB = ContentKind.BLOB
A, B, C = (Digest.of(x) for x in (b"a", b"b", b"c"))


class Content:
    """A store and a puller in memory."""

    def __init__(self) -> None:
        self.held: set[Digest] = set()
        self.broken = False
        self.failure: Exception | None = None
        self.finish = asyncio.Event()
        self.pulls: list[tuple[Digest, Any]] = []

    async def has(self, digest: Digest) -> bool:
        if self.broken:
            raise StoreUnavailable("gone")
        return digest in self.held

    async def pull(self, digest: Digest, *args: Any) -> int:
        self.pulls.append((digest, args))
        await self.finish.wait()
        if self.failure is not None:
            raise self.failure
        self.held.add(digest)
        return 1

    def progress(self, digest: Digest) -> tuple[int, int | None] | None:
        return None


class Node:
    def __init__(self, host: Host, name: str, view: View, settings: CoordSettings) -> None:
        clock = SystemClock()
        self.content = Content()
        self.flights, self.negative = InFlight(clock), NegativeCache(clock)
        self.pump = PullerPump(
            self.content, self.content, self.flights, self.negative, clock, spawn=host.spawn  # type: ignore
        )  # fmt: skip
        self.errors: list[str] = []
        self.begun: list[Digest] = []
        hooks = Hooks(on_stream_error=self.errors.append, on_please_pull_started=self.begun.append)
        self.server = Server(
            name, lambda: view, self.content, self.flights, self.negative, self.pump, clock,  # type: ignore
            settings, hooks=hooks,
        )  # fmt: skip
        self.server.bind(host)


@asynccontextmanager
async def pair(
    make_host: MakeHost, protocols: tuple[str, ...] | None = None, **settings: Any
) -> AsyncIterator[tuple[Client, Node, Host, Host]]:
    asker, answerer = await make_host(), await make_host()
    view = View(
        Member(node=name, peer_id=str(host.peer_id), addresses=tuple(map(str, host.addresses)))
        for name, host in (("asker", asker), ("node", answerer))
    )
    limits = CoordSettings(**settings)
    node = Node(answerer, "node", view, limits)
    options = {"protocols": protocols} if protocols else {}
    yield Client(asker, lambda: view, SystemClock(), limits, **options), node, asker, answerer


def request(*digests: str, **changes: Any) -> PleasePullRequest:
    return PleasePullRequest(tuple(digests), **{"registry": "r", "repository": "n", **changes})


async def states(node: Node) -> Sequence[Digest]:
    """Digests in every state a node can know one in."""
    node.content.held.add(A)
    node.flights.start(B, BLOB, 77)
    node.flights.progress(B, 7)
    node.negative.failed(C, FailureClass.RATE_LIMITED)
    return [A, B, C, Digest.of(b"unknown")]


@pytest.mark.parametrize("protocols", [(PROTOCOL_1_0,), (PROTOCOL_1_1,), None])
async def test_wire_and_local_answers_are_the_same(
    make_host: MakeHost, protocols: tuple[str, ...] | None
) -> None:
    async with pair(make_host, protocols) as (client, node, _, _):
        for digest in await states(node):
            local = await node.server.local_pull_intent(digest)
            wire = await client.pull_intent_query("node", digest)
            for field in ("has_cached", "in_flight", "hrw_rank", "recently_failed", "failure"):
                assert getattr(wire, field) == getattr(local, field)
            for field in ("started_at", "cooldown_until"):
                mine, theirs = getattr(local, field), getattr(wire, field)
                assert mine == pytest.approx(theirs, abs=0.05)
            if protocols == (PROTOCOL_1_0,):
                assert not wire.told
            elif local.told:
                assert wire.told
                assert wire.remaining == pytest.approx(local.remaining, abs=0.5)
                assert (wire.received, wire.size) == (local.received, local.size)
            if wire.in_flight:
                assert wire.started_at is not None, "absent, it would read as 1970"


async def test_please_pull_in_order_and_bad_digests_skipped(make_host: MakeHost) -> None:
    async with pair(make_host) as (client, node, _, _):
        await states(node)
        fresh = Digest.of(b"fresh")
        answer = await client.please_pull("node", request(C, "sha256:nope", fresh, B, A, fresh))
        assert [(r.digest, r.outcome) for r in answer.results] == [
            (C, RECENTLY_FAILED),
            (fresh, STARTED),
            (B, ALREADY_PULLING),
            (A, ALREADY_PULLING),
            (fresh, ALREADY_PULLING),
        ]
        assert answer.results[0].failure is FailureClass.RATE_LIMITED
        assert all(r.started_at is not None for r in answer.results[1:])
        assert node.errors == ["digest_malformed"]
        assert node.begun == [fresh]
        node.content.finish.set()
        await until(lambda: node.flights.get(fresh) is None)
        assert (await client.pull_intent_query("node", fresh)).has_cached
        assert (await client.please_pull("node", request())).results == ()


async def test_a_failed_pull_is_remembered_by_class_and_its_claim_returned(
    make_host: MakeHost,
) -> None:
    async with pair(make_host) as (client, node, _, _):
        node.content.finish.set()
        for digest, failure, expected in (
            (A, OriginError(FailureClass.AUTH, "no"), FailureClass.AUTH),
            (B, OSError("disk"), FailureClass.TRANSIENT),
        ):
            node.content.failure = failure
            await client.please_pull("node", request(digest))
            await until(lambda digest=digest: node.flights.get(digest) is None)
            assert (await client.pull_intent_query("node", digest)).failure is expected
        # A delegated token that is refused says nothing about the digest.
        node.content.failure = OriginError(FailureClass.AUTH, "no")
        await client.please_pull("node", request(C, authorization="Bearer x"))
        await until(lambda: node.flights.get(C) is None)
        assert not (await client.pull_intent_query("node", C)).recently_failed
        assert node.content.pulls[-1][1][-1].header == "Bearer x"


async def test_sizes_reach_the_puller(make_host: MakeHost) -> None:
    async with pair(make_host) as (client, node, _, _):
        await client.please_pull("node", request(A, B, sizes=(123, 0)))
        assert [p[1][3] for p in node.content.pulls] == [123, None]


async def test_an_unavailable_store_is_not_a_miss_that_pulls(make_host: MakeHost) -> None:
    async with pair(make_host) as (client, node, _, _):
        node.content.broken = True
        assert not (await client.pull_intent_query("node", A)).has_cached
        answer = await client.please_pull("node", request(A))
        assert answer.results[0].outcome == UNSPECIFIED
        assert node.content.pulls == []


@pytest.mark.parametrize(
    "frame",
    [
        b"\x00",
        b"\x02\x0a\xff",
        varint.encode((1 << 20) + 1),
        b"\xff" * 10,
        encode(Intent()),
        b"\x04\x0a\x02\x0a\x00",
        encode(PleasePullRequest(("sha256:" + "0" * 64,))),
    ],
    ids=["empty", "truncated", "too-large", "overflow", "a-response", "bad-digest", "no-registry"],
)
async def test_refusals_are_silent(make_host: MakeHost, frame: bytes) -> None:
    """The stream closes without an answer, the hook is called, the connection lives."""
    async with pair(make_host, (PROTOCOL_1_0,)) as (client, node, asker, answerer):
        connection = await asker.connect(answerer.peer_id, answerer.addresses)
        stream = await asker.open_on(connection, PROTOCOL_1_0)
        await stream.write(frame)
        async with asyncio.timeout(3):
            with pytest.raises(PeerError) as refusal:
                await stream.read_frame(1 << 20)
        assert refusal.value.code == "stream_eof"
        assert len(node.errors) == 1
        assert (await client.pull_intent_query("node", A)).hrw_rank in (0, 1)


async def test_streams_over_the_cap_are_reset_and_others_served(make_host: MakeHost) -> None:
    async with pair(make_host, max_streams=8) as (client, node, _, answerer):
        attacker = await Attacker.connect(answerer)
        for stream in range(1, 41, 2):
            attacker.open(stream, multistream.opening(PROTOCOL_1_0))
        resets = set()
        async with asyncio.timeout(3):
            async for _, flags, stream, _ in attacker.frames():
                if flags & 8:
                    resets.add(stream)
                if len(resets) == 12:
                    break
        assert node.errors.count("too_many_streams") == 12
        assert await client.pull_intent_query("node", A)
        attacker.close()


async def test_a_silent_node_costs_the_deadline_and_no_more(make_host: MakeHost) -> None:
    async with pair(make_host, query_timeout=0.4) as (client, _, _, answerer):
        for protocol in (PROTOCOL_1_0, PROTOCOL_1_1):
            answerer.handle(protocol, lambda *_: asyncio.sleep(60), deadline=60.0)
        loop = asyncio.get_running_loop()
        at = loop.time()
        with pytest.raises(PeerError) as refusal:
            await client.pull_intent_query("node", A)
        assert refusal.value.code == "coord_timeout"
        assert loop.time() - at < 1.5


async def test_names_become_peer_ids(make_host: MakeHost) -> None:
    async with pair(make_host) as (client, _, asker, answerer):
        assert client.resolve_peer_id("node") == answerer.peer_id
        assert client.resolve_peer_id(str(asker.peer_id)) == asker.peer_id
        with pytest.raises(PeerError, match="not known"):
            client.resolve_peer_id("elsewhere")
        assert client.resolve_peer_id("elsewhere", asker.peer_id) == asker.peer_id
        assert client.resolve_peer_id("elsewhere") == asker.peer_id


async def test_greedy_peers_run_out_of_pulls(make_host: MakeHost) -> None:
    async with pair(make_host, pulls_per_minute=3) as (client, node, _, _):
        digests = [Digest.of(bytes([i])) for i in range(5)]
        answer = await client.please_pull("node", request(*digests))
        assert [r.outcome for r in answer.results] == [STARTED] * 3 + [UNSPECIFIED] * 2
        with pytest.raises(PeerError):
            await client.please_pull("node", request(*[A] * 257))
        assert len(node.content.pulls) == 3

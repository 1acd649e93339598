"""Members by word of mouth: nodes announce themselves, and tell one another whom they heard of.

A node needs the address of one other (a *seed*). Every few seconds it opens a stream to a few
members at random and they settle what each has heard more lately: "these I know, as of then", "here
is what is newer, and of those I want yours", "here". News reaches a fleet in a few rounds, and a
round costs a few dozen bytes a member however little is new.

An announcement is signed with the announcing node's own key, of which its peer id is made, and
numbered by its clock: others pass it on but cannot change it, and an old one replaces nothing.
How old it is travels with it, so that the dead are not kept alive by being talked about. With a
fleet secret every announcement also proves that its node knows it; without one, whoever reaches the
port may join.

A name belongs to the identity that has been using it until that falls silent: a second machine with
the same name is refused, and told so in the log.
"""

from __future__ import annotations

import hashlib
import hmac
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from leasehold.core import metrics
from leasehold.core.clock import Clock
from leasehold.core.errors import LeaseholdError
from leasehold.core.logs import get_logger
from leasehold.core.service import Service
from leasehold.images.membership import AnnouncedMembers, Member
from leasehold.p2p import varint
from leasehold.p2p.connection import Connection
from leasehold.p2p.errors import ProtocolViolation
from leasehold.p2p.host import Host
from leasehold.p2p.keys import PeerId, verify
from leasehold.p2p.multiaddr import Multiaddr
from leasehold.p2p.yamux import Stream

PROTOCOL = "/leasehold/members/1.0.0"

ROUND = 10.0
"""Seconds between two rounds (up to a quarter more or less)."""

FIRST_ROUND = 1.0
"""Seconds between rounds as long as nobody else is known."""

REFRESH = 30.0
"""Seconds after which a node announces itself anew: a third of the time to live."""

PARTNERS = 2
SEED_SHARE = 0.1
"""Share of rounds that also ask a seed, so that two fleets that lost each other meet again."""

DEADLINE = 10.0
MAX_MESSAGE = 1 << 20
MAX_NEWS = 1000
"""Announcements in one message; more come in the next rounds."""

MAX_MEMBER = 4096
"""Bytes of one member's description."""

FUTURE = 300.0
"""Seconds a node's clock may be ahead of ours before what it numbers is refused."""

EXCHANGES = metrics.counter("leasehold_images_gossip_total", "Exchanges of members.", ("outcome",))
REFUSED = metrics.counter(
    "leasehold_images_gossip_refused_total", "Announcements not believed.", ("why",)
)

log = get_logger(__name__)

T = TypeVar("T", "Known", "News")


class Announcement(msgspec.Struct, frozen=True, array_like=True):
    """What one node says of itself. ``number``: its clock, milliseconds; ``age``: seconds."""

    member: bytes
    number: int
    leaving: bool
    signature: bytes
    proof: bytes = b""
    age: float = 0.0

    @property
    def signed(self) -> bytes:
        head = b"leasehold member\0" + self.number.to_bytes(8, "big") + bytes((self.leaving,))
        return head + self.member


class Known(msgspec.Struct, frozen=True, array_like=True):
    """First message: node → number."""

    numbers: dict[str, int]


class News(msgspec.Struct, frozen=True, array_like=True):
    """Second and third message. ``wanted`` are nodes the sender of the first knows better."""

    news: list[Announcement]
    wanted: list[str] = []


@dataclass(frozen=True, slots=True)
class _Heard:
    said: Announcement
    member: Member
    at: float
    """When it was true, by our monotonic clock."""


class Gossip(Service):
    """Feeds ``members``. ``seeds`` are addresses that name their peer; ``secret``: see above."""

    def __init__(
        self,
        host: Host,
        members: AnnouncedMembers,
        *,
        seeds: Sequence[Multiaddr] = (),
        secret: bytes = b"",
        clock: Clock | None = None,
        rng: random.Random | None = None,
    ) -> None:
        super().__init__("gossip", clock=clock)
        self.host = host
        self.members = members
        self._seeds = tuple(s for s in seeds if s.peer_id not in (None, host.peer_id))
        self._secret = secret
        self._rng = rng or random.Random()
        self._heard: dict[str, _Heard] = {}
        self._warned: set[str] = set()

    async def start(self) -> None:
        self.host.handle(PROTOCOL, self._serve, deadline=DEADLINE)
        self.resources.callback(self.host.unhandle, PROTOCOL)
        self.spawn(self._rounds(), name="rounds")

    async def stop(self) -> None:
        """Say good-bye to a few, who pass it on."""
        if self.members.own is None:
            return
        self._announce(leaving=True)
        for peer in self._partners():
            await self._exchange(peer)

    # what we say

    def _announce(self, *, leaving: bool = False) -> None:
        own = self.members.own
        if own is None:
            return
        number = int(self.clock.now() * 1000)
        before = self._heard.get(own.node)
        if before is not None:
            number = max(number, before.said.number + 1)
        plain = Announcement(msgspec.json.encode(own), number, leaving, b"")
        said = msgspec.structs.replace(
            plain, signature=self.host.keys.sign(plain.signed), proof=self._proof(plain)
        )
        self._heard[own.node] = _Heard(said, own, self.clock.monotonic())

    def _proof(self, said: Announcement) -> bytes:
        if not self._secret:
            return b""
        return hmac.new(self._secret, said.signed, hashlib.sha256).digest()

    # rounds

    async def _rounds(self) -> None:
        while True:
            self._expire()
            own = self.members.own
            mine = self._heard.get(own.node) if own is not None else None
            if mine is None or self.clock.monotonic() - mine.at >= REFRESH or mine.member != own:
                self._announce()
            for peer in self._partners():
                await self._exchange(peer)
            pause = ROUND if len(self._heard) > 1 else FIRST_ROUND
            await self.clock.sleep(self._rng.uniform(0.75, 1.25) * pause)

    def _expire(self) -> None:
        oldest = self.clock.monotonic() - self.members.ttl
        for node in [n for n, heard in self._heard.items() if heard.at < oldest]:
            del self._heard[node]

    def _partners(self) -> list[PeerId]:
        peers: dict[PeerId, tuple[str, ...]] = {}
        for member in self.members.view.members.values():
            peer = member.peer
            if peer is not None and peer != self.host.peer_id and member.addresses:
                peers[peer] = member.addresses
        chosen = self._rng.sample(list(peers), min(PARTNERS, len(peers)))
        for peer in chosen:
            self.host.learn(peer, _addresses(peers[peer]))
        if self._seeds and (not chosen or self._rng.random() < SEED_SHARE):
            seed = self._rng.choice(self._seeds)
            assert seed.peer_id is not None
            self.host.learn(seed.peer_id, [seed])
            chosen.append(seed.peer_id)
        return list(dict.fromkeys(chosen))

    async def _exchange(self, peer: PeerId) -> None:
        try:
            async with self.clock.timeout(DEADLINE):
                stream = await self.host.open(peer, PROTOCOL)
                try:
                    await stream.write(_framed(Known(self._numbers())))
                    answer = await _read(stream, News)
                    self._take(answer.news)
                    wanted = [self._tell(node) for node in answer.wanted[:MAX_NEWS]]
                    await stream.write(_framed(News([a for a in wanted if a is not None])))
                    stream.flush()
                finally:
                    stream.close()
        except (LeaseholdError, TimeoutError) as error:
            EXCHANGES.labels("failed").inc()
            log.debug("gossip.exchange_failed", peer=str(peer), error=str(error))
        else:
            EXCHANGES.labels("ok").inc()

    async def _serve(self, stream: Stream, connection: Connection) -> None:
        theirs = (await _read(stream, Known)).numbers
        mine = self._numbers()
        newer = [node for node, number in mine.items() if number > theirs.get(node, -1)]
        wanted = [node for node, number in theirs.items() if number > mine.get(node, -1)]
        if len(newer) > MAX_NEWS:
            newer = self._rng.sample(newer, MAX_NEWS)
        told = [self._tell(node) for node in newer]
        await stream.write(_framed(News([a for a in told if a is not None], wanted[:MAX_NEWS])))
        stream.flush()
        self._take((await _read(stream, News)).news)

    def _numbers(self) -> dict[str, int]:
        return {node: heard.said.number for node, heard in self._heard.items()}

    def _tell(self, node: str) -> Announcement | None:
        heard = self._heard.get(node)
        if heard is None:
            return None
        age = max(0.0, self.clock.monotonic() - heard.at)
        return msgspec.structs.replace(heard.said, age=age)

    # what we hear

    def _take(self, news: Sequence[Announcement]) -> None:
        for said in news[:MAX_NEWS]:
            why = self._believe(said)
            if why:
                REFUSED.labels(why).inc()

    def _believe(self, said: Announcement) -> str:
        """Take an announcement in; the reason when it is refused, empty when it is not."""
        if not 0 <= said.number < 1 << 63 or not 0.0 <= said.age < self.members.ttl:
            return "too_old"
        if said.number / 1000 > self.clock.now() + FUTURE:
            return "from_the_future"
        try:
            if len(said.member) > MAX_MEMBER:
                return "too_large"
            member = msgspec.json.decode(said.member, type=Member)
            peer = member.peer
        except (msgspec.MsgspecError, ValueError):
            return "malformed"
        if peer is None or not member.node:
            return "malformed"
        key = peer.public_key
        if key is None or not verify(key, said.signed, said.signature):
            return "bad_signature"
        if self._secret and not hmac.compare_digest(self._proof(said), said.proof):
            return "bad_proof"
        known = self._heard.get(member.node)
        if known is not None:
            if known.member.peer_id != member.peer_id and not known.said.leaving:
                self._name_taken(member, known.member)
                return "name_taken"
            if said.number <= known.said.number:
                return ""
        own = self.members.own
        if own is not None and member.node == own.node:
            if member.peer_id == own.peer_id:
                return ""  # what we ourselves said, before a restart
            self._name_taken(member, own)
            return "name_taken"
        self._heard[member.node] = _Heard(said, member, self.clock.monotonic() - said.age)
        if said.leaving:
            self.members.leave(member.node)
        else:
            self.members.announce(member, age=said.age)
        return ""

    def _name_taken(self, newcomer: Member, holder: Member) -> None:
        if newcomer.peer_id not in self._warned and len(self._warned) < 1000:
            self._warned.add(newcomer.peer_id)
            log.warning(
                "members.name_taken", node=holder.node, by=holder.peer_id, refused=newcomer.peer_id
            )


async def _read(stream: Stream, type: type[T]) -> T:
    raw = await stream.read_frame(MAX_MESSAGE)
    try:
        return msgspec.msgpack.decode(raw, type=type)
    except (msgspec.MsgspecError, ValueError) as error:
        raise ProtocolViolation("gossip_malformed", f"members: {error}") from None


def _framed(message: Known | News) -> bytes:
    body = msgspec.msgpack.encode(message)
    return varint.encode(len(body)) + body


def _addresses(texts: Sequence[str]) -> list[Multiaddr]:
    out = []
    for text in texts:
        try:
            out.append(Multiaddr.parse(text))
        except ValueError:
            continue
    return out

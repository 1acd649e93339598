"""Asks other nodes about digests: two seconds, one try, a typed answer or a typed error.

A node's peer id comes from the live membership, else from what was taught, else the name itself is
read as a peer id. Version 1.1.0 is preferred where both speak it; which one a peer speaks is asked
once a connection, after that a request travels with its negotiation in one frame.
"""

from __future__ import annotations

from collections.abc import Callable

from leasehold.core.clock import Clock
from leasehold.images.coord import MAX_MESSAGE, PROTOCOL_1_0, PROTOCOL_1_1
from leasehold.images.coord.messages import (
    Intent,
    Message,
    PleasePullRequest,
    PleasePullResponse,
    PullIntentRequest,
    decode,
    encode,
)
from leasehold.images.coord.settings import CoordSettings
from leasehold.images.membership import View
from leasehold.model.digest import Digest
from leasehold.p2p.errors import PeerError, ProtocolViolation
from leasehold.p2p.host import Host
from leasehold.p2p.keys import PeerId
from leasehold.p2p.multiaddr import Multiaddr

TAUGHT = 16_384
"""Names whose peer ids were taught by hand."""

PROTOCOLS = (PROTOCOL_1_1, PROTOCOL_1_0)


class Client:
    """``view`` tells the members of the moment (None: only what is taught)."""

    def __init__(
        self,
        host: Host,
        view: Callable[[], View] | None,
        clock: Clock,
        settings: CoordSettings | None = None,
        *,
        protocols: tuple[str, ...] = PROTOCOLS,
    ) -> None:
        self._host = host
        self._view = view
        self._clock = clock
        self._settings = settings or CoordSettings()
        self._protocols = protocols
        self._taught: dict[str, PeerId] = {}

    async def pull_intent_query(
        self, node: str, digest: Digest, seconds: float | None = None
    ) -> Intent:
        """What ``node`` knows of ``digest``. Errors: :class:`PeerError`."""
        limit = seconds or self._settings.query_timeout
        answer = await self._ask(node, PullIntentRequest(digest), limit)
        if not isinstance(answer, Intent):
            raise ProtocolViolation("coord_unexpected", f"{node} answered something else")
        return answer

    async def please_pull(self, node: str, request: PleasePullRequest) -> PleasePullResponse:
        """Ask ``node`` to fetch from the origin. Errors: :class:`PeerError`."""
        answer = await self._ask(node, request, self._settings.pull_timeout)
        if not isinstance(answer, PleasePullResponse):
            raise ProtocolViolation("coord_unexpected", f"{node} answered something else")
        return answer

    def connected(self, node: str) -> bool:
        """Whether there is a connection to ``node`` now."""
        try:
            return self._host.connection(self.resolve_peer_id(node)) is not None
        except PeerError:
            return False

    def resolve_peer_id(self, node: str, peer: PeerId | None = None) -> PeerId:
        """The peer id of ``node``; with ``peer``, teach it first."""
        if peer is not None:
            if len(self._taught) >= TAUGHT:
                self._taught.clear()
            self._taught[node] = peer
        if self._view is not None:
            member = self._view().members.get(node)
            if member is not None and (known := member.peer) is not None:
                return known
        found = self._taught.get(node)
        if found is not None:
            return found
        try:
            return PeerId.parse(node)
        except ValueError:
            raise PeerError("peer_unknown", f"the peer id of node {node!r} is not known") from None

    async def _ask(self, node: str, message: Message, seconds: float) -> Message:
        peer = self.resolve_peer_id(node)
        try:
            async with self._clock.timeout(seconds):
                connection = self._host.connection(peer)
                if connection is None:
                    connection = await self._host.connect(peer, self._addresses(node))
                stream = await self._host.open_on(connection, *self._protocols)
                try:
                    frame = encode(message)
                    if not stream.write_now(frame):
                        await stream.write(frame)
                    return decode(await stream.read_frame(MAX_MESSAGE))
                except BaseException:
                    stream.reset("abandoned")
                    raise
                finally:
                    stream.close()
        except TimeoutError:
            raise PeerError(
                "coord_timeout", f"{node} did not answer within {seconds:g} s"
            ) from None

    def _addresses(self, node: str) -> list[Multiaddr]:
        if self._view is None:
            return []
        member = self._view().members.get(node)
        if member is None:
            return []
        out = []
        for text in member.addresses:
            try:
                out.append(Multiaddr.parse(text))
            except ValueError:
                continue  # an address of a kind we cannot read may stand beside one we can
        return out

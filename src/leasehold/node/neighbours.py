"""Other nodes, reached through their gateways: the ``Neighbours`` port between machines.

A question is signed by who asks and an answer by who answers, so that a record is weighed by whom
it came from, whatever lies between. What may be asked is one read-only function: the records of the
registry. A neighbour that does not answer keeps its id from the last time it did.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError, not_found, unavailable
from leasehold.core.logs import get_logger
from leasehold.node import gate
from leasehold.node.gate import TrustGate

if TYPE_CHECKING:
    from leasehold.node.service import Node

ALLOWED = {("registry", "snapshot")}
"""Functions another node may call here."""

PATH = "/v1/neighbour"
TIMEOUT = 10.0
"""Seconds a neighbour may take to answer."""

log = get_logger(__name__)


class Question(msgspec.Struct, forbid_unknown_fields=True):
    """``to`` is the peer meant; a question for somebody else is refused."""

    to: str
    service: str
    function: str
    args: list[Any] = []


class HttpNeighbours:
    """The nodes behind ``urls``, which are their gateways'."""

    def __init__(
        self, urls: Sequence[str], key: Ed25519PrivateKey, door: TrustGate, clock: Clock, limit: int
    ) -> None:
        self.urls = [url.rstrip("/") for url in urls]
        self.key = key
        self.gate = door
        self.clock = clock
        self.limit = limit
        self._known: dict[str, str] = {}

    async def peers(self) -> list[str]:
        """Ids of the accepted neighbours that answer, or did before."""
        for url in self.urls:
            try:
                peer, _ = await self._ask(url, "GET", b"")
                self._known[url] = peer
            except LeaseholdError as error:
                log.warning("neighbour.unreachable", url=url, error=error.message)
        return [p for p in dict.fromkeys(self._known.values()) if self.gate.accepts(p, "node")]

    async def call(self, peer: str, service: str, function: str, args: list[Any]) -> Any:
        for url, known in self._known.items():
            if known == peer:
                body = msgspec.json.encode(Question(peer, service, function, args))
                by, answer = await self._ask(url, "POST", body)
                if by != peer:
                    raise unavailable("neighbour_changed", f"{url} is another node now: {by}")
                return answer
        raise not_found("neighbour", peer)

    async def _ask(self, url: str, method: str, body: bytes) -> tuple[str, Any]:
        """Who answered, and what."""
        import httpx  # Late: most nodes have no neighbours.

        headers = gate.sign(self.key, body, self.clock.now())
        received = b""
        try:
            async with (
                httpx.AsyncClient(timeout=TIMEOUT) as client,
                client.stream(method, url + PATH, content=body, headers=headers) as response,
            ):
                async for part in response.aiter_bytes():
                    received += part
                    if len(received) > self.limit:
                        raise unavailable(
                            "answer_too_large", f"{url} answers with more than {self.limit} bytes"
                        )
                if response.is_error:
                    said = received[:200].decode(errors="replace")
                    raise unavailable("neighbour_refused", f"{url}: {said}")
                peer = gate.signer(received, response.headers, self.clock.now())
                return peer, msgspec.json.decode(received)
        except (httpx.HTTPError, msgspec.DecodeError) as error:
            raise unavailable("neighbour_unreachable", f"{url} does not answer: {error}") from None


async def answer(node: Node, body: bytes, headers: dict[str, str]) -> tuple[bytes, dict[str, str]]:
    """The signed answer to a neighbour's question; an empty one is asked who we are."""
    now = node.clock.now()
    if not body:
        reply: Any = {"peer_id": node.principals.host}
    else:
        peer = gate.signer(body, headers, now)
        question = msgspec.json.decode(body, type=Question)
        if question.to != node.principals.host or not node.gate.accepts(peer, "node"):
            raise _refused(f"{peer} may not ask this node")
        if (question.service, question.function) not in ALLOWED:
            raise _refused(f"neighbours may not call {question.service}.{question.function}")
        reply = await node.call(question.service, question.function, question.args, caller=peer)
    data = msgspec.json.encode(reply)
    return data, gate.sign(node.key, data, now)


def _refused(message: str) -> LeaseholdError:
    return LeaseholdError("neighbour_refused", message, kind=Kind.FORBIDDEN)

"""Decides which nodes, workers and image peers are accepted, by what they weigh in ``trust-graph``.

The weights are fetched as a whole and again every few seconds, so that whoever accepts a connection
has its answer at once. When the service does not answer, what it said last counts for some minutes;
after that nobody is accepted but this node itself: nobody gets in because a service is down.

A peer of the libp2p network has proven its id when it is asked about. A worker proves its own by
signing what it announces (:func:`sign`, :func:`signer`).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Awaitable, Callable, Mapping

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.core.logs import get_logger
from leasehold.core.metrics import counter
from leasehold.core.service import Service
from leasehold.node import trust
from leasehold.node.identity import peer_id

REFRESH = 5.0
"""Seconds between looks at the weights: how long a revocation may take."""

FIRST = 0.1
"""Seconds between looks until there was an answer: ``trust-graph`` may just be starting."""

STALE = 600.0
"""Seconds for which the last answer counts while ``trust-graph`` does not answer."""

MAX_SKEW = 300.0
"""Seconds an announcement's clock may be wrong; an older signature is worth nothing."""

PEER, SIGNED_AT, SIGNATURE = "x-leasehold-peer", "x-leasehold-signed-at", "x-leasehold-signature"

log = get_logger(__name__)
refused = counter("leasehold_trust_refused", "Peers that nobody vouches for", ["what"])

Weights = Callable[[], Awaitable[Mapping[str, int]]]


class TrustGate(Service):
    """``weights`` gives every peer with a weight; ``own`` is this node, always accepted.

    ``follow`` is told before the start. Without ``enforce`` everybody is accepted.
    """

    def __init__(
        self, own: str = "", *, clock: Clock, enforce: bool = True, weights: Weights | None = None
    ) -> None:
        super().__init__("trust gate", clock=clock)
        self.own = own
        self.enforce = enforce
        self.weights = weights
        self._known: Mapping[str, int] = {}
        self._at = float("-inf")

    async def start(self) -> None:
        if self.enforce and self.weights is not None:
            self.spawn(self._follow(self.weights), name="follow")

    async def _follow(self, weights: Weights) -> None:
        answered = True
        while True:
            try:
                self._known, self._at = await weights(), self.clock.monotonic()
                answered = True
            except (LeaseholdError, OSError) as error:
                if answered:
                    log.warning("trust.unknown", error=str(error), last_answer_counts=STALE)
                answered = False
            await self.clock.sleep(FIRST if self._at == float("-inf") else REFRESH)

    def accepts(self, peer: str, what: str = "peer") -> bool:
        """Whether somebody vouches for ``peer``; ``what`` it wants to be, for the metric."""
        if not self.enforce or (peer and peer == self.own):
            return True
        fresh = self.clock.monotonic() - self._at <= STALE
        accepted = fresh and self._known.get(peer, 0) > 0
        if not accepted:
            refused.labels(what).inc()
        return accepted

    def check_worker(self, body: bytes, headers: Mapping[str, str]) -> None:
        """Raise unless ``body`` was signed, just now, by a worker somebody vouches for."""
        if not self.enforce:
            return
        peer = signer(body, headers, self.clock.now())
        if not self.accepts(peer, "worker"):
            raise LeaseholdError(
                "worker_not_trusted",
                f"nobody vouches for worker {peer}; issue a certificate for it with "
                "`leasehold node trust issue`",
                kind=Kind.FORBIDDEN,
                got=peer,
            )


def sign(key: Ed25519PrivateKey, body: bytes, at: float) -> dict[str, str]:
    """Headers by which the sender of ``body`` proves who it is."""
    when = str(int(at))
    return {
        PEER: peer_id(key.public_key()),
        SIGNED_AT: when,
        SIGNATURE: base64.b64encode(key.sign(_message(body, when))).decode(),
    }


def signer(body: bytes, headers: Mapping[str, str], now: float) -> str:
    """The peer that signed ``body``; LeaseholdError when nobody did, or not lately."""
    try:
        peer, when = headers[PEER], headers[SIGNED_AT]
        if abs(now - int(when)) > MAX_SKEW:
            raise ValueError(f"signed {now - int(when):.0f} s ago; are the clocks right?")
        signature = base64.b64decode(headers[SIGNATURE], validate=True)
        trust.public_key(peer).verify(signature, _message(body, when))
    except KeyError as error:
        raise _unproven(f"the header {error.args[0]} is missing") from None
    except (ValueError, binascii.Error, trust.BadCertificate) as error:
        raise _unproven(str(error)) from None
    except InvalidSignature:
        raise _unproven("the signature is not that peer's") from None
    return peer


def _message(body: bytes, when: str) -> bytes:
    return b"leasehold announcement\0" + when.encode() + hashlib.sha256(body).digest()


def _unproven(reason: str) -> LeaseholdError:
    return LeaseholdError(
        "peer_unproven",
        f"who announces this is not proven: {reason}",
        kind=Kind.UNAUTHENTICATED,
    )

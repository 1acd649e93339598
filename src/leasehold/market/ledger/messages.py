"""What can be asked of the ledger: messages, and the signed transaction that carries them.

A transaction is JSON: the *body* as text (chain id, the signer's sequence, 1 to 16 messages), who
signs, and the signature over exactly the bytes of that text. All messages of a transaction happen
or none. Its hash, sha256 of the whole, names it; sending it again changes nothing. The envelope
has one form only, so that nobody on the way can give a transaction another hash.

Every message is the signer's: whoever signs ``deployment.create`` owns the deployment.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.market.accounts import Key, PublicKey
from leasehold.market.ledger.money import Coin
from leasehold.model.market import DeploymentId
from leasehold.model.resources import Attribute, GroupSpec

MAX_MESSAGES = 16
"""Messages in one transaction."""

MAX_GROUPS = 20
"""Groups in one deployment."""

Hash = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Address = Annotated[str, Meta(max_length=90)]
Text = Annotated[str, Meta(max_length=256)]
Seq = Annotated[int, Meta(ge=0, lt=1 << 53)]


class _Message(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="@type"):
    pass


class Send(_Message, frozen=True, kw_only=True, tag="bank.send"):
    """Give money to an account; one that does not exist yet is opened by it."""

    to: Address
    amount: Coin


class Mint(_Message, frozen=True, kw_only=True, tag="bank.mint"):
    """Make money; only the ledger's authority may."""

    to: Address
    amount: Coin


class CreateDeployment(_Message, frozen=True, kw_only=True, tag="deployment.create"):
    """Ask for resources: one order a group is put out for bids.

    ``dseq`` 0 takes the owner's next free number. ``reclamation_window`` (seconds, 0 none) is the
    notice a provider must give before it may close a lease.
    """

    dseq: Seq = 0
    hash: Hash
    groups: Annotated[list[GroupSpec], Meta(min_length=1, max_length=MAX_GROUPS)]
    deposit: Coin
    reclamation_window: Annotated[int, Meta(ge=0, le=365 * 86400)] = 0


class UpdateDeployment(_Message, frozen=True, kw_only=True, tag="deployment.update"):
    dseq: Seq
    hash: Hash


class DepositDeployment(_Message, frozen=True, kw_only=True, tag="deployment.deposit"):
    """Add funds to a deployment's escrow; anybody may."""

    id: DeploymentId
    amount: Coin


class CloseDeployment(_Message, frozen=True, kw_only=True, tag="deployment.close"):
    dseq: Seq


class PauseGroup(_Message, frozen=True, kw_only=True, tag="group.pause"):
    """Close the group's order, bids and lease; it can be started again."""

    dseq: Seq
    gseq: Seq


class StartGroup(_Message, frozen=True, kw_only=True, tag="group.start"):
    """Put a paused group out for bids again."""

    dseq: Seq
    gseq: Seq


class CloseGroup(_Message, frozen=True, kw_only=True, tag="group.close"):
    dseq: Seq
    gseq: Seq


class CreateBid(_Message, frozen=True, kw_only=True, tag="bid.create"):
    """Offer to serve an order for ``price`` a charged block."""

    owner: Address
    dseq: Seq
    gseq: Seq
    oseq: Seq
    price: Coin
    deposit: Coin
    reclamation_window: Annotated[int, Meta(ge=0, le=365 * 86400)] = 0


class CloseBid(_Message, frozen=True, kw_only=True, tag="bid.close"):
    """Withdraw a bid. An accepted one ends its lease, closes the order and pauses the group."""

    owner: Address
    dseq: Seq
    gseq: Seq
    oseq: Seq
    reason: Annotated[int, Meta(ge=0, le=1 << 31)] = 10002


class CreateLease(_Message, frozen=True, kw_only=True, tag="lease.create"):
    """Accept a bid on one's own order."""

    dseq: Seq
    gseq: Seq
    oseq: Seq
    provider: Address


class CloseLease(_Message, frozen=True, kw_only=True, tag="lease.close"):
    """The tenant ends a lease; the group is paused."""

    dseq: Seq
    gseq: Seq
    oseq: Seq
    provider: Address


class ReclaimLease(_Message, frozen=True, kw_only=True, tag="lease.reclaim"):
    """The provider gives notice; after the lease's window it may close its bid."""

    owner: Address
    dseq: Seq
    gseq: Seq
    oseq: Seq


class WithdrawLease(_Message, frozen=True, kw_only=True, tag="lease.withdraw"):
    """The provider takes what a lease has earned so far."""

    owner: Address
    dseq: Seq
    gseq: Seq
    oseq: Seq


class CreateCertificate(_Message, frozen=True, kw_only=True, tag="certificate.create"):
    """Publish a client certificate: PEM, self-signed, CN is the owner's address."""

    pem: Annotated[str, Meta(max_length=8192)]


class RevokeCertificate(_Message, frozen=True, kw_only=True, tag="certificate.revoke"):
    serial: Text


class SetProvider(_Message, frozen=True, kw_only=True, tag="provider.set"):
    """Register as a provider, or change the record."""

    host_uri: Text
    attributes: Annotated[list[Attribute], Meta(max_length=128)] = []
    email: Text = ""
    website: Text = ""


class SignAttributes(_Message, frozen=True, kw_only=True, tag="audit.sign"):
    """An auditor vouches for attributes of a provider."""

    provider: Address
    attributes: Annotated[list[Attribute], Meta(min_length=1, max_length=128)]


class DeleteAudit(_Message, frozen=True, kw_only=True, tag="audit.delete"):
    """An auditor takes back its signature of ``keys``, of all when empty."""

    provider: Address
    keys: Annotated[list[Text], Meta(max_length=128)] = []


Message = (
    Send
    | Mint
    | CreateDeployment
    | UpdateDeployment
    | DepositDeployment
    | CloseDeployment
    | PauseGroup
    | StartGroup
    | CloseGroup
    | CreateBid
    | CloseBid
    | CreateLease
    | CloseLease
    | ReclaimLease
    | WithdrawLease
    | CreateCertificate
    | RevokeCertificate
    | SetProvider
    | SignAttributes
    | DeleteAudit
)


class Body(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``sequence`` is how many transactions the signer has sent before this one.

    ``nonce`` tells two intentions apart that are otherwise the same: two processes that send one
    coin each with one key must not be taken for one that asks twice.
    """

    chain_id: Text
    sequence: Seq
    messages: Annotated[list[Message], Meta(min_length=1, max_length=MAX_MESSAGES)]
    memo: Text = ""
    nonce: Text = ""


class Tx(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The envelope. ``body`` is the signed text, ``key`` and ``signature`` are base64 in JSON."""

    body: str
    key: PublicKey
    signature: bytes


class Received(Struct, frozen=True):
    """A transaction as it arrived, decoded; not yet verified."""

    raw: bytes
    hash: bytes
    body: Body
    tx: Tx

    @property
    def signer(self) -> str:
        return self.tx.key.address


_body = msgspec.json.Decoder(Body)
_tx = msgspec.json.Decoder(Tx)


def sign(
    key: Key,
    chain_id: str,
    sequence: int,
    messages: Sequence[Any],
    memo: str = "",
    nonce: str = "",
) -> bytes:
    """The bytes to broadcast."""
    body = msgspec.json.encode(
        Body(chain_id=chain_id, sequence=sequence, messages=list(messages), memo=memo, nonce=nonce)
    )
    return msgspec.json.encode(Tx(body=body.decode(), key=key.public, signature=key.sign(body)))


def receive(raw: bytes, max_bytes: int) -> Received:
    """Decode a transaction; LeaseholdError ``tx_too_large`` or ``tx_malformed``."""
    if len(raw) > max_bytes:
        raise LeaseholdError(
            "tx_too_large",
            f"a transaction has at most {max_bytes} bytes",
            kind=Kind.TOO_LARGE,
            expected=f"≤ {max_bytes}",
            got=len(raw),
        )
    try:
        tx = _tx.decode(raw)
        body = _body.decode(tx.body)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise LeaseholdError(
            "tx_malformed", f"this is no transaction: {error}"[:500], kind=Kind.MALFORMED
        ) from None
    if msgspec.json.encode(tx) != raw:
        # Spaces, other key orders and the unused bits of base64 would give what was signed once
        # as many hashes as anybody likes.
        raise LeaseholdError(
            "tx_not_canonical",
            "the envelope has another form than body, key (type, data), signature without spaces",
            kind=Kind.MALFORMED,
        )
    return Received(raw, hashlib.sha256(raw).digest(), body, tx)


def verified(received: Received) -> bool:
    """Whether the signature is the signer's. Takes 0.1 ms (ed25519) to 0.5 ms (secp256k1)."""
    tx = received.tx
    return tx.key.verify(tx.signature, tx.body.encode())

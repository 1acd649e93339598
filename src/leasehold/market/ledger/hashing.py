"""CometBFT's hashes, so that a stranger's client can check what it reads.

A block is named by the Merkle root of its header's fields, each in protobuf form; the header holds
the roots of the transactions, of the last commit and of the last results. The validator signs a
canonical precommit for that name. Everything here reproduces recorded blocks of real chains.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from leasehold.market.ledger.chain import Sealed, TxResult

MAX_BLOCK_BYTES = 22_020_096
"""CometBFT's default ``block.max_bytes``; with ``max_gas`` -1 it makes up the consensus hash."""

PART_SIZE = 65_536
"""Bytes of a block part."""

BLOCK_PROTOCOL = 11
APP_PROTOCOL = 1
VOTING_POWER = 10


def merkle(items: Sequence[bytes]) -> bytes:
    """RFC 6962 root; the empty list has the hash of nothing."""
    sha256 = hashlib.sha256
    if not items:
        return sha256(b"").digest()
    level = [sha256(b"\0" + item).digest() for item in items]
    while len(level) > 1:
        # Pairs from the left, an odd last one moves up as it is: the same tree as splitting at the
        # largest power of two.
        pairs = zip(level[::2], level[1::2], strict=False)
        above = [sha256(b"\1" + left + right).digest() for left, right in pairs]
        level = above + level[-1:] if len(level) % 2 else above
    return level[0]


_SMALL = [bytes((value,)) for value in range(128)]
"""Most varints are tags and lengths: one byte."""


def varint(value: int) -> bytes:
    """Protobuf varint; negative numbers as 64-bit two's complement."""
    if 0 <= value < len(_SMALL):
        return _SMALL[value]
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def number(field: int, value: int) -> bytes:
    """A varint field, left out when 0."""
    return varint(field << 3) + varint(value) if value else b""


def fixed(field: int, value: int) -> bytes:
    """An sfixed64 field, left out when 0."""
    return varint(field << 3 | 1) + value.to_bytes(8, "little", signed=True) if value else b""


def chunk(field: int, value: bytes, *, always: bool = False) -> bytes:
    """Bytes, text or an embedded message, left out when empty unless ``always``."""
    return varint(field << 3 | 2) + varint(len(value)) + value if value or always else b""


def timestamp(nanoseconds: int) -> bytes:
    seconds, nanos = divmod(nanoseconds, 1_000_000_000)
    return number(1, seconds) + number(2, nanos)


def block_id(hash: bytes, parts: bytes, total: int) -> bytes:
    return chunk(1, hash) + chunk(2, number(1, total) + chunk(2, parts), always=True)


def address_of(validator: bytes) -> bytes:
    """20 bytes that name an ed25519 validator key."""
    return hashlib.sha256(validator).digest()[:20]


def validators_hash(validator: bytes, power: int = VOTING_POWER) -> bytes:
    return merkle([chunk(1, chunk(1, validator)) + number(2, power)])


def consensus_hash(max_bytes: int = MAX_BLOCK_BYTES, max_gas: int = -1) -> bytes:
    return hashlib.sha256(number(1, max_bytes) + number(2, max_gas)).digest()


def data_hash(txs: Sequence[bytes]) -> bytes:
    return merkle([hashlib.sha256(tx).digest() for tx in txs])


def results_hash(results: Sequence[TxResult]) -> bytes:
    """Only what is deterministic counts: code (0, refused ones are in no block) and data."""
    return merkle([chunk(2, result.data.encode()) for result in results])


def commit_signature(sealed: Sealed, validator: bytes) -> bytes:
    """The one signature of a commit, in protobuf form."""
    return (
        number(1, 2)
        + chunk(2, address_of(validator))
        + chunk(3, timestamp(sealed.time), always=True)
        + chunk(4, sealed.signature)
    )


def last_commit_hash(last: Sealed, validator: bytes) -> bytes:
    return merkle([commit_signature(last, validator)] if last.height else [])


def header(
    *,
    version: tuple[int, int],
    chain_id: str,
    height: int,
    time: int,
    last: tuple[bytes, bytes, int],
    last_commit: bytes,
    data: bytes,
    validators: bytes,
    next_validators: bytes,
    consensus: bytes,
    app: bytes,
    last_results: bytes,
    evidence: bytes,
    proposer: bytes,
) -> tuple[bytes, bytes]:
    """``(hash, protobuf form)`` of a header."""
    versions = number(1, version[0]) + number(2, version[1])
    when, before = timestamp(time), block_id(*last)
    roots = [last_commit, data, validators, next_validators, consensus, app, last_results]
    roots += [evidence, proposer]
    hash = merkle(
        [
            versions,
            chunk(1, chain_id.encode()),
            number(1, height),
            when,
            before,
            *(chunk(1, root) for root in roots),
        ]
    )
    encoded = (
        chunk(1, versions, always=True)
        + chunk(2, chain_id.encode())
        + number(3, height)
        + chunk(4, when, always=True)
        + chunk(5, before, always=True)
        + b"".join(chunk(6 + i, root) for i, root in enumerate(roots))
    )
    return hash, encoded


def name(
    chain_id: str,
    validator: bytes,
    height: int,
    time: int,
    txs: Sequence[bytes],
    last: Sealed,
) -> tuple[bytes, bytes, int]:
    """``(hash, root of the parts, how many parts)`` of one of our blocks."""
    validators = validators_hash(validator)
    hash, encoded = header(
        version=(BLOCK_PROTOCOL, APP_PROTOCOL),
        chain_id=chain_id,
        height=height,
        time=time,
        last=(last.hash, last.parts, last.total),
        last_commit=last_commit_hash(last, validator),
        data=data_hash(txs),
        validators=validators,
        next_validators=validators,
        consensus=consensus_hash(),
        app=last.app_hash,
        last_results=last.results,
        evidence=merkle([]),
        proposer=address_of(validator),
    )
    commit = number(1, last.height) + chunk(
        3, block_id(last.hash, last.parts, last.total), always=True
    )
    if last.height:
        commit += chunk(4, commit_signature(last, validator))
    body = (
        chunk(1, encoded)
        + chunk(2, b"".join(chunk(1, tx, always=True) for tx in txs), always=True)
        + chunk(3, b"", always=True)
        + chunk(4, commit)
    )
    pieces = [body[i : i + PART_SIZE] for i in range(0, len(body), PART_SIZE)]
    return hash, merkle(pieces), len(pieces)


def precommit(
    chain_id: str, height: int, time: int, hash: bytes, parts: bytes, total: int
) -> bytes:
    """The bytes the validator signs."""
    vote = (
        number(1, 2)
        + fixed(2, height)
        + chunk(4, block_id(hash, parts, total))
        + chunk(5, timestamp(time), always=True)
        + chunk(6, chain_id.encode())
    )
    return varint(len(vote)) + vote

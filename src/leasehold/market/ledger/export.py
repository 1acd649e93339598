"""Taking a ledger elsewhere, and checking that its history follows from its rules.

*Export* is the state at one height as lines of JSON: a head, then one object a line. It becomes the
genesis of another ledger, which goes on where this one was (same time base, next height). *History*
is the genesis and every block as they are kept. *Replay* runs a history again: signatures of
transactions and validator, links between blocks, and the state's hash after each must all fit.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Iterable, Iterator

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.market.accounts import PublicKey
from leasehold.market.ledger import hashing
from leasehold.market.ledger.blocks import Chain
from leasehold.market.ledger.chain import PART_BYTES, Block, Genesis, Param
from leasehold.market.ledger.history import History
from leasehold.market.ledger.messages import receive, verified
from leasehold.market.ledger.state import State, load_objects

FORMAT = "leasehold-ledger-export-1"


class Head(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """First line of an export. ``digest`` is that of the whole state (``State.digest``)."""

    format: str = FORMAT
    chain_id: str
    time: int
    height: int
    authority: str
    params: Param
    objects: int
    digest: str


def export(chain: Chain) -> Iterator[bytes]:
    """The lines of an export, of the state as it is when the first is asked for."""
    tables = {name: list(rows.values()) for name, rows in chain.state.tables.items()}
    genesis = chain.genesis
    head = Head(
        chain_id=genesis.chain_id,
        time=genesis.time,
        height=chain.height,
        authority=genesis.authority,
        params=genesis.params,
        objects=sum(map(len, tables.values())),
        digest=chain.state.digest(),
    )
    yield msgspec.json.encode(head) + b"\n"
    for name, rows in tables.items():
        for obj in rows:
            yield msgspec.json.encode([name, obj]) + b"\n"


def checkpoint_of(chain: Chain) -> tuple[Genesis, Iterator[bytes]]:
    """A genesis that goes on after the newest block, and its state as it is now, in pieces."""
    tables = {name: list(rows.values()) for name, rows in chain.state.tables.items()}
    genesis = replace(
        chain.genesis,
        accounts=[],
        continued=True,
        initial_height=chain.height + 1,
        last=chain.last,
    )

    def pieces() -> Iterator[bytes]:
        lines: list[bytes] = []
        size = 0
        for name, rows in tables.items():
            for obj in rows:
                line = msgspec.json.encode([name, obj]) + b"\n"
                if lines and size + len(line) > PART_BYTES:
                    yield b"".join(lines)
                    lines, size = [], 0
                lines.append(line)
                size += len(line)
        yield b"".join(lines)

    return genesis, pieces()


def genesis_of(data: bytes) -> Genesis:
    """The genesis that continues an exported ledger; LeaseholdError ``bad_export``."""
    first, _, rest = data.partition(b"\n")
    try:
        head = msgspec.json.decode(first, type=Head)
    except msgspec.MsgspecError as error:
        raise _bad(f"its first line is no head: {error}") from None
    if head.format != FORMAT:
        raise _bad(f"its format is {head.format!r}, not {FORMAT!r}")
    state = State()
    count = load_objects(state, rest)
    if count != head.objects:
        raise _bad(f"it has {count} objects, not {head.objects}")
    if state.digest() != head.digest:
        raise _bad("its objects do not add up to its digest")
    return Genesis(
        chain_id=head.chain_id,
        time=head.time,
        authority=head.authority,
        params=head.params,
        initial_height=head.height + 1,
        continued=True,
        state=rest,
    )


async def history_lines(history: History) -> AsyncGenerator[bytes, None]:
    """Genesis and blocks, one JSON document a line."""
    async with contextlib.aclosing(history.whole()) as kept:
        async for part in kept:
            yield msgspec.json.encode(part) + b"\n"


class Replayed(Struct, frozen=True):
    """What a replay came to."""

    chain_id: str
    height: int
    blocks: int
    txs: int
    app_hash: str
    digest: str


def replay(lines: Iterable[bytes]) -> Replayed:
    """Run a history again and check everything; LeaseholdError says where it does not fit."""
    lines = iter(lines)
    try:
        genesis = msgspec.json.decode(next(lines), type=Genesis)
    except (StopIteration, msgspec.MsgspecError) as error:
        raise _bad(f"the first line is no genesis: {error}") from None
    chain, decoder = Chain(genesis), msgspec.json.Decoder(Block)
    validator = PublicKey("ed25519", genesis.validator)
    blocks = txs = 0
    for line in lines:
        try:
            block = decoder.decode(line)
        except msgspec.MsgspecError as error:
            raise _bad(f"the block after {chain.height} cannot be read: {error}") from None
        _check(block, chain, validator)
        chain.replay(block)
        blocks += 1
        txs += len(block.txs)
    return Replayed(
        genesis.chain_id,
        chain.height,
        blocks,
        txs,
        chain.last.app_hash.hex(),
        chain.state.digest(),
    )


def _check(block: Block, chain: Chain, validator: PublicKey) -> None:
    """Everything but the state: links, names and signatures."""
    genesis, sealed = chain.genesis, block.sealed
    if block.last != chain.last:
        raise _bad(f"block {block.height} does not follow the block before it")
    named = hashing.name(
        genesis.chain_id, validator.data, block.height, block.time, block.txs, block.last
    )
    if named != (sealed.hash, sealed.parts, sealed.total):
        raise _bad(f"block {block.height} is not what its hash says")
    vote = hashing.precommit(genesis.chain_id, block.height, block.time, *named)
    if not validator.verify(sealed.signature, vote):
        raise _bad(f"block {block.height} is not signed by the validator")
    for raw in block.txs:
        if not verified(receive(raw, 1 << 30)):
            raise _bad(f"a transaction of block {block.height} is not signed by its sender")


def _bad(why: str) -> LeaseholdError:
    return LeaseholdError("bad_export", f"this is not a whole ledger: {why}", kind=Kind.MALFORMED)

"""What is written: genesis, blocks, the results of their transactions, and events.

The ledger's history is one entity of the log. Its first event is the genesis, then one event a
block (a very large one continues in parts). Event ids are the height, so that any block is found
without an index. A block carries what it decided, so that reading it never means running it again;
replaying it must come to the same ``app_hash``.

A genesis may begin with a state instead of nothing: one that was exported elsewhere, or a
*checkpoint* of this ledger, which is a genesis between blocks. What came before a checkpoint may be
forgotten.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct, field

from leasehold.core import ids
from leasehold.events.event import NewEvent
from leasehold.model.events import payload

ENTITY_KIND = "ledger"

PARTS = 1 << 16
"""Room for parts between the ids of two heights."""

CHECKPOINT = PARTS // 2
"""Where a checkpoint's own ids begin, after those of the block it stands on."""

PART_BYTES = 600 * 1024
"""A block continues in a further event beyond this; an event has at most 1 MiB."""


class ChainEvent(Struct, frozen=True, array_like=True):
    """As the originals' typed events: values are JSON."""

    type: str
    attributes: list[tuple[str, str]]


class TxResult(Struct, frozen=True):
    """``data`` is JSON: what the messages created."""

    events: list[ChainEvent]
    data: str = ""


class Param(Struct, frozen=True, kw_only=True):
    """Rules fixed at genesis. Amounts are base units in decimal text, times seconds."""

    charge_period_s: float = 6.0
    min_deposit: str = "500000"
    bid_deposit: str = "500000"
    max_bids: int = 20


class GenesisAccount(Struct, frozen=True):
    """``coins``: base units by denomination."""

    address: str
    coins: dict[str, str] = {}


class Sealed(Struct, frozen=True):
    """What names a finished block, and the validator's signature under it.

    ``results`` is the Merkle root of its transactions' results, ``app_hash`` the state after it.
    """

    height: int
    time: int
    hash: bytes
    parts: bytes
    total: int
    signature: bytes
    results: bytes
    app_hash: bytes


@payload("ledger.genesis")
class Genesis(Struct, frozen=True, kw_only=True):
    """How a ledger begins. ``time`` is nanoseconds UTC; ``authority`` may mint."""

    chain_id: str
    time: int
    accounts: list[GenesisAccount] = []
    authority: str = ""
    params: Param = field(default_factory=Param)
    validator: bytes = b""
    """Public ed25519 key that signs the blocks."""
    state: bytes = b""
    """A state to begin with (see ``export``); never in the event itself but in parts after it."""
    continued: bool = False
    """Whether there is such a state."""
    initial_height: int = 1
    last: Sealed | None = None
    """The block before, if this is a checkpoint."""


@payload("ledger.block")
class Block(Struct, frozen=True, kw_only=True):
    """One block. ``time`` is nanoseconds UTC; ``last`` is the block before it."""

    height: int
    time: int
    txs: list[bytes]
    results: list[TxResult]
    events: list[ChainEvent] = []
    """What no transaction caused: leases that ran out of funds."""
    last: Sealed
    sealed: Sealed
    more: int = 0
    """Parts that follow; then ``results`` and ``events`` are in them."""


class Outcome(Struct, frozen=True):
    """What a block too large for one event decided."""

    txs: list[bytes]
    results: list[TxResult]
    events: list[ChainEvent]


@payload("ledger.part")
class BlockPart(Struct, frozen=True, kw_only=True):
    """A piece of the JSON of a large block's :class:`Outcome`."""

    height: int
    part: int
    data: bytes


@payload("ledger.state")
class StatePart(Struct, frozen=True, kw_only=True):
    """A piece of the state that the genesis at ``height`` begins with."""

    height: int
    part: int
    data: bytes
    final: bool = False


def event_id(height: int, part: int = 0) -> str:
    """The id of a block's event; height 0 is the genesis."""
    return ids.encode(height * PARTS + part)


def height_of(id: str) -> int:
    return ids.decode(id) // PARTS


def to_events(block: Block) -> list[NewEvent]:
    """A block as the events to append."""
    whole = NewEvent.of(block, id=event_id(block.height))
    if len(whole.data) <= PART_BYTES:
        return [whole]
    outcome = msgspec.json.encode(Outcome(block.txs, block.results, block.events))
    pieces = [outcome[i : i + PART_BYTES] for i in range(0, len(outcome), PART_BYTES)]
    head = msgspec.structs.replace(block, txs=[], results=[], events=[], more=len(pieces))
    return [
        NewEvent.of(head, id=event_id(block.height)),
        *(
            NewEvent.of(
                BlockPart(height=block.height, part=n, data=piece), id=event_id(block.height, n)
            )
            for n, piece in enumerate(pieces, 1)
        ),
    ]


def join(head: Block, pieces: list[BlockPart]) -> Block:
    """The inverse of :func:`to_events` for a block that continues."""
    outcome = msgspec.json.decode(b"".join(piece.data for piece in pieces), type=Outcome)
    return msgspec.structs.replace(
        head, txs=outcome.txs, results=outcome.results, events=outcome.events, more=0
    )

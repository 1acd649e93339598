"""Blocks and transactions of any chain, in the common structures, with exact amounts.

An amount is an integer times a power of ten, never a float. Keys are those of the original's JSON,
so its clients read ours. ``Event`` is what a chain says happened, in a block or a transaction;
``IndexedBlock`` is one height with everything that happened in it.

Values are immutable and cannot form cycles, so they are kept from the garbage collector (a block
may have a million of them).
"""

from __future__ import annotations

import functools
import re
from typing import Any

import msgspec

from leasehold.core.errors import LeaseholdError

_COIN = re.compile(r"^([0-9]+)(?:\.([0-9]{1,18}))?([a-zA-Z][a-zA-Z0-9/:._-]{1,127})$")


class Amount(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """``numeric`` x 10^-``exp`` of ``currency``; ``text`` is how the chain wrote it."""

    text: str = ""
    currency: str = ""
    numeric: int = 0
    exp: int = 0

    def add(self, other: Amount) -> Amount:
        """The sum, at the larger ``exp``; LeaseholdError when the currencies differ."""
        return self._combine(other, 1)

    def sub(self, other: Amount) -> Amount:
        """The difference, at the larger ``exp``; LeaseholdError when the currencies differ."""
        return self._combine(other, -1)

    def _combine(self, other: Amount, sign: int) -> Amount:
        if self.currency != other.currency:
            raise LeaseholdError(
                "currency_mismatch",
                f"cannot combine {self.currency!r} with {other.currency!r}",
                expected=self.currency,
                got=other.currency,
            )
        exp = max(self.exp, other.exp)
        mine = self.numeric * 10 ** (exp - self.exp)
        theirs = other.numeric * 10 ** (exp - other.exp)
        return Amount("", self.currency, mine + sign * theirs, exp)


@functools.lru_cache(maxsize=4096)
def parse_coins(text: str) -> tuple[Amount, ...]:
    """``1akt,25uakt`` to amounts; empty when the text is no list of coins."""
    amounts = []
    for part in text.split(","):
        found = _COIN.match(part.strip())
        if found is None:
            return ()
        fraction = found[2] or ""
        numeric = int(found[1] + fraction)
        amounts.append(Amount(part.strip(), found[3], numeric, len(fraction)))
    return tuple(amounts)


class Attribute(msgspec.Struct, frozen=True, gc=False):
    key: str
    value: str


class Event(msgspec.Struct, frozen=True, gc=False):
    """One thing the chain says happened. Keys may repeat."""

    type: str
    attributes: tuple[Attribute, ...] = ()

    def get(self, key: str, default: str = "") -> str:
        """The first value of ``key``."""
        for attribute in self.attributes:
            if attribute.key == key:
                return attribute.value
        return default

    def as_dict(self) -> dict[str, str]:
        """The first value of each key."""
        out: dict[str, str] = {}
        for attribute in self.attributes:
            out.setdefault(attribute.key, attribute.value)
        return out


class Account(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    id: str
    detail: dict[str, str] = {}


class Transfer(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    account: Account
    amounts: tuple[Amount, ...] = ()


class SubEvent(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True):
    """A part of a transaction in chain-independent words."""

    type: tuple[str, ...] = ()
    action: str = ""
    module: str = ""
    sender: tuple[Transfer, ...] = ()
    recipient: tuple[Transfer, ...] = ()
    node: dict[str, tuple[Account, ...]] = {}
    nonce: str = ""
    completion: str | None = None
    amount: dict[str, Amount] = {}
    transfers: dict[str, tuple[Transfer, ...]] = {}
    error: dict[str, str] | None = None
    additional: dict[str, tuple[str, ...]] = {}
    sub: tuple[SubEvent, ...] = ()


class TransactionEvent(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True):
    id: str = ""
    kind: str = ""
    type: tuple[str, ...] = ()
    module: str = ""
    sub: tuple[SubEvent, ...] = ()


class Block(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """``time`` is RFC 3339 as the chain wrote it, all of its digits."""

    hash: str
    height: int
    time: str
    chain_id: str = ""
    epoch: str = ""
    num_txs: int = 0


class Transaction(msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """``events`` in common words; ``raw_events`` as the chain said them; ``raw`` its bytes.

    ``index`` is the position in the block. ``code`` other than 0 means that it failed.
    """

    hash: str
    block_hash: str
    height: int
    index: int = 0
    epoch: str = ""
    chain_id: str = ""
    time: str = ""
    transaction_fee: tuple[Amount, ...] = ()
    gas_wanted: int = 0
    gas_used: int = 0
    memo: str = ""
    version: str = ""
    events: tuple[TransactionEvent, ...] = ()
    raw_events: tuple[Event, ...] = ()
    raw: bytes = b""
    raw_log: bytes = b""
    code: int = 0
    has_errors: bool = False


class IndexedBlock(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One height: the block, its transactions in order, and the events of the block itself.

    Block-level events are those of no transaction: what the chain does by itself at the beginning
    or end of a block, as closing what ran out of funds.
    """

    block: Block
    transactions: tuple[Transaction, ...] = ()
    events: tuple[Event, ...] = ()

    @property
    def height(self) -> int:
        return self.block.height

    @property
    def hash(self) -> str:
        return self.block.hash

    @property
    def time(self) -> str:
        return self.block.time


class HeightRange(msgspec.Struct, omit_defaults=True, rename="pascal"):
    """The payload of ``GetTransactions``, with the original's key names.

    ``format`` is an addition: ``heights`` asks for ``Height`` parts and a final ``Heights``.
    """

    epoch: str = ""
    hash: str = ""
    start_height: int = 0
    end_height: int = 0
    chain_id: str = msgspec.field(default="", name="ChainID")
    network: str = ""
    format: str = ""


class HeightAccount(msgspec.Struct, omit_defaults=True, rename="pascal"):
    """The payload of ``GetReward``, ``GetAccountBalance`` and ``GetAccountDelegations``."""

    epoch: str = ""
    height: int = 0
    account: str = ""
    chain_id: str = msgspec.field(default="", name="ChainID")
    network: str = ""


class Reward(msgspec.Struct):
    """Staking rewards that an account could withdraw at a height."""

    height: int
    rewards: list[Amount] = []


class AccountBalance(msgspec.Struct):
    """What an account has at a height."""

    height: int
    balances: list[Amount] = []


class Delegation(msgspec.Struct, frozen=True, gc=False):
    """``shares`` are the validator's, ``balance`` what they are worth."""

    delegator: str
    validator: str
    shares: Amount
    balance: Amount


class AccountDelegations(msgspec.Struct):
    """What an account has delegated at a height."""

    height: int
    delegations: list[Delegation] = []


class LatestData(msgspec.Struct, omit_defaults=True):
    """What is known so far, or how far one came; ``GetLatestMark`` and ``last_data``."""

    network: str = ""
    chain_id: str = ""
    version: str = ""
    task_id: str = ""
    last_height: int = 0
    last_hash: str = ""
    last_epoch: str = ""
    last_time: str = ""
    retry_count: int = 0
    nonce: bytes = b""
    error: bytes = b""
    processing: bool = False
    self_check: bool = False


class Heights(msgspec.Struct, omit_defaults=True):
    """Which heights of a range were done and which were not."""

    heights: list[int] = []
    error_at: list[int] = []
    latest: LatestData | None = None
    num_tx: int = 0
    num_heights: int = 0


class HeightPart(msgspec.Struct, omit_defaults=True):
    """The payload of ``Height``: a part of one height, small enough for a message.

    The first part (``part`` 0) has the block and its events; ``last`` says the height is whole.
    """

    height: int
    part: int = 0
    last: bool = False
    block: Block | None = None
    events: tuple[Event, ...] = ()
    transactions: tuple[Transaction, ...] = ()


def to_json(value: Any) -> bytes:
    """JSON of any of these; integers of any size stay integers."""
    return msgspec.json.encode(value)

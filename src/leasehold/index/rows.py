"""Blocks and transactions to rows and back."""

from __future__ import annotations

import re
from calendar import timegm
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.index.cosmos import involved
from leasehold.index.schema import ACCOUNT, MEMO, RECIPIENT, SENDER, TYPE
from leasehold.model.chain import Block, Event, IndexedBlock, Transaction

MAX_TERM = 256
"""Characters of one searchable value; longer ones are cut."""

MAX_MEMO_WORDS = 64
"""Words of a memo that can be searched for."""

_WORD = re.compile(r"\w+")
_TIME = re.compile(r"^(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:\.(\d+))?(Z|[+-]\d\d:\d\d)$")
_encoder = msgspec.json.Encoder()
_events = msgspec.json.Decoder(tuple[Event, ...])
_transaction = msgspec.json.Decoder(Transaction)


class Rows(NamedTuple):
    """Rows of some heights, by table, in column order."""

    blocks: list[tuple[Any, ...]]
    transactions: list[tuple[Any, ...]]
    terms: list[tuple[Any, ...]]


def microseconds(text: str) -> int:
    """RFC 3339 to microseconds since 1970; LeaseholdError ``bad_time``."""
    found = _TIME.match(text)
    if found is None:
        raise LeaseholdError(
            "bad_time", f"{text!r} is no RFC 3339 time", kind=Kind.MALFORMED, got=text
        )
    year, month, day, hour, minute, second = map(int, found.groups()[:6])
    fraction, zone = found[7] or "0", found[8]
    try:
        whole = datetime(year, month, day, hour, minute, second, tzinfo=UTC)
    except ValueError as error:
        raise LeaseholdError("bad_time", str(error), kind=Kind.MALFORMED, got=text) from None
    seconds = timegm(whole.timetuple())
    if zone != "Z":
        offset = int(zone[1:3]) * 3600 + int(zone[4:6]) * 60
        seconds -= offset if zone[0] == "+" else -offset
    return seconds * 1_000_000 + int(fraction[:6].ljust(6, "0"))


def rows_of(chain: int, heights: Sequence[IndexedBlock]) -> Rows:
    """What is stored of ``heights``."""
    rows = Rows([], [], [])
    for height in heights:
        block = height.block
        at = microseconds(block.time)
        number = block.height
        rows.blocks.append(
            (
                chain,
                number,
                block.hash,
                block.time,
                at,
                block.epoch,
                block.num_txs,
                _encoder.encode(height.events),
            )
        )
        for tx in height.transactions:
            bare = msgspec.structs.replace(tx, raw=b"", raw_log=b"")
            rows.transactions.append(
                (chain, number, tx.index, tx.hash, at, _encoder.encode(bare), tx.raw, tx.raw_log)
            )
            for kind, value in terms_of(tx):
                rows.terms.append((chain, kind, value, number, tx.index))
    return rows


def terms_of(tx: Transaction) -> Iterator[tuple[int, str]]:
    """What a transaction can be found by, each once."""
    types = {type_ for event in tx.events for type_ in (event.kind, *event.type)}
    types.update(kind for event in tx.events for sub in event.sub for kind in sub.type)
    if tx.has_errors:
        types.add("error")
    accounts, senders, recipients = involved(tx.raw_events)
    for event in tx.events:
        for sub in event.sub:
            senders.update(t.account.id for t in sub.sender)
            recipients.update(t.account.id for t in sub.recipient)
    accounts |= senders | recipients
    for kind, values in (
        (TYPE, types),
        (ACCOUNT, accounts),
        (SENDER, senders),
        (RECIPIENT, recipients),
        (MEMO, memo_words(tx.memo)),
    ):
        for value in {value[:MAX_TERM] for value in values}:
            if value:
                yield kind, value.replace("\0", "")


def memo_words(memo: str) -> set[str]:
    """Words of a memo in lower case; any text is fine, also as a question."""
    return set(_WORD.findall(memo.lower())[:MAX_MEMO_WORDS])


def block_of(row: Any, chain_id: str) -> tuple[Block, tuple[Event, ...]]:
    """A row of ``blocks`` back to what it was."""
    block = Block(
        hash=row.hash,
        height=row.height,
        time=row.time,
        chain_id=chain_id,
        epoch=row.epoch,
        num_txs=row.num_txs,
    )
    return block, _events.decode(row.events)


def transaction_of(row: Any) -> Transaction:
    """A row of ``transactions`` back to what it was."""
    return msgspec.structs.replace(
        _transaction.decode(row.data), raw=bytes(row.raw), raw_log=bytes(row.raw_log)
    )

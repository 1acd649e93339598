"""CometBFT's answers as the common structures.

What differs between versions: events of the block itself are in ``begin_block_events`` and
``end_block_events`` up to 0.37 and in ``finalize_block_events`` from 0.38; keys and values of
attributes are base64 up to 0.34 and plain from 0.37. The shape tells 0.38 from the rest; between
0.34 and 0.37 the node's version decides, and without it the text itself: an answer is base64 if
every key and value of it is. (Real plain answers never are: ``amount`` or ``sender`` is not.)
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import Any, Generic, TypeVar

import msgspec

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.index import cosmos
from leasehold.model.chain import Attribute, Block, Event, IndexedBlock, Transaction

T = TypeVar("T")

_VERSION = re.compile(r"^v?(\d+)\.(\d+)")


class Status(msgspec.Struct, frozen=True):
    """What ``status`` says that matters here."""

    chain_id: str
    version: str
    earliest_height: int
    latest_height: int
    latest_hash: str
    latest_time: str
    catching_up: bool


# shapes of the answers; heights and gas are JSON strings, hence ``strict=False``


class _NodeInfo(msgspec.Struct):
    network: str = ""
    version: str = ""


class _SyncInfo(msgspec.Struct):
    latest_block_height: int = 0
    latest_block_hash: str = ""
    latest_block_time: str = ""
    earliest_block_height: int = 1
    catching_up: bool = False


class _StatusAnswer(msgspec.Struct):
    node_info: _NodeInfo
    sync_info: _SyncInfo


class _BlockId(msgspec.Struct):
    hash: str = ""


class _Header(msgspec.Struct):
    height: int
    time: str
    chain_id: str = ""


class _BlockData(msgspec.Struct, frozen=True):
    txs: list[bytes] | None = None


class _BlockBody(msgspec.Struct):
    header: _Header
    data: _BlockData = _BlockData()


class _BlockAnswer(msgspec.Struct):
    block_id: _BlockId
    block: _BlockBody


class _RawAttribute(msgspec.Struct, gc=False):
    key: str | None = None
    value: str | None = None


class _RawEvent(msgspec.Struct, gc=False):
    type: str
    attributes: list[_RawAttribute] | None = None


E = TypeVar("E")


class TxResult(msgspec.Struct, Generic[E]):
    """The result of one transaction; ``events`` still as the node wrote them."""

    code: int = 0
    log: str | None = None
    gas_wanted: int = 0
    gas_used: int = 0
    events: list[E] | None = None
    codespace: str | None = None


class _ResultsAnswer(msgspec.Struct, Generic[E]):
    height: int = 0
    txs_results: list[TxResult[E]] | None = None
    begin_block_events: list[E] | msgspec.UnsetType | None = msgspec.UNSET
    end_block_events: list[E] | msgspec.UnsetType | None = msgspec.UNSET
    finalize_block_events: list[E] | msgspec.UnsetType | None = msgspec.UNSET


class _Found(msgspec.Struct):
    hash: str
    height: int
    index: int
    tx: bytes
    tx_result: TxResult[_RawEvent]


class _SearchAnswer(msgspec.Struct):
    txs: list[_Found] = []
    total_count: int = 0


_status = msgspec.json.Decoder(_StatusAnswer, strict=False)
_block = msgspec.json.Decoder(_BlockAnswer, strict=False)
_results = msgspec.json.Decoder(_ResultsAnswer[_RawEvent], strict=False)
_plain_results = msgspec.json.Decoder(_ResultsAnswer[Event], strict=False)
"""Straight to our events, for answers without nulls in attributes; most of a large block's time."""
_search = msgspec.json.Decoder(_SearchAnswer, strict=False)


def decode_status(data: bytes) -> Status:
    answer = _decode(_status, data, "status")
    sync = answer.sync_info
    return Status(
        answer.node_info.network,
        answer.node_info.version,
        sync.earliest_block_height,
        sync.latest_block_height,
        sync.latest_block_hash,
        sync.latest_block_time,
        sync.catching_up,
    )


def decode_height(
    block_data: bytes, results_data: bytes, *, version: str = "", parse: bool = True
) -> IndexedBlock:
    """The answers to ``block`` and ``block_results`` of one height, put together.

    ``version`` is the node's (from ``status``), empty if unknown. With ``parse`` transactions are
    read as Cosmos transactions where they are such. LeaseholdError ``rpc_bad_answer`` when the
    answers are not of one block.
    """
    answer = _decode(_block, block_data, "block")
    results = _decode_results(results_data)
    header = answer.block.header
    raw_txs = answer.block.data.txs or []
    tx_results = results.txs_results or []
    if results.height not in (0, header.height) or len(raw_txs) != len(tx_results):
        raise LeaseholdError(
            "rpc_bad_answer",
            f"block {header.height} has {len(raw_txs)} transactions, but the results are"
            f" {len(tx_results)} of height {results.height}",
            kind=Kind.UNAVAILABLE,
        )
    block_events = _block_events(results)
    encoded = _is_base64(results, version, [block_events, *(r.events or [] for r in tx_results)])
    block = Block(
        hash=answer.block_id.hash,
        height=header.height,
        time=header.time,
        chain_id=header.chain_id,
        num_txs=len(raw_txs),
    )
    transactions = tuple(
        _transaction(block, index, raw, result, encoded, parse)
        for index, (raw, result) in enumerate(zip(raw_txs, tx_results, strict=True))
    )
    return IndexedBlock(
        block=block, transactions=transactions, events=_events(block_events, encoded)
    )


def decode_search(
    data: bytes, *, version: str = "", parse: bool = True
) -> tuple[list[Transaction], int]:
    """One page of ``tx_search`` and how many there are; without block hash, time and chain."""
    answer = _decode(_search, data, "tx_search")
    encoded = _is_base64(None, version, [found.tx_result.events or [] for found in answer.txs])
    transactions = []
    for found in answer.txs:
        block = Block(hash="", height=found.height, time="")
        transactions.append(
            _transaction(block, found.index, found.tx, found.tx_result, encoded, parse)
        )
    return transactions, answer.total_count


def tx_hash(raw: bytes) -> str:
    """CometBFT's hash of a transaction: SHA-256 of its bytes, upper-case hex."""
    return hashlib.sha256(raw).hexdigest().upper()


def _transaction(
    block: Block, index: int, raw: bytes, result: TxResult[Any], encoded: bool, parse: bool
) -> Transaction:
    events = _events(result.events or [], encoded)
    raw_log = (result.log or "").encode()
    common = {
        "hash": tx_hash(raw),
        "block_hash": block.hash,
        "height": block.height,
        "index": index,
        "chain_id": block.chain_id,
        "time": block.time,
        "gas_wanted": result.gas_wanted,
        "gas_used": result.gas_used,
        "raw_events": events,
        "raw": raw,
        "raw_log": raw_log,
        "code": result.code,
        "has_errors": result.code != 0,
    }
    if parse:
        common.update(cosmos.meaning(raw, events, result.log or "", result.code))
    return Transaction(**common)  # type: ignore[arg-type]


def _block_events(results: _ResultsAnswer[Any]) -> list[Any]:
    out: list[Any] = []
    part: list[_RawEvent] | msgspec.UnsetType | None
    for part in (
        results.begin_block_events,
        results.end_block_events,
        results.finalize_block_events,
    ):
        if part is not msgspec.UNSET and part:
            out += part
    return out


# base64 or plain


def _is_base64(
    results: _ResultsAnswer[Any] | None, version: str, groups: Sequence[Iterable[_RawEvent | Event]]
) -> bool:
    if results is not None and results.finalize_block_events is not msgspec.UNSET:
        return False
    known = _VERSION.match(version)
    if known:
        return (int(known[1]), int(known[2])) < (0, 37)
    seen = False
    for group in groups:
        for event in group:
            for attribute in event.attributes or ():
                for text in (attribute.key, attribute.value):
                    if text:
                        if _unbase64(text) is None:
                            return False
                        seen = True
    return seen


def _unbase64(text: str) -> str | None:
    try:
        return base64.b64decode(text, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return None


def _events(raw: Sequence[_RawEvent | Event], encoded: bool) -> tuple[Event, ...]:
    if not encoded:
        if raw and isinstance(raw[0], Event):
            return tuple(raw)  # type: ignore[arg-type]
        return tuple(
            Event(
                event.type,
                tuple(Attribute(a.key or "", a.value or "") for a in event.attributes or ()),
            )
            for event in raw
        )
    return tuple(
        Event(
            event.type,
            tuple(Attribute(_plain(a.key), _plain(a.value)) for a in event.attributes or ()),
        )
        for event in raw
    )


def _plain(text: str | None) -> str:
    """Decoded base64; bytes that are no text stay as they came."""
    if not text:
        return ""
    decoded = _unbase64(text)
    return text if decoded is None else decoded


def _decode_results(data: bytes) -> _ResultsAnswer[Any]:
    try:
        return _plain_results.decode(data)
    except msgspec.MsgspecError:
        return _decode(_results, data, "block_results")


def _decode(decoder: msgspec.json.Decoder[T], data: bytes, method: str) -> T:
    try:
        return decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise LeaseholdError(
            "rpc_bad_answer",
            f"the answer to {method} has another shape: {error}",
            kind=Kind.UNAVAILABLE,
            got=method,
        ) from None

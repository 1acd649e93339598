"""What a Cosmos SDK transaction means: its messages, memo, fee and transfers.

A transaction is protobuf (``TxRaw``: body, auth info, signatures); only three of its parts are
read, with a reader of wire format small enough to see through. Bytes that are no such transaction
(the ledger's, a key-value store's) mean nothing more than their events say.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from leasehold.index import metrics
from leasehold.model.chain import (
    Account,
    Amount,
    Event,
    SubEvent,
    TransactionEvent,
    Transfer,
    parse_coins,
)

MAX_MESSAGES = 1000
"""Messages of one transaction that are described; chains allow far fewer."""

ORIGINAL_NAMES = {
    "undelegate": "begin_unbonding",
    "redelegate": "begin_redelegate",
    "withdraw_delegation_reward": "withdraw_delegator_reward",
}
"""Where the original's type is not the message's name in snake case."""

_CAPITAL = re.compile(r"(?<!^)(?=[A-Z])")


def meaning(raw: bytes, events: Sequence[Event], log: str, code: int) -> dict[str, Any]:
    """Fields of a :class:`Transaction` that can be read from its bytes and events."""
    out: dict[str, Any] = {}
    types: list[str] = []
    try:
        body, auth = _parts(raw)
        if body is not None:
            types, out["memo"] = _body(body)
        if auth is not None:
            out["transaction_fee"] = _fee(auth)
    except (ValueError, UnicodeDecodeError):
        types, out = [], {}
        metrics.TX_UNKNOWN.inc()
    if not types:
        # Not a Cosmos transaction, or one of another age: the events name the actions.
        types = [e.get("action") for e in events if e.type == "message" and e.get("action")]
        types = types or list(dict.fromkeys(event.type for event in events))[:1]
    groups = _by_message(events, len(types))
    out["events"] = tuple(
        _describe(i, type_, groups[i], log if code else "") for i, type_ in enumerate(types)
    )
    return out


def action_name(type_url: str) -> tuple[str, str]:
    """``/cosmos.bank.v1beta1.MsgSend`` to ``("send", "bank")``; other texts stay as they are."""
    if not type_url.startswith("/"):
        return type_url, ""
    path = type_url[1:].split(".")
    name = _CAPITAL.sub("_", path[-1].removeprefix("Msg")).lower()
    # cosmos.bank.v1beta1.MsgSend, akash.market.v1beta4.MsgCreateBid, ibc.core.client.v1.Msg…
    modules = [part for part in path[:-1] if not re.fullmatch(r"v\d+((alpha|beta)\d+)?", part)]
    return ORIGINAL_NAMES.get(name, name), modules[-1] if len(modules) > 1 else ""


def _describe(index: int, type_: str, events: Sequence[Event], error: str) -> TransactionEvent:
    action, module = action_name(type_)
    senders: dict[str, list[Amount]] = {}
    recipients: dict[str, list[Amount]] = {}
    transfers: list[Transfer] = []
    withdrawn: list[tuple[str, tuple[Amount, ...]]] = []
    for event in events:
        if event.type == "transfer":
            amounts = parse_coins(event.get("amount"))
            if sender := event.get("sender"):
                senders.setdefault(sender, []).extend(amounts)
            if recipient := event.get("recipient"):
                recipients.setdefault(recipient, []).extend(amounts)
                transfers.append(Transfer(Account(recipient), amounts))
        elif event.type == "withdraw_rewards":
            withdrawn.append((event.get("delegator"), parse_coins(event.get("amount"))))
        elif event.type == "message":
            for attribute in event.attributes:
                if attribute.key == "sender":
                    senders.setdefault(attribute.value, [])
                elif attribute.key == "module" and not module:
                    module = attribute.value
    moved = {"send": tuple(transfers)} if transfers else {}
    if withdrawn:
        # Before 0.46 the event does not say to whom: to who sent the message.
        whose = next((a.value for e in events if e.type == "message"
                      for a in e.attributes if a.key == "sender"), "")  # fmt: skip
        moved["reward"] = tuple(Transfer(Account(who or whose), a) for who, a in withdrawn)
    sub = SubEvent(
        type=(action,),
        action=action,
        module=module,
        sender=tuple(Transfer(Account(a), tuple(v)) for a, v in senders.items()),
        recipient=tuple(Transfer(Account(a), tuple(v)) for a, v in recipients.items()),
        transfers=moved,
        error={"message": error} if error else None,
    )
    return TransactionEvent(id=str(index), kind=action, type=(action,), module=module, sub=(sub,))


def _by_message(events: Sequence[Event], count: int) -> list[list[Event]]:
    """Events by message, as their ``msg_index`` says; without any, all are the first's."""
    groups: list[list[Event]] = [[] for _ in range(count)]
    if not groups:
        return groups
    indexed = False
    rest: list[Event] = []
    for event in events:
        index = event.get("msg_index")
        if index.isascii() and index.isdigit() and int(index) < count:
            groups[int(index)].append(event)
            indexed = True
        else:
            rest.append(event)
    if not indexed:
        groups[0].extend(rest)
    return groups


# protobuf wire format


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """``(number, value)`` of each field; ValueError when it is no protobuf message."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, kind = tag >> 3, tag & 7
        if number == 0:
            raise ValueError("field number 0")
        if kind == 0:
            value, at = _varint(data, at)
            yield number, value
        elif kind == 2:
            length, at = _varint(data, at)
            if at + length > len(data):
                raise ValueError("truncated")
            yield number, data[at : at + length]
            at += length
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
            if at + size > len(data):
                raise ValueError("truncated")
            yield number, data[at : at + size]
            at += size
        else:
            raise ValueError(f"wire type {kind}")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("bad varint")
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7


def _parts(raw: bytes) -> tuple[bytes | None, bytes | None]:
    body: bytes | None = None
    auth: bytes | None = None
    for number, value in fields(raw):
        if number in (1, 2, 3) and not isinstance(value, bytes):
            raise ValueError("not a TxRaw")
        if number == 1:
            body = _bytes(value)
        elif number == 2:
            auth = _bytes(value)
        elif number > 3:
            raise ValueError("not a TxRaw")
    return body, auth


def _body(data: bytes) -> tuple[list[str], str]:
    """Type URLs of the messages, and the memo."""
    types: list[str] = []
    memo = ""
    for number, value in fields(data):
        if number == 1 and len(types) < MAX_MESSAGES:
            url = next((_bytes(v).decode() for n, v in fields(_bytes(value)) if n == 1), "")
            if not url.startswith("/"):
                raise ValueError("not a TxBody")
            types.append(url)
        elif number == 2:
            memo = _bytes(value).decode()
    return types, memo


def _fee(data: bytes) -> tuple[Amount, ...]:
    amounts: list[Amount] = []
    for number, value in fields(data):
        if number != 2:
            continue
        for fee_number, coin in fields(_bytes(value)):
            if fee_number == 1:
                parts = {n: _bytes(v).decode() for n, v in fields(_bytes(coin)) if n in (1, 2)}
                numeric = parts.get(2, "0")
                if not numeric.isascii() or not numeric.isdigit():
                    raise ValueError("not a coin")
                denom = parts.get(1, "")
                amounts.append(Amount(numeric + denom, denom, int(numeric), 0))
    return tuple(amounts)


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number where bytes were expected")
    return value


def involved(events: Sequence[Event]) -> tuple[set[str], set[str], set[str]]:
    """Accounts, senders and recipients that the raw events of a transaction name."""
    accounts: set[str] = set()
    senders: set[str] = set()
    recipients: set[str] = set()
    for event in events:
        for attribute in event.attributes:
            key, value = attribute.key, attribute.value
            if not value or len(value) > 128:
                continue
            if key == "sender":
                senders.add(value)
            elif key == "recipient":
                recipients.add(value)
            elif key in ACCOUNT_KEYS:
                accounts.add(value)
    return accounts | senders | recipients, senders, recipients


ACCOUNT_KEYS = frozenset(
    {"spender", "receiver", "delegator", "validator", "owner", "provider", "granter", "grantee",
     "fee_payer", "minter", "burner", "withdraw_address", "source_validator",
     "destination_validator"}
)  # fmt: skip
"""Attribute keys whose values are accounts."""

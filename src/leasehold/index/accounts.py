"""What a node's state says of an account at a height: balances, rewards to be had, delegations.

Asked by ``abci_query``. A Cosmos SDK chain takes the name of a gRPC method and a protobuf request;
a node keeps old states only for a while, and says so itself when one is gone. The embedded ledger
takes JSON, and knows balances of its newest height only: it has no staking.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.index.cosmos import fields
from leasehold.index.rpc import Rpc
from leasehold.model.chain import Amount, Delegation

BALANCES = "/cosmos.bank.v1beta1.Query/AllBalances"
REWARDS = "/cosmos.distribution.v1beta1.Query/DelegationTotalRewards"
DELEGATIONS = "/cosmos.staking.v1beta1.Query/DelegatorDelegations"

DECIMALS = 18
"""Digits behind the point of the SDK's ``Dec``, which is written without the point."""

PAGE = 1000
MAX_PAGES = 100
"""Pages of one answer that are read; more is an error."""

LEDGER = "ledger"


class _Response(msgspec.Struct):
    code: int = 0
    log: str | None = None
    value: bytes | None = None
    height: int = 0


class _Answer(msgspec.Struct):
    response: _Response


_answer = msgspec.json.Decoder(_Answer, strict=False)


class Accounts:
    """Questions to the node behind ``rpc``; height 0 is its newest."""

    def __init__(self, rpc: Rpc, network: str) -> None:
        self.rpc = rpc
        self.network = network

    async def balances(self, account: str, height: int) -> list[Amount]:
        """All that ``account`` has, one amount a denomination."""
        if self.network == LEDGER:
            return await self._of_ledger(account, height)
        return [
            _coin(item, 0)
            async for page in self._pages(BALANCES, account, height)
            for item in page.get(1, [])
        ]

    async def rewards(self, account: str, height: int) -> list[Amount]:
        """Staking rewards that ``account`` could withdraw, one amount a denomination."""
        self._needs_staking()
        found = await self._ask(REWARDS, _chunk(1, account.encode()), height)
        return [_coin(item, DECIMALS) for item in _fields(found).get(2, [])]

    async def delegations(self, account: str, height: int) -> list[Delegation]:
        """What ``account`` has delegated, to whom."""
        self._needs_staking()
        out = []
        async for page in self._pages(DELEGATIONS, account, height):
            for item in page.get(1, []):
                parts = _fields(item)
                entry = _fields(_one(parts, 1))
                shares = int(_one(entry, 3) or b"0")
                out.append(
                    Delegation(
                        delegator=_one(entry, 1).decode(),
                        validator=_one(entry, 2).decode(),
                        shares=Amount(numeric=shares, exp=DECIMALS),
                        balance=_coin(_one(parts, 2), 0),
                    )
                )
        return out

    async def _pages(
        self, path: str, account: str, height: int
    ) -> AsyncIterator[dict[int, list[bytes]]]:
        key = b""
        for _ in range(MAX_PAGES):
            page = (_chunk(1, key) if key else b"") + _number(3, PAGE)
            request = _chunk(1, account.encode()) + _chunk(2, page)
            found = _fields(await self._ask(path, request, height))
            yield found
            key = _one(_fields(_one(found, 2)), 1)
            if not key:
                return
        raise LeaseholdError(
            "too_much", f"{account} has more than {MAX_PAGES * PAGE} entries", kind=Kind.TOO_LARGE
        )

    async def _of_ledger(self, account: str, height: int) -> list[Amount]:
        response = await self._response("/accounts/get", account.encode(), 0)
        if height and height < response.height:
            raise LeaseholdError(
                "height_unavailable",
                f"the ledger knows its state at height {response.height}, not at {height}",
                kind=Kind.UNAVAILABLE,
                expected=response.height,
                got=height,
            )
        coins: dict[str, str] = msgspec.json.decode(response.value or b"{}").get("coins", {})
        out = []
        for denom, text in sorted(coins.items()):
            whole, _, part = text.partition(".")
            out.append(Amount(text + denom, denom, int(whole + part), len(part)))
        return out

    def _needs_staking(self) -> None:
        if self.network == LEDGER:
            raise LeaseholdError(
                "no_staking", "the embedded ledger has no staking", kind=Kind.UNSUPPORTED
            )

    async def _ask(self, path: str, request: bytes, height: int) -> bytes:
        return (await self._response(path, request, height)).value or b""

    async def _response(self, path: str, request: bytes, height: int) -> _Response:
        raw = await self.rpc.abci_query(path, request, height)
        try:
            response = _answer.decode(raw).response
        except msgspec.MsgspecError as error:
            raise _bad(path, str(error)) from None
        if response.code:
            raise LeaseholdError(
                "query_refused",
                f"{path}: {response.log or f'code {response.code}'}",
                kind=Kind.UNAVAILABLE,
                got=response.code,
            )
        return response


def _coin(data: bytes, exp: int) -> Amount:
    parts = _fields(data)
    denom, number = _one(parts, 1).decode(), _one(parts, 2).decode()
    if not number.isascii() or not number.isdigit():
        raise _bad("coin", f"{number!r} is no amount")
    return Amount("" if exp else number + denom, denom, int(number), exp)


# protobuf wire format


def _fields(data: bytes) -> dict[int, list[bytes]]:
    """Fields that are bytes, by number; what is no protobuf is a bad answer."""
    out: dict[int, list[bytes]] = {}
    try:
        for number, value in fields(data):
            if isinstance(value, bytes):
                out.setdefault(number, []).append(value)
    except ValueError as error:
        raise _bad("protobuf", str(error)) from None
    return out


def _one(found: dict[int, list[bytes]], number: int) -> bytes:
    return found.get(number, [b""])[-1]


def _chunk(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _bad(what: str, why: Any) -> LeaseholdError:
    return LeaseholdError(
        "rpc_bad_answer", f"bad answer to {what}: {why}", kind=Kind.UNAVAILABLE, got=what
    )

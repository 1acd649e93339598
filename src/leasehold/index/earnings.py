"""An account over time: what it had and what it earned by staking, a day at a time.

Days count from the asked start; the last one may be shorter. A day ends with the first block at or
after its end. What was earned in it is what could be withdrawn at its end, plus what was withdrawn
in its transactions, less what could be withdrawn before it; the first day begins before the block
at its start, so that this one's transactions count, too. All of it must be in the index: a gap is
an error, not a smaller number.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TypeVar

import msgspec

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.dispatch.manager import Manager
from leasehold.dispatch.task import Call, Retry
from leasehold.index.ranges import missing
from leasehold.index.rows import microseconds
from leasehold.index.search import MAX_LIMIT, Search, find
from leasehold.index.store import Store
from leasehold.model.chain import AccountBalance, Amount, HeightAccount, Reward

DAY = 24 * 3600 * 1_000_000
"""Microseconds."""

MAX_DAYS = 400
"""Days of one question."""

AT_ONCE = 8
"""Tasks under way for one question."""

REWARD_TYPES = frozenset(
    {"delegate", "withdraw_delegator_reward", "begin_unbonding", "begin_redelegate"}
)
"""What withdraws rewards, by itself or on the way."""

R = TypeVar("R", AccountBalance, Reward)


class BalanceOf(msgspec.Struct, frozen=True):
    """What an account had at ``height``, whose block is of ``time``."""

    height: int
    time: str
    balances: list[Amount]


class Earned(msgspec.Struct, frozen=True):
    """What an account earned from ``start`` to ``end``; ``time`` is that of the last block."""

    start: str
    end: str
    time: str
    rewards: list[Amount]


class Earnings:
    """Answers from the index in ``store`` and from workers' nodes."""

    def __init__(self, manager: Manager, store: Store) -> None:
        self.manager = manager
        self.store = store
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def balances(
        self, network: str, chain_id: str, account: str, start: str, end: str
    ) -> list[BalanceOf]:
        """At the end of each day."""
        heights = await self._heights(network, chain_id, days(start, end)[1:])
        found = await asyncio.gather(
            *(
                self._ask(network, chain_id, account, height, "GetAccountBalance", AccountBalance)
                for height, _ in heights
            )
        )
        return [
            BalanceOf(height, time, answer.balances)
            for (height, time), answer in zip(heights, found, strict=True)
        ]

    async def rewards(
        self, network: str, chain_id: str, account: str, start: str, end: str
    ) -> list[Earned]:
        """Of each day."""
        bounds = days(start, end)
        ends = await self._heights(network, chain_id, bounds)
        heights = [max(1, ends[0][0] - 1), *(height for height, _ in ends[1:])]
        covered = await self.store.coverage(network, chain_id)
        if gaps := missing(covered, heights[0], heights[-1]):
            raise _not_indexed(f"heights {gaps[0][0]} to {gaps[0][1]} are not")
        answers = await asyncio.gather(
            *(
                self._ask(network, chain_id, account, height, "GetReward", Reward)
                for height in heights
            )
        )
        out = []
        for day in range(len(bounds) - 1):
            first, last = heights[day], heights[day + 1]
            total = _sum(answers[day + 1].rewards)
            for amount in await self._withdrawn(network, chain_id, account, first, last):
                _add(total, amount)
            for amount in answers[day].rewards:
                _add(total, msgspec.structs.replace(amount, numeric=-amount.numeric))
            out.append(
                Earned(
                    _text(bounds[day]),
                    _text(bounds[day + 1]),
                    ends[day + 1][1],
                    [total[denom] for denom in sorted(total)],
                )
            )
        return out

    async def _heights(
        self, network: str, chain_id: str, times: list[int]
    ) -> list[tuple[int, str]]:
        """Height and time of the first block at or after each time."""
        covered = await self.store.coverage(network, chain_id)
        out = []
        for at in times:
            block = await self.store.block_at(network, chain_id, at)
            if block is None or missing(covered, max(1, block[0] - 1), block[0]):
                # With a gap before it, an earlier block may be the first.
                raise _not_indexed(f"the first block after {_text(at)} is not")
            out.append(block)
        return out

    async def _withdrawn(
        self, network: str, chain_id: str, account: str, after: int, last: int
    ) -> list[Amount]:
        """Rewards that came with the account's transactions above ``after``, up to ``last``."""
        out: list[Amount] = []
        offset = 0
        while True:
            found = await find(
                self.store,
                Search(
                    network=network,
                    chain_ids=[chain_id],
                    account=[account],
                    after_height=after,
                    before_height=last + 1,
                    limit=MAX_LIMIT,
                    offset=offset,
                ),
            )
            for transaction in found.transactions:
                if transaction.has_errors:
                    continue
                for event in transaction.events:
                    for sub in event.sub if event.kind in REWARD_TYPES else ():
                        for transfer in sub.transfers.get("reward", ()):
                            if transfer.account.id == account:
                                out.extend(transfer.amounts)
            if len(found.transactions) < MAX_LIMIT:
                return out
            offset += MAX_LIMIT

    async def _ask(
        self, network: str, chain_id: str, account: str, height: int, type_: str, answer: type[R]
    ) -> R:
        asked = HeightAccount(height=height, account=account, chain_id=chain_id, network=network)
        call = Call(
            network=network,
            chain_id=chain_id,
            type=type_,
            payload=msgspec.json.encode(asked),
            retry=Retry.IDEMPOTENT,
        )
        async with self._turns:
            responses = await self.manager.call(call)
        try:
            return msgspec.json.decode(responses[0].payload, type=answer)
        except (IndexError, msgspec.MsgspecError) as error:
            raise LeaseholdError(
                "unexpected_response",
                f"the worker's answer to {type_} cannot be read: {error}",
                kind=Kind.UNAVAILABLE,
            ) from None


def days(start: str, end: str) -> list[int]:
    """The bounds of days from ``start`` to ``end``, microseconds; LeaseholdError ``bad_time``."""
    first, last = microseconds(start), microseconds(end)
    if not first < last <= first + MAX_DAYS * DAY:
        raise LeaseholdError(
            "bad_time",
            f"end_time must be after start_time and at most {MAX_DAYS} days later",
            kind=Kind.MALFORMED,
            path="end_time",
            got=end,
        )
    return [*range(first, last, DAY), last]


def _sum(amounts: Iterable[Amount]) -> dict[str, Amount]:
    total: dict[str, Amount] = {}
    for amount in amounts:
        _add(total, amount)
    return total


def _add(total: dict[str, Amount], amount: Amount) -> None:
    known = total.get(amount.currency)
    bare = Amount("", amount.currency, amount.numeric, amount.exp)
    total[amount.currency] = known.add(bare) if known is not None else bare


def _text(at: int) -> str:
    return datetime.fromtimestamp(at / 1_000_000, UTC).isoformat().replace("+00:00", "Z")


def _not_indexed(what: str) -> LeaseholdError:
    return LeaseholdError(
        "not_indexed",
        f"{what} in the index; fetch the range first (/get_missing)",
        kind=Kind.UNAVAILABLE,
        retry_after=5.0,
    )

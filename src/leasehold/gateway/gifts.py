"""The operator of an embedded market gives coins to accounts, so that tenants can start."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import msgspec
from litestar import post
from litestar.handlers import BaseRouteHandler
from litestar.params import JSONBody

from leasehold.gateway.auth import operator

Give = Callable[[str, str], Awaitable[None]]
"""Mint ``amount`` base units to an address."""


class Gift(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    to: str
    amount: str


def routes(give: Give) -> Sequence[BaseRouteHandler]:
    """``give`` is the market's authority at work."""

    @post(
        "/v1/market/gifts",
        guards=[operator],
        status_code=200,
        tags=["operator"],
        operation_id="giveCoins",
        summary="Give coins to an account",
    )
    async def gift(data: JSONBody[Gift]) -> dict[str, str]:
        """Mint base units of the market's denomination to an account."""
        await give(data.to, data.amount)
        return {"to": data.to, "amount": data.amount}

    return [gift]

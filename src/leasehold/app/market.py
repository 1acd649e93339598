"""The market of a provider: its own embedded ledger, or that of another provider."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

from leasehold.app.folder import StateFolder
from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.core.logs import get_logger
from leasehold.core.retry import Backoff
from leasehold.events.log import Log
from leasehold.market.client import LedgerClient
from leasehold.market.ledger.service import LedgerService
from leasehold.market.settings import MarketSettings

PURSE = "10000000000"
"""Base units the operator of an embedded ledger starts with, for bid deposits and gifts."""

FIRST_LOOK = 3.0
"""Seconds a provider that starts waits for another's market to say its name."""

AGAIN = Backoff(first=1.0, cap=60.0)
"""Between tries to be entered into a market that does not answer or refuses."""

log = get_logger(__name__)


async def open_market(
    add: Callable[[LedgerService], Awaitable[LedgerService]],
    folder: StateFolder,
    settings: MarketSettings,
    events: Log,
    clock: Clock,
    operator: str,
) -> str:
    """The RPC of the market. An embedded one is started, with ``operator`` as its authority.

    Another's need not answer now: workloads do not wait for a market. When it answers with another
    name than ``settings.chain_id``, LeaseholdError ``wrong_market``.
    """
    if not settings.rpc:
        own = msgspec.structs.replace(settings, folder=str(folder / "ledger"))
        genesis = LedgerService.default_genesis(
            own, clock.now(), authority=operator, balances={operator: PURSE}
        )
        return (await add(LedgerService(events, clock, own, genesis=genesis))).url
    async with LedgerClient(settings.rpc, clock=clock, timeout=FIRST_LOOK) as client:
        try:
            name = (await client.status())["node_info"]["network"]
        except LeaseholdError as error:
            if error.kind is not Kind.UNAVAILABLE:
                raise
            log.warning("market.silent", rpc=settings.rpc)
            return settings.rpc
    if name != settings.chain_id:
        raise LeaseholdError(
            "wrong_market",
            f"the market at {settings.rpc} is called {name!r}",
            kind=Kind.CONFLICT,
            path="market.chain_id",
            expected=settings.chain_id,
            got=name,
        )
    return settings.rpc


async def enter(client: LedgerClient, url: str, settings: MarketSettings, clock: Clock) -> None:
    """Be found at ``url`` by tenants of another's market; tried until it is so."""
    tries = 0
    while True:
        try:
            await client.set_provider(url, settings.attributes)
        except LeaseholdError as error:
            tries += 1
            log.warning("market.not_entered", problem=error.message, rpc=settings.rpc)
            await clock.sleep(AGAIN.delay(tries))
        else:
            log.info("market.entered", rpc=settings.rpc, provider=client.address)
            return

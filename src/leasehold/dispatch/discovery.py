"""A worker announces itself: ``POST /client_ping`` to each manager, each in its own time.

The first announcement goes out at once, then one per interval with a little jitter. A manager
that is slow or away delays only its own announcements.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence

import httpx
import msgspec

from leasehold.core.clock import Clock
from leasehold.core.logs import get_logger
from leasehold.dispatch import metrics
from leasehold.dispatch.registry import ClientPing
from leasehold.dispatch.security import split_address

NO_ANSWER = "600"
"""The code of an announcement without an HTTP answer, as the original counted it."""

JITTER = 0.1
"""Announcements are spread by this part of the interval."""

log = get_logger(__name__)


def ping_url(manager: str) -> str:
    """``host:port`` or a URL to where announcements go."""
    if "://" not in manager:
        split_address(manager)
        manager = f"http://{manager}"
    return f"{manager.rstrip('/')}/client_ping"


Sign = Callable[[bytes], Mapping[str, str]]
"""Headers that prove to a manager who sends this body."""


class Announcer:
    """Run :meth:`run` for as long as the worker lives."""

    def __init__(
        self,
        managers: Sequence[str],
        ping: ClientPing,
        *,
        clock: Clock,
        interval: float,
        token: str = "",
        verify: str | bool = True,
        cert: tuple[str, str] | None = None,
        rng: random.Random | None = None,
        sign: Sign | None = None,
    ) -> None:
        self.managers = [ping_url(manager) for manager in managers]
        self.clock = clock
        self.interval = interval
        self._body = msgspec.json.encode(ping)
        self._token = token
        self._verify = verify
        self._cert = cert
        self._rng = rng or random.Random()
        self._sign = sign

    async def run(self) -> None:
        headers = {"content-type": "application/json"}
        if self._token:
            headers["authorization"] = f"Bearer {self._token}"
        async with (
            httpx.AsyncClient(
                timeout=self.interval, headers=headers, verify=self._verify, cert=self._cert
            ) as client,
            asyncio.TaskGroup() as group,
        ):
            for url in self.managers:
                group.create_task(self._announce(client, url), name=f"announce:{url}")

    async def _announce(self, client: httpx.AsyncClient, url: str) -> None:
        last = ""
        while True:
            code, error = await self._once(client, url)
            outcome = f"{code} {error}".strip()
            if outcome != last:
                level = log.info if code == "200" else log.warning
                level("manager.answered", url=url, code=code, error=error)
                last = outcome
            # A manager that does not answer may just be starting: ask again soon.
            wait = self.interval if code == "200" else min(1.0, self.interval)
            await self.clock.sleep(wait * (1 + self._rng.uniform(-JITTER, JITTER)))

    async def _once(self, client: httpx.AsyncClient, url: str) -> tuple[str, str]:
        began = self.clock.monotonic()
        try:
            proof = self._sign(self._body) if self._sign is not None else None
            answer = await client.post(url, content=self._body, headers=proof)
            code, error = str(answer.status_code), ""
            if answer.status_code > 399:
                error = answer.text[:200]
        except httpx.HTTPError as failure:
            code, error = NO_ANSWER, type(failure).__name__
        metrics.CHECKS_TIME.labels(url).observe(self.clock.monotonic() - began)
        metrics.CHECKS_STATUS.labels(url, code, "error" if error else "").inc()
        return code, error

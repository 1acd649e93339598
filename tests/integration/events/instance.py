"""A provider instance as far as its log goes: opens it as ``leasehold up`` does, then appends.

``python instance.py URL FOLDER TTL``: says ``ready`` when the log is its own, then one line an
append: the event's ``seq``, or the code of the refusal. Ends with the code that ended it.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from leasehold.app.event_log import open_log
from leasehold.app.folder import StateFolder
from leasehold.core import logs
from leasehold.core.clock import SystemClock
from leasehold.core.errors import LeaseholdError
from leasehold.core.service import S, Service, running
from leasehold.events.event import Entity, NewEvent
from leasehold.events.log import ANY
from leasehold.events.settings import EventsSettings


class Instance(Service):
    async def start(self) -> None:
        url, folder, ttl = sys.argv[1:]
        settings = EventsSettings(url=url, lease_ttl_s=float(ttl))
        self.log = await open_log(self._add, StateFolder(Path(folder)), settings, SystemClock())
        print("ready", flush=True)
        self.spawn(self._append(Path(folder).name))

    async def _add(self, service: S) -> S:
        await self.resources.enter_async_context(running(service))
        return service

    async def _append(self, name: str) -> None:
        n = 0
        while True:
            n += 1
            new = NewEvent(f"{name}-{n}", "beat", b"{}")
            try:
                (event,) = await self.log.append(Entity("thing", "one"), ANY, [new])
                print(event.seq, flush=True)
            except LeaseholdError as error:
                print(error.code, flush=True)
            await asyncio.sleep(0.02)


async def main() -> None:
    logs.configure("error")
    async with running(Instance("instance")) as instance:
        await instance.wait_stop_requested()


try:
    asyncio.run(main())
except LeaseholdError as error:
    print(error.code, flush=True)
    sys.exit(1)

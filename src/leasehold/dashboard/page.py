"""What every page is: sources that keep its data current, and a view of that data.

A source that fails is told on the page and tried again, later and later; the others go on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from leasehold.dashboard import parts
from leasehold.dashboard.tree import Node, h

if TYPE_CHECKING:
    from leasehold.dashboard.visit import Visit

SAMPLE = 2.0
"""Seconds between two looks at what has no events."""

Source = Callable[[], Awaitable[None]]


class Page:
    """One page in one tab. ``place`` are the named parts of its path."""

    title: ClassVar[str] = ""
    operator_only: ClassVar[bool] = False
    tenant_only: ClassVar[bool] = False

    def __init__(self, visit: Visit, place: Mapping[str, str], query: Mapping[str, str]) -> None:
        self.visit = visit
        self.api = visit.api
        self.place = place
        self.query = query
        self.trouble: dict[str, str] = {}
        self.known: set[str] = set()
        self.prepare()

    def prepare(self) -> None:
        """Set up the page's own state."""

    def heading(self) -> str:
        return self.title

    def sources(self) -> Mapping[str, Source]:
        """Coroutines by name; they run until the page is left."""
        return {}

    def view(self) -> list[Node | None]:
        """What is shown, from what is known."""
        return []

    # -- for sources ------------------------------------------------------------------------------

    def got(self, name: str) -> None:
        """The source ``name`` has brought something."""
        self.known.add(name)
        self.trouble.pop(name, None)
        self.visit.refresh()

    def has(self, name: str) -> bool:
        return name in self.known

    async def on_news(self, name: str, kinds: Collection[str], load: Source) -> None:
        """Load now, and again whenever entities of these kinds (none: any) have news."""
        async for line in self.news():
            if not line["kinds"] or not kinds or not line["kinds"].keys().isdisjoint(kinds):
                await load()
                self.got(name)

    async def news(self) -> AsyncIterator[dict[str, Any]]:
        """``{"seq", "kinds"}``; for a tenant only leases have news."""
        if self.api.is_operator:
            async for line in self.api.lines("/v1/events/news"):
                yield line
            return
        yield {"seq": 0, "kinds": {}}
        whole = False
        async for line in self.api.lines("/leases/tail"):
            if whole:
                yield {"seq": 0, "kinds": {"lease": 1}}
            whole = whole or not line

    async def every(self, name: str, load: Source, seconds: float = SAMPLE) -> None:
        """Load again and again: for counters, which have no events."""
        while True:
            await load()
            self.got(name)
            await self.visit.clock.sleep(seconds)

    # -- for views --------------------------------------------------------------------------------

    def waiting(self, name: str) -> Node:
        """In the place of what is not known yet."""
        if name in self.trouble:
            return parts.notice(self.trouble[name], parts.BAD, key=f"trouble-{name}")
        return h("p", "Loading …", class_="soft", key=f"waiting-{name}")

    def troubles(self) -> list[Node]:
        """What sources say that brought something before."""
        return [
            parts.notice(f"Not current: {why}", parts.WARN, key=f"trouble-{name}")
            for name, why in self.trouble.items()
            if name in self.known
        ]

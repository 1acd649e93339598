"""When a tab is drawn: at once what it was gone to for, seldom under a flood, never while away."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from leasehold.core.clock import VirtualClock
from leasehold.dashboard.visit import DRAW_EVERY, Visit


def test_a_page_is_drawn_as_it_comes_in_and_not_while_nobody_looks() -> None:
    clock = VirtualClock()

    async def go() -> None:
        anything: Any = SimpleNamespace()
        visit = Visit(anything, anything, anything, clock, lambda _: None, 0.0)
        drawn: list[float] = []
        visit._frame = list  # type: ignore[method-assign]
        visit._drawing = SimpleNamespace(show=lambda *_: drawn.append(clock.now()))  # type: ignore[assignment]
        drawing = asyncio.create_task(visit._draw())

        async def flood(seconds: float) -> int:
            before = len(drawn)
            until = clock.now() + seconds
            while clock.now() < until:
                visit.refresh()
                await clock.sleep(0.001)
            return len(drawn) - before

        began = clock.now()
        assert await flood(0.05) >= 3  # three sources that answer soon: each is seen at once
        assert drawn[0] - began <= 0.001
        await flood(1.0)
        assert await flood(10.0) <= 10.0 / DRAW_EVERY + 1
        visit.seen(False)
        assert await flood(10.0) == 0
        visit.seen(True)
        assert await flood(0.2) >= 1
        drawing.cancel()

    clock.run(go)

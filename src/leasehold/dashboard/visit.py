"""One open tab: who looks, at which page, and what is drawn.

A visit owns the tasks of its page's sources; leaving a page ends them. Whatever goes wrong in a
source, a view or an action ends there: it is told on the page and logged.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from nicegui import Client
from nicegui.element import Element

from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.core.logs import get_logger
from leasehold.dashboard import parts, text
from leasehold.dashboard.api import Api
from leasehold.dashboard.page import Page, Source
from leasehold.dashboard.pages import find, menu
from leasehold.dashboard.tree import Drawing, Handler, Node, h

FIRST_DRAW, DRAW_EVERY = 0.01, 0.1
"""Seconds between two drawings of a tab, at least: growing from one to the other, so that what a
page is gone to for is drawn as it comes in, and a flood of news is not."""

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 15.0
"""Seconds before a source that failed is tried again, growing from one to the other."""

SIGNED_OUT = ("unauthorized", "token_expired", "token_signature")
"""Refusals that mean the credential is no good any more, and not that it permits too little."""

TOAST = 8.0
"""Seconds what an action said stays."""

log = get_logger(__name__)


class Visit:
    """``leave(reason)`` signs the visitor out, which happens at ``until`` (seconds UTC) anyhow."""

    def __init__(
        self,
        client: Client,
        root: Element,
        api: Api,
        clock: Clock,
        leave: Callable[[str], None],
        until: float,
    ) -> None:
        self.client = client
        self.api = api
        self.clock = clock
        self.leave = leave
        self.until = until
        self.page: Page
        self.path = "/"
        self.said = ("", "")
        self._drawing = Drawing(root, self.act)
        self._dirty = asyncio.Event()
        self._gone = asyncio.Event()
        self._seen = asyncio.Event()
        self._seen.set()
        self._pause = FIRST_DRAW
        self._tasks: asyncio.TaskGroup | None = None
        self._sources: set[asyncio.Task[None]] = set()

    async def run(self, path: str) -> None:
        """Show ``path`` and whatever is gone to, until the tab is closed."""
        try:
            async with asyncio.TaskGroup() as self._tasks:
                own = [self._tasks.create_task(work) for work in (self._draw(), self._expire())]
                self.go(path, shown=True)
                await self._gone.wait()
                for task in own:
                    task.cancel()
                for task in tuple(self._sources):
                    task.cancel()
        finally:
            await self.api.close()

    def seen(self, watched: bool) -> None:
        """Whether a browser is connected to the tab just now."""
        if watched:
            self._seen.set()
        else:
            self._seen.clear()

    async def _expire(self) -> None:
        await self.clock.sleep(max(0.0, self.until - self.clock.now()))
        self.leave("Your session is over. Please sign in again.")

    def end(self) -> None:
        """The tab was closed."""
        self._gone.set()

    # -- places -----------------------------------------------------------------------------------

    def go(self, target: str, *, shown: bool = False) -> None:
        """Show the page at a path; ``shown`` when the browser has it in its bar already."""
        split = urlsplit(target)
        self.path = split.path
        self._pause = FIRST_DRAW
        for task in tuple(self._sources):
            task.cancel()
        kind, place = find(split.path, operator=self.api.is_operator)
        self.page = kind(self, place, dict(parse_qsl(split.query)))
        assert self._tasks is not None
        for name, source in self.page.sources().items():
            task = self._tasks.create_task(self._keep(self.page, name, source))
            self._sources.add(task)
            task.add_done_callback(self._sources.discard)
        title = json.dumps(f"{self.page.heading()} · Leasehold")
        move = "" if shown else f"history.pushState(null, '', {json.dumps(target)});"
        self.script(f"{move} leasehold.arrived({title}, {json.dumps(not shown)});")
        self.refresh()

    def script(self, code: str) -> None:
        """Run code in the tab; its values must be JSON."""
        self.client.run_javascript(code)

    # -- sources ----------------------------------------------------------------------------------

    async def _keep(self, page: Page, name: str, source: Source) -> None:
        pause = FIRST_PAUSE
        while True:
            began = self.clock.monotonic()
            try:
                await source()
                return
            except LeaseholdError as error:
                if error.kind is Kind.UNAUTHENTICATED and error.code in SIGNED_OUT:
                    self.leave("Please sign in again.")
                    return
                page.trouble[name] = error.message
                final = error.kind not in (Kind.UNAVAILABLE, Kind.TIMEOUT, Kind.NOT_FOUND)
            except Exception as error:
                log.exception("dashboard.source", page=page.title, source=name, error=repr(error))
                page.trouble[name] = f"this part failed ({type(error).__name__}); it was logged"
                final = False
            self.refresh()
            if final:
                return
            if self.clock.monotonic() - began > LONGEST_PAUSE:
                pause = FIRST_PAUSE
            await self.clock.sleep(pause)
            pause = min(LONGEST_PAUSE, pause * 2)

    # -- actions ----------------------------------------------------------------------------------

    async def act(self, handler: Handler, value: Any) -> None:
        """Run what a control does; its failure is said, not raised."""
        try:
            outcome = handler(value)
            if inspect.isawaitable(outcome):
                await outcome
        except LeaseholdError as error:
            self.say(error.message, parts.BAD)
        except Exception as error:
            log.exception("dashboard.action", page=self.page.title, error=repr(error))
            self.say(f"that failed ({type(error).__name__}); it was logged", parts.BAD)
        self.refresh()

    def say(self, message: str, tone: str = parts.GOOD) -> None:
        """Tell what became of an action, aloud to screen readers too."""
        self.said = (message, tone)
        self.refresh()
        if self._tasks is not None:
            self._sources.add(task := self._tasks.create_task(self._unsay(self.said)))
            task.add_done_callback(self._sources.discard)

    async def _unsay(self, said: tuple[str, str]) -> None:
        await self.clock.sleep(TOAST)
        if self.said is said:
            self.said = ("", "")
            self.refresh()

    # -- drawing ----------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Something changed."""
        self._dirty.set()

    async def _draw(self) -> None:
        while True:
            await self._dirty.wait()
            await self._seen.wait()  # a tab that was left is not drawn until it is back
            self._dirty.clear()
            try:
                self._drawing.show(*self._frame())
            except Exception as error:
                log.exception("dashboard.view", page=self.page.title, error=repr(error))
                self._drawing.show(
                    parts.notice(
                        f"This page failed ({type(error).__name__}); it was logged. "
                        "Nothing else is affected.",
                        parts.BAD,
                        role="alert",
                    )
                )
            await self.clock.sleep(self._pause)
            self._pause = min(DRAW_EVERY, self._pause * 2)

    def _frame(self) -> list[Node]:
        who = "operator" if self.api.is_operator else text.address(self.api.owner)
        nav = [
            h("a", title, href=path, key=path,
              aria_current="page" if _within(self.path, path) else None)
            for path, title in menu(operator=self.api.is_operator)
        ]  # fmt: skip
        message, tone = self.said
        page = self.page
        return [
            h(
                "header",
                h("a", "Skip to content", href="#main", class_="skip"),
                h("a", h("span", "◧", aria_hidden="true", class_="logo"), "Leasehold", href="/",
                  class_="brand", aria_label="Leasehold, overview"),
                h("div",
                  h("span", who, class_="who", title=self.api.owner or "the operator's token"),
                  parts.button("Theme", lambda: self.script("leasehold.theme()"), kind="quiet",
                               aria_label="Theme: change between light and dark"),
                  parts.button("Sign out", lambda: self.leave(""), kind="quiet"),
                  class_="account"),
                key="header", class_="top",
            ),
            h("nav", nav, key="nav", aria_label="Pages", class_="pages"),
            h(
                "main",
                h("h1", page.heading(), tabindex="-1", id="main"),
                page.troubles(),
                page.view(),
                key=f"main-{id(page)}",
            ),
            h("div", parts.notice(message, tone) if message else None, key="said", class_="said",
              role="status", aria_live="polite"),
        ]  # fmt: skip


def _within(path: str, entry: str) -> bool:
    return path == entry or (entry != "/" and path.startswith(f"{entry}/"))

"""The output of a lease: the newest lines as they come, and a search over all of them.

A page holds some hundreds of lines however long the log is; the search runs where the files are.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.dashboard import parts, text
from leasehold.dashboard.tree import Node, h

if TYPE_CHECKING:
    from leasehold.dashboard.pages.lease import Lease

LONGEST = 4000
"""Characters of a line that are drawn."""

HELD = 300
"""Lines held and drawn."""


class Output:
    """The logs tab."""

    def __init__(self, page: Lease) -> None:
        self.page = page
        self.lines: deque[tuple[int, dict[str, Any]]] = deque(maxlen=HELD)
        self.found: list[dict[str, Any]] | None = None
        self.sought = ""
        self.paused = False
        self.behind = 0
        self._count = 0

    async def follow(self) -> None:
        """Lines as they come, until the lease ends."""
        api, self._count = self.page.api, 0
        self.lines.clear()
        path = api.lease_path(self.page.lease, "output")
        try:
            async for line in api.lines(path, follow="true", tail=HELD):
                self._count += 1
                if self.paused:
                    self.behind += 1
                    continue
                self.lines.append((self._count, line))
                self.page.got("output")
        except LeaseholdError as error:
            if error.kind is not Kind.NOT_FOUND or self.page.story["state"] != "closed":
                raise
        self.page.got("output")

    async def search(self, fields: dict[str, Any]) -> None:
        self.sought = str(fields.get("sought", "")).strip()
        if not self.sought:
            self.found = None
            return
        api = self.page.api
        path = api.lease_path(self.page.lease, "output")
        self.found = [x async for x in api.lines(path, search=self.sought, tail=HELD)]

    def pause(self) -> None:
        self.paused, self.behind = not self.paused, 0

    def everything(self) -> None:
        self.found, self.sought = None, ""

    def view(self) -> list[Node | None]:
        if self.found is not None:
            said = f"{len(self.found)} lines contain “{self.sought}”"
            if len(self.found) == HELD:
                said = f"the newest {said}"
            shown = [(f"f{at}", line) for at, line in enumerate(self.found)]
        else:
            said = f"newest {len(self.lines)} lines, live"
            if self.paused:
                said = f"paused; {self.behind} lines came since"
            shown = [(f"l{at}", line) for at, line in self.lines]
        return [
            h(
                "form",
                parts.field("Search all lines", name="sought", kind="search",
                            placeholder="upper and lower case alike"),
                h("button", "Search", type="submit", class_="button"),
                parts.button("Back to live", self.everything) if self.found is not None
                else parts.button("Go on" if self.paused else "Pause", self.pause),
                on={"submit": self.search}, class_="filters", role="search",
            ),
            h("p", said, class_="soft", aria_live="polite"),
            h("div", [self._line(key, line) for key, line in shown], class_="log", tabindex="0",
              role="log", aria_label="Output")
            if shown else self._nothing(),
        ]  # fmt: skip

    def _line(self, key: str, line: dict[str, Any]) -> Node:
        # One element a line: when and who are drawn from its attributes.
        return h(
            "div",
            _fit(line["message"]),
            key=key,
            class_="log-line",
            data_at=text.precise(line["at"]),
            data_name=line["name"],
        )

    def _nothing(self) -> Node:
        if self.found is not None:
            return parts.empty("No line contains it.")
        if not self.page.has("output") and "output" in self.page.trouble:
            return parts.empty("There is no output yet.", self.page.trouble["output"])
        return parts.empty("Nothing was written yet.",
                           "What the workload writes to standard output appears here.")  # fmt: skip


def _fit(message: str) -> str:
    if len(message) <= LONGEST:
        return message or " "
    return f"{message[:LONGEST]} … and {len(message) - LONGEST} characters more"

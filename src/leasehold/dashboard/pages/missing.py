"""There is nothing at this path, or nothing for this visitor."""

from __future__ import annotations

from leasehold.dashboard import parts
from leasehold.dashboard.page import Page
from leasehold.dashboard.tree import Node


class Missing(Page):
    title = "Not found"

    def view(self) -> list[Node | None]:
        return [
            parts.empty(
                "There is no such page, or your credential does not open it.",
                parts.link("Back to the overview", "/"),
            )
        ]

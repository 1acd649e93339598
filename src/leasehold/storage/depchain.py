"""Who may touch a repo next: a chain of activities in the order they were begun.

Of two activities of one repo the later may look (fold histories) while the earlier still works,
but has its first effect only after the earlier one's last. The chain exists in memory: after a
restart nothing runs, so nothing has to be waited for.
"""

from __future__ import annotations

import asyncio

from leasehold.observe.activity import Context


class Link:
    """One activity's place in the chain of its repo."""

    def __init__(self, dep: asyncio.Event | None) -> None:
        self.dep = dep
        self.done = asyncio.Event()

    async def wait(self, context: Context) -> None:
        """Wait, without a slot, until whoever was before has quit; after that it is free."""
        if self.dep is not None:
            if not self.dep.is_set():
                async with context.outside():
                    await self.dep.wait()
            self.dep = None

    def quit(self) -> None:
        """Let the next one act. Only legal once it was this one's turn."""
        if self.dep is not None:
            raise RuntimeError("quit before the activities that came first have quit")
        self.done.set()


class DepChainMap:
    """Per repo, the end of its chain; used by the registry activity alone."""

    def __init__(self) -> None:
        self._last: dict[str, asyncio.Event] = {}

    def next(self, repo: str) -> Link:
        """A new place at the end of the chain of ``repo``."""
        link = Link(self._last.get(repo))
        self._last[repo] = link.done
        return link

    def gc(self) -> int:
        """Forget chains whose end has quit; returns how many."""
        over = [repo for repo, done in self._last.items() if done.is_set()]
        for repo in over:
            del self._last[repo]
        return len(over)

    def __len__(self) -> int:
        return len(self._last)

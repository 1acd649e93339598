"""How many bytes strangers may make us hold: one purse for the process, a share a connection.

A byte is charged when it arrives and given back when it is read or dropped. A share that is used
up costs the stream that overran it, never another peer; the common purse is only the last line,
and it is sized so that a few greedy connections cannot empty it.
"""

from __future__ import annotations


class Budget:
    """The purse: at most ``total`` bytes held, at most ``per_share`` by one connection."""

    __slots__ = ("per_share", "total", "used")

    def __init__(self, total: int, per_share: int) -> None:
        self.total = total
        self.per_share = per_share
        self.used = 0

    def share(self) -> Share:
        return Share(self)


class Share:
    """One connection's part of a :class:`Budget`."""

    __slots__ = ("_budget", "used")

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self.used = 0

    def take(self, size: int) -> bool:
        """Charge ``size`` bytes; False, and nothing charged, when there is no room."""
        budget = self._budget
        if self.used + size > budget.per_share or budget.used + size > budget.total:
            return False
        self.used += size
        budget.used += size
        return True

    def give(self, size: int) -> None:
        self.used -= size
        self._budget.used -= size

"""Our live leases in memory, and until when each waits for its manifest."""

from __future__ import annotations

from collections.abc import Iterator

from leasehold.core import metrics
from leasehold.model.market import DeploymentId, GroupId, LeaseId

WATCHDOGS = metrics.gauge("provider_order_watchdog", "won leases that wait for their manifest")


class LiveLeases:
    """Every question is answered without going through all of them, but for the next deadline."""

    def __init__(self) -> None:
        self._deadlines: dict[LeaseId, float | None] = {}
        self._of_group: dict[GroupId, set[LeaseId]] = {}
        self._of_deployment: dict[DeploymentId, int] = {}
        self._waiting = 0

    def __contains__(self, lease: LeaseId) -> bool:
        return lease in self._deadlines

    def __iter__(self) -> Iterator[LeaseId]:
        return iter(list(self._deadlines))

    def put(self, lease: LeaseId, deadline: float | None) -> None:
        """``lease`` is live; ``deadline`` (seconds UTC) while it waits for its manifest."""
        if lease in self._deadlines:
            self._waiting -= self._deadlines[lease] is not None
        else:
            self._of_group.setdefault(lease.group, set()).add(lease)
            deployment = lease.deployment
            self._of_deployment[deployment] = self._of_deployment.get(deployment, 0) + 1
        self._deadlines[lease] = deadline
        self._waiting += deadline is not None
        WATCHDOGS.set(self._waiting)

    def drop(self, lease: LeaseId) -> None:
        """``lease`` is over; harmless when it is not known."""
        if lease not in self._deadlines:
            return
        self._waiting -= self._deadlines.pop(lease) is not None
        group = self._of_group[lease.group]
        group.discard(lease)
        if not group:
            del self._of_group[lease.group]
        deployment = lease.deployment
        self._of_deployment[deployment] -= 1
        if not self._of_deployment[deployment]:
            del self._of_deployment[deployment]
        WATCHDOGS.set(self._waiting)

    def of_group(self, group: GroupId) -> LeaseId | None:
        """The newest live lease of a group."""
        return max(self._of_group.get(group, ()), default=None)

    def has_deployment(self, deployment: DeploymentId) -> bool:
        return deployment in self._of_deployment

    @property
    def deployments(self) -> int:
        """Deployments with a live lease."""
        return len(self._of_deployment)

    @property
    def waiting(self) -> int:
        """Leases that wait for their manifest."""
        return self._waiting

    def next_deadline(self) -> float | None:
        return min((at for at in self._deadlines.values() if at is not None), default=None)

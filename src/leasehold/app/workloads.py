"""The deploy system as the gateway sees it: status, logs and commands in workloads."""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator, Sequence
from typing import Any

from leasehold.core.errors import LeaseholdError, not_found
from leasehold.deploy.leases import Deployments
from leasehold.gateway.ports import Exec, LogLine
from leasehold.model.market import LeaseId


class DeployedWorkloads:
    """``status``, ``logs`` and ``exec`` of a deploy system."""

    def __init__(self, deploy: Deployments) -> None:
        self.deploy = deploy

    async def status(self, lease: LeaseId) -> dict[str, Any]:
        """In the originals' shape, with what we know besides."""
        found = await self.deploy.status(lease)
        services = {}
        for name, service in found["services"].items():
            available = service["available"]
            services[name] = service | {
                "uris": found["uris"],
                "observed_generation": 1,
                "replicas": service["total"],
                "updated_replicas": available,
                "ready_replicas": available,
                "available_replicas": available,
                "running": service["replicas"],
            }
        return found | {"services": services, "ips": found.get("ips", {})}

    async def logs(
        self, lease: LeaseId, services: Sequence[str], *, follow: bool, tail: int
    ) -> AsyncIterator[LogLine]:
        wanted = set(services)
        only = services[0] if len(services) == 1 else None
        lines = self.deploy.logs(lease, only, follow=follow, tail=None if tail < 0 else tail)
        async for line in lines:
            if wanted and line.service not in wanted:
                continue
            yield LogLine(line.service, f"{line.service}-{line.replica}", line.text, _at(line.at))

    async def search(
        self, lease: LeaseId, services: Sequence[str], text: str, limit: int
    ) -> list[LogLine]:
        found = []
        for service in services or (None,):
            found += await self.deploy.search_logs(lease, service, text, limit)
        found.sort(key=lambda line: line.at)
        return [
            LogLine(line.service, f"{line.service}-{line.replica}", line.text, _at(line.at))
            for line in found[-limit:]
        ]

    async def exec(
        self,
        lease: LeaseId,
        service: str,
        command: Sequence[str],
        *,
        replica: int,
        tty: bool,
        stdin: bool,
    ) -> Exec:
        run: Any = getattr(self.deploy, "exec", None)
        if run is None:
            raise not_found("command runner", service)
        session: Exec = await run(
            lease, service, list(command), replica=replica, tty=tty, stdin=stdin
        )
        return session


def _at(text: str) -> float:
    try:
        return datetime.datetime.fromisoformat(text).timestamp()
    except ValueError as error:
        raise LeaseholdError("bad_log_line", f"a log line has the time {text!r}") from error

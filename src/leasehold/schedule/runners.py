"""What a task does when it is due: one call that moves its state on.

``lastdata`` follows the head of a chain; ``syncrange`` works through a range and is then done. Both
keep the old state when something failed, so that no height is passed that was not stored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import msgspec

from leasehold.core.errors import Kind, LeaseholdError, unavailable
from leasehold.model.chain import LatestData
from leasehold.schedule.rpc import RpcClient
from leasehold.schedule.settings import ScheduleSettings
from leasehold.schedule.store import ScheduledTask, heights_of
from leasehold.schedule.targets import Destination, Targets, base_url

METHODS = {"lastdata": "last_data", "syncrange": "sync_range"}
ENDPOINTS = {"lastdata": "/scrape_latest", "syncrange": "/sync_range"}

STILL_PROCESSING = 102
"""The HTTP status of a manager that is at it already."""


class Outcome(msgspec.Struct, frozen=True):
    """The new state; ``error`` when it did not move on as it should; ``done``: never again."""

    state: LatestData
    error: str = ""
    done: bool = False
    backoff: bool = False


class Runners:
    """Calls targets for tasks."""

    def __init__(
        self,
        settings: ScheduleSettings,
        targets: Targets,
        *,
        client: httpx.AsyncClient,
        rpc: Callable[[str], RpcClient],
    ) -> None:
        self.settings = settings
        self.targets = targets
        self._client = client
        self._rpc = rpc

    async def run(self, task: ScheduledTask) -> Outcome:
        """One call. Failures are outcomes; only cancellation is raised."""
        state = msgspec.structs.replace(
            task.state,
            network=task.network,
            chain_id=task.chain_id,
            version=task.version,
            task_id=task.task_id,
            error=b"",
            processing=False,
        )
        extra: dict[str, Any] = {}
        if task.kind == "syncrange":
            first, last = heights_of(task.config)
            state.last_height = max(state.last_height, first - 1)
            extra["final_height"] = last
            if state.last_height >= last:
                return Outcome(state, done=True)
        destination = self.targets.next((task.network, task.chain_id, task.version))
        if destination is None:
            # Nobody to ask is no failure of the task: it is asked again at its usual time.
            return Outcome(state, error="no target serves this network, chain and version")
        try:
            answer = await self._call(task.kind, destination, state, extra)
        except LeaseholdError as error:
            state.retry_count += 1
            return Outcome(state, error=error.message, backoff=True)
        return _judge(task, state, answer)

    async def _call(
        self, kind: str, destination: Destination, state: LatestData, extra: dict[str, Any]
    ) -> LatestData:
        body = {**msgspec.to_builtins(state), **extra}
        if destination.conn_type == "ws":
            result = await self._rpc(destination.address).call(
                METHODS[kind], body, timeout=self.settings.ws_timeout
            )
            return _latest(result)
        endpoint = destination.additional.get(kind, {}).get("endpoint", ENDPOINTS[kind])
        try:
            answer = await self._client.post(
                base_url(destination.address) + endpoint,
                json=body,
                timeout=self.settings.http_timeout,
            )
        except httpx.HTTPError as error:
            raise unavailable(
                "target_unreachable",
                f"{destination.address}: {str(error) or type(error).__name__}",
            ) from None
        if answer.status_code == STILL_PROCESSING:
            return msgspec.structs.replace(state, processing=True)
        if answer.status_code != 200:
            raise unavailable(
                "target_failed", f"{destination.address}: {answer.status_code} {answer.text[:200]}"
            )
        try:
            return _latest(msgspec.json.decode(answer.content))
        except msgspec.DecodeError as error:
            raise unavailable("target_failed", f"{destination.address}: {error}") from None


def _judge(task: ScheduledTask, state: LatestData, answer: LatestData) -> Outcome:
    if answer.processing:
        state.retry_count += 1
        return Outcome(state, backoff=True)
    error = answer.error.decode(errors="replace")
    moved = answer.last_height > state.last_height or (
        answer.last_height == 0 and bool(answer.last_time)
    )
    if moved:
        state.last_height = answer.last_height
        state.last_hash = answer.last_hash
        state.last_epoch = answer.last_epoch
        state.last_time = answer.last_time
    state.nonce = answer.nonce or state.nonce
    if error:
        state.retry_count += 1
        return Outcome(state, error=error, backoff=True)
    state.retry_count = 0
    done = task.kind == "syncrange" and state.last_height >= heights_of(task.config)[1]
    return Outcome(state, done=done)


def _latest(result: Any) -> LatestData:
    try:
        return msgspec.convert(result or {}, LatestData)
    except msgspec.ValidationError as error:
        raise LeaseholdError(
            "target_failed", f"an answer of another shape: {error}", kind=Kind.UNAVAILABLE
        ) from None

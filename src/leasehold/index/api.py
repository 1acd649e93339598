"""The REST API of an index: the original's paths, with methods checked and bodies validated.

Each answer says in the header ``leasehold-covered`` which heights it could look at, as
``chain:first-last,first-last``. It is mounted in the manager's HTTP server, behind its own routes.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
from litestar import Litestar, MediaType, Request, Response, get, post
from litestar.exceptions import HTTPException
from litestar.openapi import OpenAPIConfig
from litestar.params import Parameter
from msgspec import Meta

from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError, not_found
from leasehold.index.earnings import BalanceOf, Earned
from leasehold.index.operations import (
    Inserted,
    LatestQuestion,
    Missing,
    Operations,
    SyncRange,
    check_range,
)
from leasehold.index.ranges import Range, clipped
from leasehold.index.search import Search
from leasehold.index.sync import Synced, incomplete
from leasehold.model.chain import LatestData, Transaction

COVERED = "leasehold-covered"

MAX_RUNS = 100
"""Background fetches remembered; the oldest finished one is forgotten first."""

MAX_SYNCHRONOUS = 10_000
"""Heights that ``/transactions`` returns at most."""

MAX_INSERT = 16 << 20
"""Bytes of the body of ``/transactions_insert``."""

SEARCH_TIMEOUT = 60.0
"""Seconds a search may take."""

FETCH_TIMEOUT = 300.0
"""Seconds ``/transactions`` and a synchronous ``/get_missing`` may take."""

Network = Annotated[str, Parameter(min_length=1, max_length=128)]
Time = Annotated[str, Parameter(min_length=1, max_length=64, description="RFC 3339")]
HeightParameter = Annotated[int, Parameter(ge=1, le=1 << 62)]


@dataclass
class Run:
    """A fetch that goes on behind the answer."""

    id: str
    network: str
    chain_id: str
    first: int
    last: int
    started: str
    task: asyncio.Task[Synced] | None = None
    result: Synced | None = None
    error: str = ""
    finished: str = ""

    def show(self, *, simplified: bool = False) -> dict[str, Any]:
        out: dict[str, Any] = {
            "id": self.id,
            "nv": {"network": self.network, "chain_id": self.chain_id, "version": "0.0.1"},
            "height_range": {"StartHeight": self.first, "EndHeight": self.last},
            "success": self.result is not None and not self.result.missing,
            "finished": bool(self.finished),
            "started_time": self.started,
            "finished_time": self.finished or None,
            "error": self.error,
        }
        if self.result is not None and not simplified:
            out["progress"] = msgspec.to_builtins(self.result)
        return out


@dataclass
class Runs:
    """Background fetches, by id; ends with the manager that owns ``group``."""

    operations: Operations
    clock: Clock
    runs: OrderedDict[str, Run] = field(default_factory=OrderedDict)

    def start(self, network: str, chain_id: str, first: int, last: int, *, overwrite: bool) -> Run:
        """Fetch in the background; a run for the same heights that still goes on is joined."""
        check_range(first, last)
        for run in self.runs.values():
            same = (run.network, run.chain_id) == (network, chain_id)
            if same and not run.finished and run.first <= first and last <= run.last:
                return run
        self._make_room()
        run = Run(str(uuid.uuid4()), network, chain_id, first, last, _now(self.clock))
        self.runs[run.id] = run
        run.task = self.operations.manager.spawn(self._work(run, overwrite), name="fetch")
        return run

    async def _work(self, run: Run, overwrite: bool) -> Synced:
        result = Synced(run.first, run.last)
        try:
            result = run.result = await self.operations.range(
                run.network, run.chain_id, run.first, run.last, overwrite=overwrite
            )
            run.error = "; ".join(result.errors)
        except LeaseholdError as error:
            run.error = error.message
        except asyncio.CancelledError:
            run.error = "stopped"
        finally:
            run.finished = _now(self.clock)
        return result

    def stop(self, network: str, chain_id: str, *, clean: bool) -> int:
        """Stop the runs of a chain; with ``clean`` also forget them. Returns how many."""
        mine = [r for r in self.runs.values() if (r.network, r.chain_id) == (network, chain_id)]
        for run in mine:
            if run.task is not None:
                run.task.cancel()
            if clean:
                del self.runs[run.id]
        return len(mine)

    def _make_room(self) -> None:
        for id_, run in list(self.runs.items()):
            if len(self.runs) < MAX_RUNS:
                return
            if run.finished:
                del self.runs[id_]
        if len(self.runs) >= MAX_RUNS:
            raise LeaseholdError(
                "too_many_runs",
                f"{MAX_RUNS} fetches are under way; wait or stop some",
                kind=Kind.RATE_LIMITED,
                retry_after=10.0,
            )


def application(operations: Operations, clock: Clock | None = None) -> Litestar:
    """The ASGI application to mount in a manager: ``manager.mount(application(operations))``."""
    runs = Runs(operations, clock or operations.clock)

    async def covered(network: str, chain_id: str, first: int, last: int) -> dict[str, str]:
        ranges = clipped(await operations.store.coverage(network, chain_id), first, last)
        return {COVERED: _header({chain_id: ranges})}

    @post("/transactions_search", status_code=200)
    async def transactions_search(data: Search) -> Response[list[Transaction]]:
        """Transactions that fulfil every condition, newest first."""
        async with asyncio.timeout(SEARCH_TIMEOUT):
            found = await operations.search(data)
        return Response(found.transactions, headers={COVERED: _header(found.covered)})

    @get("/transactions")
    async def transactions(
        network: Network, chain_id: Network, start_height: HeightParameter,
        end_height: HeightParameter | None = None,
    ) -> Response[list[Transaction]]:  # fmt: skip
        """Transactions of a range of heights, fetched where they are not stored yet."""
        last = end_height or start_height
        check_range(start_height, last)
        if last - start_height >= MAX_SYNCHRONOUS:
            raise LeaseholdError(
                "range_too_long",
                f"at most {MAX_SYNCHRONOUS} heights; use /get_missing and search",
                kind=Kind.MALFORMED,
                path="end_height",
            )
        async with asyncio.timeout(FETCH_TIMEOUT):
            result = await operations.range(network, chain_id, start_height, last)
            if result.missing:
                raise incomplete(result)
            blocks = operations.store.blocks(network, chain_id, start_height, last)
            out = [tx async for block in blocks for tx in block.transactions]
        return Response(out, headers=await covered(network, chain_id, start_height, last))

    @post("/scrape_latest", status_code=200)
    async def scrape_latest(data: LatestQuestion) -> LatestData:
        """Catch up with the head of the chain."""
        return await operations.last_data(data.plain())

    @post("/sync_range", status_code=200)
    async def sync_range(data: SyncRange) -> LatestData:
        """The next part of a range."""
        return await operations.sync_range(data)

    @get("/check_missing")
    async def check_missing(
        network: Network, chain_id: Network, start_height: HeightParameter,
        end_height: HeightParameter,
    ) -> Response[Missing]:  # fmt: skip
        """What is not stored of a range."""
        found = await operations.missing(network, chain_id, start_height, end_height)
        return Response(found, headers=await covered(network, chain_id, start_height, end_height))

    @get("/get_missing")
    async def get_missing(
        network: Network, chain_id: Network, start_height: HeightParameter,
        end_height: HeightParameter, run_async: Annotated[bool, Parameter(query="async")] = False,
        overwrite_all: bool = False, simplified: bool = False,
    ) -> Response[dict[str, Any]]:  # fmt: skip
        """Fetch what is not stored of a range, now or in the background."""
        run = runs.start(network, chain_id, start_height, end_height, overwrite=overwrite_all)
        if not run_async and run.task is not None:
            async with asyncio.timeout(FETCH_TIMEOUT):
                await asyncio.wait({run.task})
            if run.result is None or run.result.missing:
                raise incomplete(run.result, run.error)
        return Response(
            run.show(simplified=simplified),
            headers=await covered(network, chain_id, start_height, end_height),
        )

    @post("/transactions_insert/{network:str}", status_code=200, request_max_body_size=MAX_INSERT)
    async def transactions_insert(
        network: Network, data: Annotated[list[Transaction], Meta(max_length=MAX_SYNCHRONOUS)]
    ) -> Inserted:
        """See to it that these transactions are stored, with all of their heights."""
        async with asyncio.timeout(FETCH_TIMEOUT):
            return await operations.insert(network, data)

    @get("/rewards")
    async def rewards(
        network: Network, chain_id: Network, account: Network, start_time: Time, end_time: Time
    ) -> list[Earned]:
        """Staking rewards of an account, a day at a time."""
        async with asyncio.timeout(FETCH_TIMEOUT):
            return await operations.rewards(network, chain_id, account, start_time, end_time)

    @get("/account/balance")
    async def account_balance(
        network: Network, chain_id: Network, account: Network, start_time: Time, end_time: Time
    ) -> list[BalanceOf]:
        """What an account had, at the end of each day."""
        async with asyncio.timeout(FETCH_TIMEOUT):
            return await operations.balances(network, chain_id, account, start_time, end_time)

    @get("/get_running")
    async def get_running() -> list[dict[str, Any]]:
        """Fetches that go on or ended not long ago."""
        return [run.show() for run in runs.runs.values()]

    @post("/stop_running", status_code=200)
    async def stop_running(
        network: Network, chain_id: Network, clean: bool = False
    ) -> dict[str, int]:
        """Stop all fetches of a chain."""
        return {"stopped": runs.stop(network, chain_id, clean=clean)}

    @get("/index/status")
    async def index_status() -> list[dict[str, Any]]:
        """What is stored of each chain."""
        return await operations.status()

    return Litestar(
        [
            transactions_search, transactions, scrape_latest, sync_range, check_missing,
            get_missing, get_running, stop_running, index_status, transactions_insert, rewards,
            account_balance,
        ],
        exception_handlers={
            LeaseholdError: _failed,
            HTTPException: _http_failed,
            TimeoutError: _timed_out,
        },
        openapi_config=OpenAPIConfig(title="Leasehold index", version="1"),
        logging_config=None,  # the process has its own
        request_max_body_size=1 << 20,
    )  # fmt: skip


def _header(covered: dict[str, list[Range]]) -> str:
    return "; ".join(
        f"{chain_id}:{','.join(f'{a}-{b}' for a, b in ranges)}"
        for chain_id, ranges in covered.items()
    )


def _failed(_: Request[Any, Any, Any], error: LeaseholdError) -> Response[dict[str, Any]]:
    return Response(error.to_dict(), status_code=error.kind.http, media_type=MediaType.JSON)


def _http_failed(request: Request[Any, Any, Any], error: HTTPException) -> Response[dict[str, Any]]:
    """Litestar's own refusals (validation, unknown path, wrong method) in our shape."""
    failure = (
        not_found("route", request.url.path)
        if error.status_code == 404
        else LeaseholdError("bad_request", error.detail, kind=Kind.MALFORMED)
    )
    content = failure.to_dict()
    extra = getattr(error, "extra", None)
    if extra:
        content["violations"] = extra
    return Response(content, status_code=error.status_code, media_type=MediaType.JSON,
                    headers=error.headers)  # fmt: skip


def _timed_out(_: Request[Any, Any, Any], __: TimeoutError) -> Response[dict[str, Any]]:
    error = LeaseholdError(
        "timeout", "it took too long; ask for less", kind=Kind.TIMEOUT, retry_after=5.0
    )
    return Response(error.to_dict(), status_code=504, media_type=MediaType.JSON)


def _now(clock: Clock) -> str:
    return datetime.fromtimestamp(clock.now(), UTC).isoformat()

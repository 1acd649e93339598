"""The other side of ``bench dispatch``: our worker, or a bare grpc.aio echo."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import uvloop

from leasehold.core import logs
from leasehold.core.service import running
from leasehold.dispatch.settings import DispatchSettings
from leasehold.dispatch.worker import Job, Reply, Worker

METHOD = "/bench.Echo/Echo"


async def echo(job: Job) -> AsyncIterator[Reply]:
    yield Reply("Echo", job.payload, final=True)


async def serve_worker() -> None:
    settings = DispatchSettings(
        network="bench", chain_id="1", worker_port=0, managers=(), concurrency=512
    )
    async with running(Worker(settings=settings, handlers={"Echo": echo})) as worker:
        print(worker.address, flush=True)
        await asyncio.Event().wait()


async def serve_bare() -> None:
    async def bare(_requests: Any, context: Any) -> None:
        while (data := await context.read()) is not grpc.aio.EOF:
            await context.write(data)

    handler = grpc.stream_stream_rpc_method_handler(bare)

    class Handlers(grpc.GenericRpcHandler):
        def service(self, details: Any) -> Any:
            return handler if details.method == METHOD else None

    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Handlers(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    logs.configure("error")
    uvloop.run(serve_bare() if sys.argv[1] == "bare" else serve_worker())

"""Peers that share no code with us: an old worker, an old manager, and hostile ones.

They are written from the protocol's description alone, with grpcio's generic handlers and a
protobuf coder of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest

from leasehold.core.errors import LeaseholdError
from leasehold.core.service import running
from leasehold.dispatch import metrics
from leasehold.dispatch.http import ManagerApp
from leasehold.dispatch.manager import Manager
from leasehold.dispatch.registry import WorkerState
from leasehold.dispatch.settings import DispatchSettings
from leasehold.dispatch.task import Call, Retry
from leasehold.dispatch.worker import Job, Reply, Worker

METHOD = "/indexer.IndexerService/TaskRPC"


# a protobuf coder in twenty lines


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def message(*parts: tuple[int, Any]) -> bytes:
    out = b""
    for number, value in parts:
        if isinstance(value, int):
            out += varint(number << 3) + varint(value)
        else:
            data = value.encode() if isinstance(value, str) else value
            out += varint(number << 3 | 2) + varint(len(data)) + data
    return out


def parse(data: bytes) -> dict[int, Any]:
    at, out = 0, {}

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7

    while at < len(data):
        key = number()
        if key & 7 == 0:
            out[key >> 3] = number()
        else:
            size = number()
            out[key >> 3] = data[at : at + size]
            at += size
    return out


def response(id_: bytes, type_: str, order: int = 0, final: bool = False, payload: bytes = b"",
             error: str = "") -> bytes:  # fmt: skip
    parts: list[tuple[int, Any]] = [(2, id_), (3, type_)]
    parts += [(4, order)] if order else []
    parts += [(5, 1)] if final else []
    parts += [(6, message((1, error)))] if error else []
    parts += [(7, payload)] if payload else []
    return message(*parts)


Behave = Callable[[dict[int, Any], Callable[[bytes], Awaitable[None]]], Awaitable[None]]


@contextlib.asynccontextmanager
async def old_worker(manager: Manager, behave: Behave, **options: Any) -> AsyncIterator[str]:
    """A worker that knows nothing but the base protocol; ``behave`` answers each task."""

    async def stream(_: Any, context: Any) -> None:
        writing = asyncio.Lock()

        async def send(data: bytes) -> None:
            async with writing:
                await context.write(data)

        async with asyncio.TaskGroup() as group:
            while (data := await context.read()) is not grpc.aio.EOF:
                request = parse(data)
                assert set(request) <= {1, 2, 3, 4, 5}, "an old worker got something new"
                uuid.UUID(request[2].decode())
                if request[3] == b"PING":
                    await send(response(request[2], "PONG", final=True))
                else:
                    group.create_task(behave(request, send))

    handler = grpc.stream_stream_rpc_method_handler(stream)

    class Handlers(grpc.GenericRpcHandler):  # type: ignore[type-arg]
        def service(self, details: Any) -> Any:
            return handler if details.method == METHOD else None

    server = grpc.aio.server(options=[("grpc.max_send_message_length", 64 << 20)])
    server.add_generic_rpc_handlers((Handlers(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    ping = {
        "id": str(uuid.uuid4()), "network": "n", "chain_id": "c",
        "connectivity": {"version": "0.0.1", "type": "grpc", "address": f"127.0.0.1:{port}"},
    }  # fmt: skip
    try:
        async with httpx.AsyncClient() as client:
            answer = await client.post(f"{manager.url}/client_ping", content=json.dumps(ping))
            assert answer.status_code == 200
        async with asyncio.timeout(5):
            while manager.registry.get(ping["id"]).state is not WorkerState.ONLINE:
                await asyncio.sleep(0.01)
        yield ping["id"]
    finally:
        await server.stop(0)


@contextlib.asynccontextmanager
async def a_manager(**changed: Any) -> AsyncIterator[Manager]:
    async with running(Manager(settings=DispatchSettings(manager_port=0, **changed))) as manager:
        yield manager


def call(type_: str = "GetTransactions", **more: Any) -> Call:
    return Call(network="n", chain_id="c", type=type_, payload=b"{}", timeout=5.0, **more)


async def test_an_old_worker() -> None:
    async def behave(request: dict[int, Any], send: Any) -> None:
        id_, kind = request[2], request[3].decode()
        if kind == "Legacy":  # data, then a separate END
            for order in range(3):
                await send(response(id_, "Block", order, payload=b"%d" % order))
            await send(response(id_, "END", 3, final=True))
        elif kind == "New":  # data and final in one
            await send(response(id_, "Heights", final=True, payload=b"{}"))
        elif kind == "TwoFinals":  # the error, and then END nevertheless
            await send(response(id_, "Block", 0, payload=b"0"))
            await send(response(id_, "Error", 1, final=True, error="range failed"))
            await send(response(id_, "END", 2, final=True))

    async with a_manager() as manager, old_worker(manager, behave) as id_:
        legacy = await manager.call(call("Legacy"))
        assert [(r.type, r.payload) for r in legacy] == [("Block", b"%d" % n) for n in range(3)]
        (new,) = await manager.call(call("New"))
        assert (new.type, new.final) == ("Heights", True)
        with pytest.raises(LeaseholdError, match="range failed"):
            await manager.call(call("TwoFinals"))
        async with manager.submit(call("Never")):
            pass  # left at once: no CANCEL may reach an old worker
        assert await manager.call(call("New"))
        session = manager.registry.get(id_).session
        assert session is not None
        assert session.attempts == {}


async def test_an_old_manager() -> None:
    async def work(job: Job) -> AsyncIterator[Reply]:
        for n in range(3):
            yield Reply("Block", str(n).encode())

    async def hang(job: Job) -> AsyncIterator[Reply]:
        await asyncio.Event().wait()
        yield Reply("Never")

    settings = DispatchSettings(worker_port=0, managers=(), concurrency=2, drain_timeout=0.1)
    worker = Worker(settings=settings, handlers={"Work": work, "Hang": hang})
    async with running(worker), grpc.aio.insecure_channel(worker.address) as channel:
        slow = channel.stream_stream(METHOD)()
        stream = channel.stream_stream(METHOD)()
        # Two managers may use one id; a manager that hangs its tasks delays only itself.
        for _ in range(2):
            await slow.write(message((2, str(uuid.uuid4())), (3, "Hang"), (4, "slow manager")))
        task, ping, odd = (str(uuid.uuid4()) for _ in range(3))
        await slow.write(message((2, task), (3, "Work"), (4, "slow manager")))
        await stream.write(message((2, task), (3, "Work"), (4, "manager"), (5, b"{}")))
        await stream.write(message((2, odd), (3, "CANCEL"), (4, "manager"), (5, task)))
        await stream.write(message((2, ping), (3, "PING"), (4, "manager")))
        got = []
        async with asyncio.timeout(5):
            while len(got) < 6:
                got.append(parse(await stream.read()))
        mine = [(g[3], g.get(4, 0), g.get(5, 0)) for g in got if g[2].decode() == task]
        assert mine == [(b"Block", 0, 0), (b"Block", 1, 0), (b"Block", 2, 0), (b"END", 3, 1)]
        assert [g[3] for g in got if g[2].decode() == ping] == [b"PONG"]
        # CANCEL is unknown to the base protocol: an unknown type is a final error.
        (refused,) = [g for g in got if g[2].decode() == odd]
        assert refused[5] == 1
        assert b"unknown task type" in parse(refused[6])[1]


HOSTILE: dict[str, list[tuple[str, int, bool, bytes]]] = {
    "twice": [("D", 0, True, b"1"), ("D", 0, True, b"2")],
    "after": [("D", 0, True, b"1"), ("D", 1, False, b"2"), ("END", 2, True, b"")],
    "duplicate": [("D", 0, False, b"1"), ("D", 0, False, b"1"), ("END", 1, True, b"")],
}


@pytest.mark.parametrize("case", HOSTILE)
async def test_finals_twice_data_after_final_and_duplicates(case: str) -> None:
    async def behave(request: dict[int, Any], send: Any) -> None:
        for type_, order, final, payload in HOSTILE[case]:
            await send(response(request[2], type_, order, final, payload))

    async with a_manager() as manager, old_worker(manager, behave):
        for _ in range(20):
            got = await manager.call(call())
            assert [r.payload for r in got] == [b"1"]


async def test_gaps_unknown_ids_and_garbage() -> None:
    async def behave(request: dict[int, Any], send: Any) -> None:
        for _ in range(50):
            await send(response(str(uuid.uuid4()).encode(), "D", final=True))
        await send(response(b"not a uuid", "PONG", final=True))
        kind = request[3].decode()
        if kind == "Gap":
            await send(response(request[2], "D", 1, payload=b"1"))
            await send(response(request[2], "END", 2, final=True))
        elif kind == "Late":
            await send(response(request[2], "D", 1, payload=b"1"))
            await send(response(request[2], "D", 0, payload=b"0"))
            await send(response(request[2], "END", 2, final=True))
        else:
            await send(b"\xff\xff\xff no message")

    before = metrics.REJECTED.labels("unknown_id")._value.get()
    async with a_manager() as manager, old_worker(manager, behave):
        late = await manager.call(call("Late"))
        assert [r.payload for r in late] == [b"0", b"1"]
        with pytest.raises(LeaseholdError) as gap:
            await manager.call(call("Gap"))
        assert gap.value.code == "responses_missing"
        assert metrics.REJECTED.labels("unknown_id")._value.get() >= before + 50
        with pytest.raises(LeaseholdError) as garbage:
            await manager.call(call("Garbage", retry=Retry.NEVER))
        assert garbage.value.code == "worker_lost"


async def test_oversized_frames_end_the_stream_and_no_more() -> None:
    async def behave(request: dict[int, Any], send: Any) -> None:
        size = 8 << 20 if request[3] == b"Big" else 10
        await send(response(request[2], "D", final=True, payload=b"x" * size))

    async with a_manager(max_message_bytes=1 << 20) as manager, old_worker(manager, behave):
        with pytest.raises(LeaseholdError) as big:
            await manager.call(call("Big", retry=Retry.IDEMPOTENT))
        assert big.value.code in ("worker_lost", "task_timeout")
        assert (await manager.call(call("Small")))[0].payload == b"x" * 10


async def test_ten_thousand_registrations_are_bounded_counted_and_refused() -> None:
    refused = metrics.REFUSED_PINGS.labels("too_many_workers")
    before = refused._value.get()
    async with a_manager(max_workers=100, max_dials=4) as manager:
        app = ManagerApp(manager, methods={})
        statuses: dict[int, int] = {}

        async def register(n: int) -> None:
            ping = {
                "id": f"w{n}", "network": f"n{n % 7}", "chain_id": "c",
                "connectivity": {
                    "version": "0.0.1", "type": "grpc", "address": f"127.0.0.1:{1 + n % 60000}"
                },
            }  # fmt: skip

            async def receive() -> dict[str, Any]:
                return {"type": "http.request", "body": json.dumps(ping).encode()}

            async def send(message: dict[str, Any]) -> None:
                if "status" in message:
                    statuses[message["status"]] = statuses.get(message["status"], 0) + 1

            scope = {
                "type": "http", "method": "POST", "path": "/client_ping", "headers": [],
                "client": ("127.0.0.1", 5),
            }  # fmt: skip
            await app(scope, receive, send)

        for n in range(10_000):
            await register(n)
            if n % 100 == 0:
                await asyncio.sleep(0)
        assert len(manager.registry.workers) <= 100
        assert statuses[429] == refused._value.get() - before > 9000
        assert len(manager._pools) <= 7
        async with httpx.AsyncClient(base_url=manager.url) as client:
            listed = (await client.get("/get_workers")).json()
        assert sum(group["active"] for group in listed.values()) == 0

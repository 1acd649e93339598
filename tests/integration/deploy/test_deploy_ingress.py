"""What a manifest says of requests, seen from both sides of the real proxy."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from conftest_ingress import Handler, Request, Upstream, ask, chunked, cleared, proxy

from leasehold.deploy.ingress.haproxy import Ingress
from leasehold.deploy.ingress.options import Options
from leasehold.deploy.ingress.table import Server

GET, POST = "GET / HTTP/1.1|Host: a.example", "POST / HTTP/1.1|Host: a.example"


async def _ok(request: Request) -> None:
    await request.answer(f"got {len(await request.body())}")


@asynccontextmanager
async def serving(
    folder: Path, options: Options, *handlers: Handler
) -> AsyncIterator[tuple[Ingress, list[Upstream]]]:
    upstreams = [Upstream(handler) for handler in handlers or (_ok,)]
    async with cleared(folder), proxy(folder) as ingress:
        contexts = [upstream.listening() for upstream in upstreams]
        servers = [await context.__aenter__() for context in contexts]
        try:
            await ingress.point("t", hosts=["a.example"], servers=servers, options=options)
            yield ingress, upstreams
        finally:
            for context in contexts:
                await context.__aexit__(None, None, None)


async def test_bodies_are_limited_with_and_without_a_length(tmp_path: Path) -> None:
    async with serving(tmp_path, Options(max_body=100_000)) as (ingress, (upstream,)):
        fits, over = bytes(90_000), bytes(400_000)
        length = f"{POST}|Content-Length: "
        assert (await ask(ingress.port, length + str(len(fits)), fits))[1].endswith(b"got 90000")
        assert (await ask(ingress.port, length + str(len(over))))[0] == 413
        seen = len(upstream.requests)
        pieces = f"{POST}|Transfer-Encoding: chunked"
        assert (await ask(ingress.port, pieces, chunked(fits)))[1].endswith(b"got 90000")
        status, _ = await ask(ingress.port, pieces, chunked(over))
        assert status in (0, 413), "told, or cut off while it still sends"
        assert len(upstream.requests) <= seen + 2
        # Who it comes from is told once, whichever way the request went.
        head = upstream.requests[seen].lower()
        assert head.count(b"x-forwarded-for: 127.0.0.1") == 1
        assert b"x-forwarded-proto: http\r\n" in head


async def test_a_service_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    async def slow(request: Request) -> None:
        await asyncio.sleep(0.2 if b"/soon" in request.head else 5)
        await request.answer()

    async with serving(tmp_path, Options(read_timeout_ms=400), slow) as (ingress, (upstream,)):
        assert (await ask(ingress.port, "GET /soon HTTP/1.1|Host: a.example"))[0] == 200
        began = time.monotonic()
        assert (await ask(ingress.port, GET))[0] == 504
        assert 0.35 < time.monotonic() - began < 2
        assert len(upstream.requests) == 2, "a lone replica is not asked the same again"


async def test_a_service_that_takes_no_data_is_given_up(tmp_path: Path) -> None:
    async def deaf(request: Request) -> None:
        request.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.sleep(8)

    options = Options(max_body=1 << 30, send_timeout_ms=500)
    async with serving(tmp_path, options, deaf) as (ingress, _):
        size = 32 << 20
        began = time.monotonic()
        status, _ = await ask(ingress.port, f"{POST}|Content-Length: {size}", bytes(size))
        assert status in (0, 502)
        assert 0.4 < time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("method", "options", "tries"),
    [
        ("GET", Options(cases=("503",), tries=4), 4),
        ("GET", Options(cases=("502",), tries=4), 1),
        ("GET", Options(cases=("off",), tries=4), 1),
        ("POST", Options(cases=("503",), tries=4), 1),
    ],
)
async def test_another_try_follows_what_the_tenant_named(
    tmp_path: Path, method: str, options: Options, tries: int
) -> None:
    async def away(request: Request) -> None:
        await request.answer("away", "503 Service Unavailable")

    async with serving(tmp_path, options, away, away) as (ingress, upstreams):
        assert (await ask(ingress.port, f"{method} / HTTP/1.1|Host: a.example"))[0] == 503
        assert sum(len(upstream.requests) for upstream in upstreams) == tries


async def test_a_slow_replica_is_made_up_for_by_another(tmp_path: Path) -> None:
    async def slow(request: Request) -> None:
        await asyncio.sleep(5)

    options = Options(replicas=2, read_timeout_ms=300)
    async with serving(tmp_path, options, slow, _ok) as (ingress, _):
        statuses = [(await ask(ingress.port, GET))[0] for _ in range(4)]
        assert statuses == [200] * 4
    hurried = Options(replicas=2, read_timeout_ms=300, next_timeout_ms=200)
    async with serving(tmp_path, hurried, slow, _ok) as (ingress, _):
        statuses = [(await ask(ingress.port, GET))[0] for _ in range(4)]
        assert 504 in statuses, "no further try after next_timeout"


async def test_no_try_is_begun_after_next_timeout(tmp_path: Path) -> None:
    async with cleared(tmp_path), proxy(tmp_path) as ingress:
        nobody = [Server("127.0.0.1", 9)]
        for key, wait in (("long", 0), ("short", 1_000)):
            options = Options(tries=3, next_timeout_ms=wait)
            await ingress.point(key, hosts=[f"{key}.example"], servers=nobody, options=options)
        took = {}
        for key in ("long", "short"):
            began = time.monotonic()
            assert (await ask(ingress.port, f"GET / HTTP/1.1|Host: {key}.example"))[0] == 503
            took[key] = time.monotonic() - began
        assert took["short"] < took["long"] - 0.9

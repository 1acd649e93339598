"""Sending manifests.

``value`` (warm): PUTs a second of a manifest of about 1.4 KiB, from wrk over 32 connections with an
ES256K token on each, to durable acceptance (SQLite, fsync), by 32 tenants who send again: tokens
and market data are known, every check is made, every acceptance is an event. ``peer``: a bare
handler of the same server that only decodes the same body. Extras: *first* (every request is for a
deployment never seen before: fetch, checks, sealing, two commits), *cold* (the same, and no
verified token is remembered), 99th percentiles in milliseconds, and 100,000 armed watchdogs: bytes
each and seconds to start again over them.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import re
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import uvloop
from litestar import Request, put

from bench.harness import median, result
from leasehold.core import logs
from leasehold.core.clock import SystemClock
from leasehold.core.service import running
from leasehold.events.event import Entity, NewEvent
from leasehold.events.sqlite import SqliteLog
from leasehold.gateway.server import Gateway
from leasehold.gateway.settings import GatewaySettings
from leasehold.manifest.ports import LeasePage, MarketDeployment, MarketGroup, MarketLease
from leasehold.manifest.service import ManifestService
from leasehold.manifest.settings import ManifestSettings
from leasehold.market.accounts import Key, sign_token
from leasehold.model import manifest as manifests
from leasehold.model import sdl
from leasehold.model.events.market import LeaseWon, Price
from leasehold.model.market import DeploymentId, LeaseId
from leasehold.model.sealing import Vault
from leasehold.observe.engine import Engine

OWNERS = 32
CONNECTIONS = 32
PROVIDER = "akash1provider"
WATCHDOGS = 100_000

SDL = """
version: "2.0"
services:
  web:
    image: registry.example.com/team/web:1.2.3
    env: [LOG_LEVEL=info, "DATABASE_URL=postgres://web:secret@db:5432/web", TOKEN=0123456789abcdef]
    expose: [{port: 8080, as: 80, to: [{global: true}]}]
  db:
    image: postgres:16
    env: [POSTGRES_PASSWORD=secret, POSTGRES_USER=web]
    expose: [{port: 5432, to: [{service: web}]}]
profiles:
  compute:
    web: {resources: {cpu: {units: 500m}, memory: {size: 512Mi}, storage: {size: 1Gi}}}
    db: {resources: {cpu: {units: 1}, memory: {size: 1Gi}, storage: {size: 10Gi}}}
  placement:
    here: {pricing: {web: {denom: uakt, amount: 5}, db: {denom: uakt, amount: 5}}}
deployment:
  web: {here: {profile: web, count: 1}}
  db: {here: {profile: db, count: 1}}
"""

LUA = """
local tokens = {%s}
local n = 0
wrk.body = [==[%s]==]
request = function()
  n = n + 1
  local headers = {["Content-Type"] = "application/json",
                   ["Authorization"] = "Bearer " .. tokens[n %% #tokens + 1]}
  return wrk.format("PUT", string.format("%s", %s), headers, wrk.body)
end
"""


class AnyDeployment:
    """A market on which every owner has every deployment, each with one lease."""

    def __init__(self, loaded: sdl.SDL) -> None:
        self.hash = loaded.hash.hex()
        self.groups = [MarketGroup(gseq=1, spec=loaded.groups()[0])]

    async def deployment(self, id: DeploymentId) -> MarketDeployment:
        return MarketDeployment(id=id, hash=self.hash, groups=self.groups, height=1)

    async def leases(
        self, provider: str, deployment: DeploymentId | None = None, *, page: str = ""
    ) -> LeasePage:
        if deployment is None:
            return LeasePage(leases=[])
        id = LeaseId(deployment.owner, deployment.dseq, 1, 1, provider)
        return LeasePage(leases=[MarketLease(id=id)])

    async def close_bid(self, id: LeaseId, reason: int) -> None: ...


class Keys:
    def __init__(self, keys: list[Key]) -> None:
        self.jwks = {key.address: key.public.jwk() for key in keys}

    async def public_key(self, address: str) -> dict[str, str] | None:
        return self.jwks.get(address)


@contextlib.asynccontextmanager
async def provider(
    folder: Path, loaded: sdl.SDL, keys: list[Key], *, token_cache: int
) -> AsyncIterator[Gateway]:
    clock = SystemClock()
    log = SqliteLog(folder / f"events-{token_cache}.sqlite3", clock)
    market = AnyDeployment(loaded)
    async with running(log):
        engine = Engine(log, clock)
        service = ManifestService(
            log,
            engine,
            market,
            market,
            provider=PROVIDER,
            vault=Vault(bytes(32)),
            settings=ManifestSettings(owner_rate=1e9, owner_burst=10**9),
            clock=clock,
        )

        @put("/bare", status_code=200)
        async def bare(request: Request[Any, Any, Any]) -> bytes:
            manifests.decode(await request.body())
            return b""

        gateway = Gateway(
            GatewaySettings(port=0, token_cache=token_cache),
            clock=clock,
            manifest=service,
            keys=Keys(keys),
            routes=[bare],
        )
        async with running(service), running(engine), running(gateway):
            yield gateway


class Load:
    """wrk against one gateway; every fresh run gets deployments of its own."""

    def __init__(self, folder: Path, body: bytes, tokens: list[str], seconds: float) -> None:
        self.folder = folder
        self.body = body.decode()
        self.tokens = ", ".join(f'"{token}"' for token in tokens)
        self.seconds = max(1, round(seconds))
        self.next_dseq = 1

    async def run(self, gateway: Gateway, kind: str) -> tuple[float, float]:
        """Requests a second and the 99th percentile in milliseconds."""
        path, argument = {
            "bare": ("/bare", "0"),
            "repeat": ("/deployment/%d/manifest", "n % 32 + 1"),
            "fresh": ("/deployment/%d/manifest", f"{self.next_dseq} + n"),
        }[kind]
        if kind == "fresh":
            self.next_dseq += 1_000_000
        script = self.folder / "load.lua"
        script.write_text(LUA % (self.tokens, self.body, path, argument))
        process = await asyncio.create_subprocess_exec(
            "wrk",
            "-t1",
            f"-c{CONNECTIONS}",
            f"-d{self.seconds}s",
            "--latency",
            "-s",
            str(script),
            gateway.url,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        text = out.decode()
        if "Non-2xx" in text or process.returncode:
            raise RuntimeError(f"wrk: {text[-400:]} {err.decode()[-200:]}")
        rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
        p99 = re.search(r"99%\s+([\d.]+)(us|ms|s)", text)
        assert rate is not None
        assert p99 is not None
        return float(rate[1]), float(p99[1]) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[p99[2]]


def run(quick: bool) -> dict[str, Any]:
    logs.configure("error")
    if shutil.which("wrk") is None:
        return result(
            "manifest", 0.0, "PUT/s", higher_is_better=True, peer_error="wrk is not installed"
        )
    rounds, seconds = (3, 1.0) if quick else (5, 3.0)
    with tempfile.TemporaryDirectory() as folder:
        # As `leasehold up` runs it.
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            measured = runner.run(_http(Path(folder), rounds, seconds))
    count = 10_000 if quick else WATCHDOGS
    with tempfile.TemporaryDirectory() as folder:
        watchdogs = asyncio.run(_watchdogs(Path(folder), count))
    warm, warm_p99 = measured["warm"]
    bare, bare_p99 = measured["bare"]
    cold, cold_p99 = measured["cold"]
    first, first_p99 = measured["first"]
    return result(
        "manifest",
        warm,
        "PUT/s",
        peer="bare handler that decodes the body",
        peer_value=bare,
        higher_is_better=True,
        aim="ratio >= 0.35 warm; p99 <= 3 x bare + 10 ms",
        p99_ms=round(warm_p99, 2),
        bare_p99_ms=round(bare_p99, 2),
        p99_aim_met=warm_p99 <= 3 * bare_p99 + 10,
        cold_per_s=round(cold, 1),
        cold_ratio=round(cold / bare, 3),
        cold_p99_ms=round(cold_p99, 2),
        first_per_s=round(first, 1),
        first_ratio=round(first / bare, 3),
        first_p99_ms=round(first_p99, 2),
        body_bytes=measured["bytes"],
        **watchdogs,
    )


async def _http(folder: Path, rounds: int, seconds: float) -> dict[str, Any]:
    loaded = sdl.load(SDL)
    keys = [Key.generate() for _ in range(OWNERS)]
    tokens = [sign_token(key, time.time(), lifetime=3600) for key in keys]
    body = manifests.canonical(loaded.manifest())
    load = Load(folder, body, tokens, seconds)
    found: dict[str, list[tuple[float, float]]] = {k: [] for k in ("warm", "bare", "cold", "first")}
    async with (
        provider(folder, loaded, keys, token_cache=10_000) as warm,
        provider(folder, loaded, keys, token_cache=0) as cold,
    ):
        for kind in ("repeat", "fresh", "bare"):  # connections, caches and code are warm after this
            await Load(folder, body, tokens, 1).run(warm, kind)
        load.next_dseq = 10_000_000
        for _ in range(rounds):
            found["warm"].append(await load.run(warm, "repeat"))
            found["bare"].append(await load.run(warm, "bare"))
            found["cold"].append(await load.run(cold, "fresh"))
            found["first"].append(await load.run(warm, "fresh"))
    for kind, values in found.items():
        print(f"{kind}: {[round(rate) for rate, _ in values]} /s", file=sys.stderr)
    return {
        "bytes": len(body),
        **{
            kind: (median([rate for rate, _ in values]), median([p99 for _, p99 in values]))
            for kind, values in found.items()
        },
    }


async def _watchdogs(folder: Path, count: int) -> dict[str, Any]:
    """Arm ``count`` watchdogs, then start again over them."""
    clock, loaded = SystemClock(), sdl.load(SDL)
    market = AnyDeployment(loaded)
    group = json.loads(msgspec.json.encode(loaded.groups()[0]))

    def make(log: SqliteLog) -> tuple[Engine, ManifestService]:
        engine = Engine(log, clock)
        settings = ManifestSettings(watchdog_s=86_400.0)
        return engine, ManifestService(
            log,
            engine,
            market,
            market,
            provider=PROVIDER,
            vault=Vault(bytes(32)),
            settings=settings,
            clock=clock,
        )

    async with running(SqliteLog(folder / "log.sqlite3", clock)) as log:

        async def win(dseq: int) -> None:
            id = LeaseId("akash1owner", dseq, 1, 1, PROVIDER)
            won = LeaseWon(id=id, price=Price("uakt", "1"), group=group, height=dseq)
            await log.append(Entity("lease", str(id)), None, [NewEvent.of(won, clock=clock)])

        for start in range(0, count, 2000):
            await asyncio.gather(*(win(n) for n in range(start, min(count, start + 2000))))
        gc.collect()
        before = _rss()
        engine, service = make(log)
        async with running(service), running(engine):
            while len(await log.due_timers(clock.now() + 200_000, limit=count)) < count:
                await clock.sleep(1.0)  # the question itself is work
            gc.collect()
            each = (_rss() - before) / count
    began = time.monotonic()
    async with running(SqliteLog(folder / "log.sqlite3", clock)) as log:
        engine, service = make(log)
        async with running(service), running(engine):
            restart = time.monotonic() - began
    return {
        "watchdogs": count,
        "watchdog_bytes_each": round(each),
        "watchdogs_restart_s": round(restart, 3),
        "watchdogs_aim": "restart_s < 1 at 100,000",
    }


def _rss() -> int:
    """Resident bytes of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()

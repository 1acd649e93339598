"""What a group costs a charged block, in base units with at most six decimals.

``scale``         amounts times the prices of the settings, over all replicas
``random_range``  between the scale's price and the most the tenant pays
``script``        a program of the operator: the order as JSON on its stdin, a decimal on its stdout
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from decimal import ROUND_CEILING, Decimal, InvalidOperation
from typing import Protocol

import msgspec

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.market.settings import MarketSettings
from leasehold.model.market import OrderId
from leasehold.model.resources import LEASED_IP, GroupSpec, MiB

SMALLEST = Decimal("0.000001")
"""Prices are multiples of this."""

KILLED_S = 5.0
"""Seconds to wait for a killed script; one stuck in the kernel must not hold up the order."""

MAX_OUTPUT = 4096
"""Bytes a price script may print."""


class Pricing(Protocol):
    async def price(self, order: OrderId, group: GroupSpec) -> Decimal:
        """Base units a charged block. LeaseholdError when there is no price."""
        ...


def most(group: GroupSpec) -> Decimal:
    """What the tenant pays at most for all replicas of the group."""
    return sum((unit.price.value * unit.count for unit in group.resources), Decimal(0))


def rounded(price: Decimal) -> Decimal:
    """Up to the next price that can be paid; never for nothing."""
    return max(SMALLEST, price.quantize(SMALLEST, ROUND_CEILING))


class Scale:
    """The sum over all resources."""

    def __init__(self, settings: MarketSettings) -> None:
        self._cpu = Decimal(settings.price_cpu)
        self._memory = Decimal(settings.price_memory) / MiB
        self._storage = Decimal(settings.price_storage) / MiB
        self._classes = {
            name: Decimal(price) / MiB for name, price in settings.price_storage_classes.items()
        }
        self._endpoint = Decimal(settings.price_endpoint)
        self._ip = Decimal(settings.price_ip)
        self._gpu = Decimal(settings.price_gpu)

    async def price(self, order: OrderId, group: GroupSpec) -> Decimal:
        total = Decimal(0)
        for unit in group.resources:
            given = unit.resource
            one = (
                given.cpu_milli * self._cpu
                + given.memory_bytes * self._memory
                + given.gpu_units * self._gpu
            )
            for volume in given.volumes:
                by_class = self._classes.get(volume.storage_class, self._storage)
                one += int(volume.size) * (by_class if volume.persistent else self._storage)
            endpoints = given.endpoints or []
            leased = sum(1 for endpoint in endpoints if endpoint.kind == LEASED_IP)
            # Endpoints are of the group, not of each replica: they are counted once.
            total += (
                one * unit.count + leased * self._ip + (len(endpoints) - leased) * self._endpoint
            )
        return rounded(total)


class RandomRange:
    """Anywhere between what it costs us and what the tenant pays, so that bids differ."""

    def __init__(self, scale: Scale, rng: random.Random) -> None:
        self._scale = scale
        self._rng = rng

    async def price(self, order: OrderId, group: GroupSpec) -> Decimal:
        least, top = await self._scale.price(order, group), most(group)
        if top <= least:
            return least
        steps = int((top - least) / SMALLEST)
        return least + self._rng.randint(0, steps) * SMALLEST


class Script:
    """Runs the operator's program, at most so many at once, each for so long."""

    def __init__(self, settings: MarketSettings) -> None:
        if not settings.price_script:
            raise LeaseholdError(
                "price_script_missing",
                "price_strategy is script, but no price_script is set",
                path="market.price_script",
            )
        self._path = settings.price_script
        self._timeout = settings.price_script_timeout_s
        self._slots = asyncio.Semaphore(settings.price_script_parallel)

    async def price(self, order: OrderId, group: GroupSpec) -> Decimal:
        question = msgspec.json.encode(
            {
                "order": order,
                "group": group,
                "price": {"denom": group.resources[0].price.denom, "max": str(most(group))},
            }
        )
        async with self._slots:
            output = await self._run(question)
        try:
            price = Decimal(output.decode().strip())
        except (InvalidOperation, UnicodeDecodeError):
            price = Decimal("NaN")
        if not price.is_finite() or price <= 0:
            raise _failed("printed no price", output[:80].decode("utf-8", "replace"))
        return rounded(price)

    async def _run(self, question: bytes) -> bytes:
        try:
            process = await asyncio.create_subprocess_exec(
                self._path,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            raise _failed(f"cannot be started: {error.strerror}", self._path) from None
        try:
            async with asyncio.timeout(self._timeout):
                output = await _talk(process, question)
                status = await process.wait()
        except TimeoutError:
            raise _failed(f"took longer than {self._timeout:g} s", self._path) from None
        finally:
            # The whole session: what the script started would keep our end of the pipe busy.
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(KILLED_S):
                        await process.wait()
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                await process.stdin.wait_closed()
        if status:
            raise _failed(f"ended with status {status}", self._path)
        return output


async def _talk(process: asyncio.subprocess.Process, question: bytes) -> bytes:
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        process.stdin.write(question)
        await process.stdin.drain()
    process.stdin.close()
    output = b""
    while chunk := await process.stdout.read(MAX_OUTPUT):
        output += chunk
        if len(output) > MAX_OUTPUT:
            raise _failed(f"printed more than {MAX_OUTPUT} bytes", "")
    return output


def make(settings: MarketSettings, rng: random.Random | None = None) -> Pricing:
    """The strategy the settings name."""
    if settings.price_strategy == "script":
        return Script(settings)
    scale = Scale(settings)
    if settings.price_strategy == "random_range":
        return RandomRange(scale, rng or random.Random())
    return scale


def _failed(why: str, got: str) -> LeaseholdError:
    return LeaseholdError(
        "price_script_failed", f"the price script {why}", kind=Kind.INVALID, got=got
    )

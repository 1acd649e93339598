"""Prices by scale, by chance and by script; and what speaks against bidding."""

from __future__ import annotations

import asyncio
import random
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from leasehold.core.clock import VirtualClock
from leasehold.core.errors import LeaseholdError
from leasehold.market.bids import pricing
from leasehold.market.bids.rules import Audits, reasons_against
from leasehold.market.settings import MarketSettings
from leasehold.market.testing import GROUP
from leasehold.model.market import OrderId
from leasehold.model.resources import Attribute, GroupSpec

ORDER = OrderId("owner", 1, 1, 1)


def group(**changes: Any) -> GroupSpec:
    spec = msgspec.json.decode(msgspec.json.encode(GROUP))
    unit = spec["resources"][0]
    unit["count"] = changes.get("count", 1)
    if "storage" in changes:
        unit["resource"]["storage"] = changes["storage"]
    if "endpoints" in changes:
        unit["resource"]["endpoints"] = changes["endpoints"]
    if "attributes" in changes:
        spec["requirements"]["attributes"] = changes["attributes"]
    if "signed_by" in changes:
        spec["requirements"]["signed_by"] = changes["signed_by"]
    return msgspec.convert(spec, GroupSpec)


async def test_scale_adds_up() -> None:
    settings = MarketSettings(
        price_cpu="0.1",
        price_memory="0.01",
        price_storage="0.001",
        price_endpoint="1",
        price_ip="5",
        price_storage_classes={"beta3": "0.01"},
    )
    scale = pricing.make(settings)
    one = Decimal("10") + Decimal("1.28") + Decimal("1.024")
    assert await scale.price(ORDER, group()) == one + 1
    assert await scale.price(ORDER, group(count=3)) == 3 * one + 1
    leased = group(endpoints=[{"kind": 2, "sequence_number": 1}, {"sequence_number": 0}])
    assert await scale.price(ORDER, leased) == one + 6
    fast = [{"key": "persistent", "value": "true"}, {"key": "class", "value": "beta3"}]
    volume = {"name": "data", "size": {"val": str(1 << 30)}, "attributes": fast}
    assert await scale.price(ORDER, group(storage=[volume])) == one + 1 + Decimal("9.216")


async def test_prices_can_always_be_paid_exactly() -> None:
    tiny = MarketSettings(
        price_cpu="0", price_memory="0", price_storage="0.0000000001", price_endpoint="0"
    )
    assert await pricing.make(tiny).price(ORDER, group()) == Decimal("0.000001")
    assert pricing.rounded(Decimal("1.0000001")) == Decimal("1.000001")


async def test_a_random_price_is_between_cost_and_what_is_paid() -> None:
    strategy = MarketSettings(price_strategy="random_range")
    priced = pricing.make(strategy, random.Random(3))
    least = await pricing.make(MarketSettings()).price(ORDER, group())
    prices = {await priced.price(ORDER, group()) for _ in range(200)}
    assert len(prices) > 100
    assert least <= min(prices) <= max(prices) <= Decimal(50)


def script(tmp_path: Path, body: str, **settings: Any) -> pricing.Pricing:
    file = tmp_path / "price"
    file.write_text("#!/bin/sh\n" + body)
    file.chmod(0o755)
    return pricing.make(MarketSettings(price_strategy="script", price_script=str(file), **settings))


async def test_a_script_is_given_the_order_and_prints_a_price(tmp_path: Path) -> None:
    priced = script(tmp_path, f"cat > {tmp_path}/asked; echo ' 12.3456789 '")
    assert await priced.price(ORDER, group()) == Decimal("12.345679")
    asked = msgspec.json.decode((tmp_path / "asked").read_bytes())
    assert asked["order"]["dseq"] == 1
    assert asked["group"]["resources"][0]["count"] == 1
    assert asked["price"] == {"denom": "uakt", "max": "50"}


@pytest.mark.parametrize(
    "body", ["echo nothing", "echo -1", "echo NaN", "exit 3", "echo 5; exit 1", "yes 1", "true"]
)
async def test_a_script_that_fails_is_an_error_with_its_reason(tmp_path: Path, body: str) -> None:
    with pytest.raises(LeaseholdError) as refused:
        await script(tmp_path, body).price(ORDER, group())
    assert refused.value.code == "price_script_failed"


async def test_a_script_that_hangs_is_killed(tmp_path: Path) -> None:
    body = f"echo $$ > {tmp_path}/pid; exec sleep 60"
    priced = script(tmp_path, body, price_script_timeout_s=0.3)
    with pytest.raises(LeaseholdError, match="longer than"):
        await priced.price(ORDER, group())
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()
    missing = MarketSettings(price_strategy="script", price_script=str(tmp_path / "none"))
    with pytest.raises(LeaseholdError, match="cannot be started"):
        await pricing.make(missing).price(ORDER, group())
    with pytest.raises(LeaseholdError, match="no price_script"):
        pricing.make(MarketSettings(price_strategy="script"))


async def test_only_so_many_scripts_run_at_once(tmp_path: Path) -> None:
    mine = f"{tmp_path}/run-$$"
    body = f"mkdir {mine}; ls -d {tmp_path}/run-* | wc -l; sleep 0.1; rmdir {mine}"
    priced = script(tmp_path, body, price_script_parallel=2)
    counts = await asyncio.gather(*(priced.price(ORDER, group()) for _ in range(8)))
    assert max(counts) <= 2


class Signed:
    def __init__(self) -> None:
        self.asked = 0
        self.attributes = [Attribute("region", "us")]

    async def audited(self, provider: str, auditor: str) -> list[Attribute]:
        self.asked += 1
        return self.attributes if auditor == "good" else []


REGION = [{"key": "region", "value": "us"}]


def test_reasons_against_bidding(virtual: VirtualClock) -> None:
    async def main() -> None:
        reader = Signed()
        audits = Audits(reader, "me", virtual, 3600)  # type: ignore[arg-type]

        async def codes(spec: GroupSpec, **ours: str) -> set[str]:
            return {v.code for v in await reasons_against(spec, ours, audits, 4)}

        assert await codes(group()) == set()
        assert await codes(group(attributes=REGION)) == {"attribute_missing"}
        assert await codes(group(attributes=REGION), region="us", more="x") == set()
        volumes = [{"name": f"v{n}", "size": {"val": str(1 << 30)}} for n in range(5)]
        assert await codes(group(storage=volumes)) == {"too_many_volumes"}
        both = {"all_of": ["good"], "any_of": ["bad", "good"]}
        assert await codes(group(attributes=REGION, signed_by=both), region="us") == set()
        for wanted in ({"all_of": ["good", "bad"]}, {"any_of": ["bad"]}):
            found = await codes(group(attributes=REGION, signed_by=wanted), region="us")
            assert found == {"audit_missing"}
        asked = reader.asked
        await codes(group(attributes=REGION, signed_by=both), region="us")
        assert reader.asked == asked
        await virtual.sleep(3601)
        await codes(group(attributes=REGION, signed_by=both), region="us")
        assert reader.asked > asked

    virtual.run(main)

"""What fits, what is promised, and that it is given back."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.deploy.inventory import Amounts, Inventory, Node
from leasehold.model.market import OrderId
from leasehold.model.resources import (
    CPU,
    GPU,
    LEASED_IP,
    Attribute,
    Endpoint,
    GroupSpec,
    Memory,
    Price,
    Resources,
    ResourceUnit,
    Storage,
    Val,
)


def unit(
    count: int = 1,
    cpu: int = 1000,
    memory: int = 100,
    storage: int = 10,
    gpu: int = 0,
    storage_class: str = "default",
) -> ResourceUnit:
    attributes = [Attribute("class", storage_class)]
    resources = Resources(
        1,
        CPU(Val.of(cpu)),
        Memory(Val.of(memory)),
        [Storage(Val.of(storage), "default", attributes)],
        GPU(Val.of(gpu)),
        [],
    )
    return ResourceUnit(resources, count, Price("uakt", "1"))


def group(*units: ResourceUnit) -> GroupSpec:
    return GroupSpec("g", resources=list(units))


def order(number: int) -> OrderId:
    return OrderId("owner", number, 1, 1)


def node(name: str = "a", cpu: int = 4000, gpu: int = 0, model: str = "") -> Node:
    return Node(name, Amounts(cpu, 1000, 100, gpu), model)


async def test_room_is_sold_once_and_given_back() -> None:
    inventory = Inventory([node()])
    await inventory.reserve(order(1), group(unit(3)))
    await inventory.reserve(order(1), group(unit(3)))
    with pytest.raises(LeaseholdError) as refused:
        await inventory.reserve(order(2), group(unit(2)))
    assert (refused.value.code, refused.value.kind) == ("no_capacity", Kind.CONFLICT)
    assert "cpu" in refused.value.message or "together" in refused.value.message
    await inventory.release(order(1))
    await inventory.reserve(order(2), group(unit(2)))


async def test_what_is_leased_is_only_freed_by_the_end_of_the_lease() -> None:
    inventory = Inventory([node()])
    await inventory.reserve(order(1), group(unit(4)))
    inventory.allocate(order(1), group(unit(4)))
    await inventory.release(order(1))
    assert inventory.available()["a"].cpu == 0
    inventory.free(order(1))
    inventory.free(order(1))
    assert inventory.available()["a"].cpu == 4000


def test_after_a_restart_a_won_lease_has_its_room_again_even_if_it_no_longer_fits() -> None:
    inventory = Inventory([node(cpu=1000)])
    inventory.allocate(order(1), group(unit(4)))
    assert inventory.available()["a"].cpu == -3000
    assert inventory.to_dict()["leased"][0]["total"]["cpu"] == 4000


async def test_each_replica_fits_on_one_node_not_on_all_together() -> None:
    inventory = Inventory([node("a", 1500), node("b", 1500)])
    await inventory.reserve(order(1), group(unit(2)))
    placed = [name for name, _ in inventory.reservations[order(1)].placed]
    assert placed == ["a", "b"]
    with pytest.raises(LeaseholdError):
        await inventory.reserve(order(2), group(unit(1)))


async def test_all_replicas_of_a_unit_get_the_same_gpu() -> None:
    nodes = [node("a", 9000, 1, "a100"), node("b", 9000, 2, "h100"), node("c", 9000, 1, "a100")]
    inventory = Inventory(nodes)
    await inventory.reserve(order(1), group(unit(2, gpu=1)))
    assert {n for n, _ in inventory.reservations[order(1)].placed} == {"a", "c"}
    with pytest.raises(LeaseholdError):
        await inventory.reserve(order(2), group(unit(3, gpu=1)))


async def test_ram_volumes_are_memory_and_unknown_classes_do_not_fit() -> None:
    inventory = Inventory([node()])
    await inventory.reserve(order(1), group(unit(1, memory=900, storage=90, storage_class="ram")))
    assert inventory.available()["a"] == Amounts(3000, 10, 100, 0)
    with pytest.raises(LeaseholdError):
        await inventory.reserve(order(2), group(unit(storage_class="tape")))


async def test_a_paused_provider_offers_nothing() -> None:
    inventory = Inventory([node()])
    inventory.unavailable = "this provider is paused"
    with pytest.raises(LeaseholdError, match="paused"):
        await inventory.reserve(order(1), group(unit()))


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["reserve", "release", "allocate", "free"]),
            st.integers(0, 5),
            st.integers(1, 3),
        ),
        max_size=60,
    )
)
async def test_nothing_is_oversold_by_bids(story: list[tuple[str, int, int]]) -> None:
    inventory = Inventory([node("a", 3000), node("b", 2000)])
    for action, number, count in story:
        if action == "reserve":
            with contextlib.suppress(LeaseholdError):
                await inventory.reserve(order(number), group(unit(count)))
        elif action == "release":
            await inventory.release(order(number))
        elif action == "allocate" and order(number) in inventory.reservations:
            inventory.allocate(order(number), group(unit(count)))
        elif action == "free":
            inventory.free(order(number))
        assert all(left.cpu >= 0 for left in inventory.available().values())
    for number in range(6):
        inventory.free(order(number))
    assert inventory.available() == {"a": node("a", 3000).offered, "b": node("b", 2000).offered}


async def test_volumes_of_leases_that_are_over_take_room_too() -> None:
    made = 0
    inventory = Inventory([node()], lambda: made)
    lasting = unit(storage=30)
    storage = Storage(Val.of(30), "data", [Attribute("persistent", "true")])
    lasting.resource.storage.append(storage)
    inventory.allocate(order(1), group(lasting))
    assert inventory.available()["a"].storage == 40
    made = 30  # its volume is made: promised once, not twice
    assert inventory.available()["a"].storage == 40
    inventory.free(order(1))
    assert inventory.available()["a"].storage == 70, "the frozen volume stays"
    assert inventory.to_dict()["kept_volume_bytes"] == 30
    with pytest.raises(LeaseholdError, match="storage"):
        await inventory.reserve(order(2), group(unit(storage=80)))


async def test_addresses_are_leased_once() -> None:
    inventory = Inventory([node()])
    inventory.leased_ips = 1
    named = unit()
    resources = Resources(
        1, named.resource.cpu, named.resource.memory, named.resource.storage, named.resource.gpu,
        [Endpoint(LEASED_IP, 1), Endpoint(LEASED_IP, 1)],
    )  # fmt: skip
    asks = group(ResourceUnit(resources, 1, Price("uakt", "1")))
    await inventory.reserve(order(1), asks)
    with pytest.raises(LeaseholdError, match="addresses"):
        await inventory.reserve(order(2), asks)
    await inventory.release(order(1))
    await inventory.reserve(order(2), asks)

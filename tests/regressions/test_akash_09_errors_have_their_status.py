"""Defect 9: errors nobody had tagged came out as 500.

Seen failing with ``kind=Kind.INTERNAL`` in ``checks.refusal`` (422 becomes 500) and in
``hostnames.refusal`` (409 becomes 500).
"""

from __future__ import annotations

import json

import pytest

from leasehold.core.clock import VirtualClock
from leasehold.core.errors import LeaseholdError
from leasehold.manifest.testing import OTHER, OWNER, changed, simple, world


def test_every_refusal_has_a_status_of_its_own(virtual: VirtualClock) -> None:
    async def main() -> None:
        w = world(virtual, submit_budget_s=5.0, blocked_hosts=[".blocked.com"])
        async with w.up() as service:
            body = await w.deploy(simple())
            lease = await w.win()

            async def status(owner: str = OWNER, dseq: int = 1, sent: bytes = body) -> int:
                with pytest.raises(LeaseholdError) as caught:
                    await service.submit(owner, dseq, sent)
                return caught.value.kind.http

            assert await status(sent=b"[{") == 422
            assert await status(sent=b"[]") == 422
            groups = json.loads(body)
            groups[0]["services"][0]["resources"] = {"id": 0}
            assert await status(sent=json.dumps(groups).encode()) == 422  # resource shapes
            assert await status(sent=json.dumps(groups * 2).encode()) == 422  # group count
            groups = json.loads(body)
            groups[0]["name"] = "elsewhere"
            assert await status(sent=json.dumps(groups).encode()) == 422  # group name
            assert await status(dseq=2) == 404  # unknown deployment
            await w.deploy(simple(), dseq=3)
            assert await status(dseq=3) == 404  # no lease

            await service.submit(OWNER, 1, body)
            await w.deploy(simple(), dseq=4, owner=OTHER)
            await w.win(dseq=4, owner=OTHER)
            assert await status(owner=OTHER, dseq=4) == 409  # host name taken

            text = simple().replace("ahostname.com", "a.blocked.com")
            blocked = await w.deploy(text, dseq=5)
            await w.win(dseq=5)
            assert await status(dseq=5, sent=blocked) == 422
            w.market.failures = 10**9
            assert await status(dseq=6) == 503  # market trouble
            w.market.failures = 0
            assert lease
        assert await status() == 503  # not running

    virtual.run(main)


def test_a_message_says_what_consoles_look_for(virtual: VirtualClock) -> None:
    async def main() -> None:
        w = world(virtual)
        async with w.up() as service:
            body = changed(await w.deploy(simple()), count=5)
            await w.win()
            await w.update(body)
            with pytest.raises(LeaseholdError) as caught:
                await service.submit(OWNER, 1, body)
            assert "manifest cross-validation error" in caught.value.message

    virtual.run(main)

"""The adapters between the ledger and intake and gateway, against a real ledger over HTTP."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from leasehold.app.adapters import AccountKeys, ManifestMarket, MarketCertificates
from leasehold.core.clock import SystemClock
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.core.service import running
from leasehold.events.sqlite import SqliteLog
from leasehold.gateway.jwt import key_of, parse, verify
from leasehold.gateway.testing import certificate
from leasehold.manifest.testing import simple
from leasehold.market.accounts import Key, sign_token
from leasehold.market.client import LedgerClient
from leasehold.market.ledger.service import LedgerService
from leasehold.market.settings import MarketSettings
from leasehold.model import sdl
from leasehold.model.market import DeploymentId, LeaseId


async def test_the_ledger_answers_what_intake_and_gateway_ask(tmp_path: Path) -> None:
    clock = SystemClock()
    provider, tenant = Key.generate(), Key.generate()
    settings = MarketSettings(port=0, folder=str(tmp_path / "ledger"))
    genesis = LedgerService.default_genesis(
        settings,
        clock.now(),
        authority=provider.address,
        balances={provider.address: "10000000000", tenant.address: "10000000000"},
    )
    async with running(SqliteLog(tmp_path / "log.sqlite3", clock)) as log:
        ledger = LedgerService(log, clock, settings, genesis=genesis)
        async with running(ledger), LedgerClient(ledger.url, provider) as operator:
            await operator.set_provider("http://127.0.0.1:1")
            async with LedgerClient(ledger.url, tenant) as client:
                loaded = sdl.load(simple())
                id = await client.create_deployment(loaded.groups(), loaded.hash, "5000000")
                market = ManifestMarket(operator)
                found = await market.deployment(id)
                assert found.hash == loaded.hash.hex()
                assert [group.spec for group in found.groups] == loaded.groups()
                with pytest.raises(LeaseholdError) as caught:
                    await market.deployment(DeploymentId(tenant.address, id.dseq + 1))
                assert caught.value.kind is Kind.NOT_FOUND
                lease = LeaseId(id.owner, id.dseq, 1, 1, provider.address)
                await operator.create_bid(lease.order, "10", "5000000")
                assert (await market.leases(provider.address, id)).leases == []
                await client.create_lease(lease)
                for wanted in (id, None):
                    page = await market.leases(provider.address, wanted)
                    assert [(x.id, x.state) for x in page.leases] == [(lease, "active")]
                await operator.close_bid(lease, 10003)
                await operator.close_bid(lease, 10003)
                assert (await market.leases(provider.address, id)).leases == []

                jwk = await AccountKeys(operator).public_key(tenant.address)
                assert jwk is not None
                assert verify(parse(sign_token(tenant, clock.now())), key_of(jwk))
                assert await AccountKeys(operator).public_key(Key.generate().address) is None

                made = certificate(tenant.address, clock.now())
                pem = made.public_bytes(Encoding.PEM).decode()
                await client.create_certificate(pem)
                registry = MarketCertificates(operator)
                serial = str(made.serial_number)
                assert [(r.owner, r.serial) for r in await registry.all()] == [
                    (tenant.address, serial)
                ]
                registered = await registry.find(tenant.address, serial)
                assert registered is not None and registered.valid
                assert x509.load_pem_x509_certificate(registered.pem.encode()) == made
                await client.revoke_certificate(serial)
                assert await registry.all() == []
                revoked = await registry.find(tenant.address, serial)
                assert revoked is not None and not revoked.valid
                assert await registry.find(tenant.address, "1") is None

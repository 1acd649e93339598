"""Client certificates over real TLS: registered while the server runs, revoked while connected."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from leasehold.core.clock import SystemClock
from leasehold.core.service import running
from leasehold.gateway.certificates import Registered
from leasehold.gateway.server import Gateway
from leasehold.gateway.settings import GatewaySettings
from leasehold.manifest import testing
from leasehold.market.accounts import Key, sign_token

TENANT = Key.generate()


class Keys:
    async def public_key(self, address: str) -> dict[str, str] | None:
        return TENANT.public.jwk() if address == TENANT.address else None


class Register:
    """The market's certificates, in memory."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, str], Registered] = {}

    async def all(self) -> list[Registered]:
        return [found for found in self.found.values() if found.valid]

    async def find(self, owner: str, serial: str) -> Registered | None:
        return self.found.get((owner, serial))

    def add(self, pem: Path, *, valid: bool = True) -> None:
        certificate = x509.load_pem_x509_certificate(pem.read_bytes())
        owner = str(certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)
        serial = str(certificate.serial_number)
        self.found[owner, serial] = Registered(owner, serial, pem.read_text(), valid)


def make(folder: Path, name: str, *, usage: Any = None, days: int = 1, ip: bool = False) -> Path:
    """A self-signed certificate with its key in one PEM file."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=2))
        .not_valid_after(now + dt.timedelta(days=days))
        .add_extension(
            x509.ExtendedKeyUsage([usage or ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
    )
    if ip:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False
        )
    certificate = builder.sign(key, hashes.SHA256())
    path = folder / f"{name[:20]}-{certificate.serial_number % 10**6}.pem"
    path.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return path


@contextlib.asynccontextmanager
async def provider(folder: Path, register: Register) -> AsyncIterator[tuple[Any, Gateway]]:
    clock = SystemClock()
    server = make(folder, "localhost", usage=ExtendedKeyUsageOID.SERVER_AUTH, ip=True)
    w = testing.world(clock)
    async with w.up() as service:
        gateway = Gateway(
            GatewaySettings(
                port=0,
                tls_certificate=str(server),
                tls_key=str(server),
                certificates_refresh_s=0.05,
                certificate_cache_s=0.0,
            ),
            clock=clock,
            manifest=service,
            keys=Keys(),
            registry=register,
        )
        async with running(gateway):
            w.server_pem = server  # type: ignore[attr-defined]
            yield w, gateway


def client(w: Any, gateway: Gateway, pem: Path | None = None, **options: Any) -> httpx.AsyncClient:
    context = ssl.create_default_context(cafile=str(w.server_pem))
    if pem is not None:
        context.load_cert_chain(pem)
    assert gateway.server is not None
    url = f"https://localhost:{gateway.server.port}"
    return httpx.AsyncClient(base_url=url, verify=context, trust_env=False, **options)


async def until(check: Any) -> None:
    for _ in range(200):
        if await check():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("did not happen")


async def test_a_certificate_works_once_registered_and_not_after_it_is_revoked(
    tmp_path: Path,
) -> None:
    register = Register()
    async with provider(tmp_path, register) as (w, gateway):
        body = await w.deploy(testing.simple(), owner=TENANT.address)
        await w.win(owner=TENANT.address)
        mine = make(tmp_path, TENANT.address)
        with pytest.raises(httpx.TransportError):
            async with client(w, gateway, mine) as http:
                await http.get("/address")
        register.add(mine)

        async def works() -> bool:
            try:
                async with client(w, gateway, mine) as http:
                    return (await http.get("/address")).status_code == 200
            except httpx.TransportError:
                return False

        await until(works)
        async with client(w, gateway, mine) as http:
            sent = await http.put("/deployment/1/manifest", content=body)
            assert sent.status_code == 200
            token = {"Authorization": f"Bearer {sign_token(TENANT, time.time())}"}
            both = await http.put("/deployment/1/manifest", content=body, headers=token)
            assert (both.status_code, both.json()["code"]) == (400, "ambiguous_credentials")
            register.add(mine, valid=False)
            again = await http.put("/deployment/1/manifest", content=body)
            assert (again.status_code, again.json()["code"]) == (401, "client_certificate")


async def test_certificates_that_are_not_good_enough(tmp_path: Path) -> None:
    register = Register()
    other = make(tmp_path, TENANT.address)
    wrong_usage = make(tmp_path, TENANT.address, usage=ExtendedKeyUsageOID.SERVER_AUTH)
    old = make(tmp_path, TENANT.address, days=-1)
    for pem in (wrong_usage, old):
        register.add(pem)
    async with provider(tmp_path, register) as (w, gateway):
        for pem in (other, wrong_usage, old):
            with contextlib.suppress(httpx.TransportError):
                async with client(w, gateway, pem) as http:
                    answer = await http.get("/lease/1/1/1/status")
                    assert answer.status_code == 401


async def test_a_token_works_over_tls_without_a_certificate_and_tls_1_2_does_not(
    tmp_path: Path,
) -> None:
    async with provider(tmp_path, Register()) as (w, gateway):
        token = {"Authorization": f"Bearer {sign_token(TENANT, time.time())}"}
        async with client(w, gateway, headers=token) as http:
            assert (await http.get("/lease/1/1/1/status")).status_code == 404
        context = ssl.create_default_context(cafile=str(w.server_pem))
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        assert gateway.server is not None
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.open_connection("localhost", gateway.server.port, ssl=context)


async def test_headers_that_do_not_come_end_the_connection() -> None:
    async with running(Gateway(GatewaySettings(port=0, header_timeout_s=0.2))) as gateway:
        assert gateway.server is not None
        for start in (b"", b"GET /version HTTP/1.1\r\nHost:"):
            reader, writer = await asyncio.open_connection("127.0.0.1", gateway.server.port)
            writer.write(start)
            began = time.monotonic()
            assert await asyncio.wait_for(reader.read(), 5) == b""
            assert time.monotonic() - began < 3
            writer.close()

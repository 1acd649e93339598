"""TLS on the pings and on the streams, with certificates both ways."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from leasehold.core.service import running
from leasehold.dispatch.manager import Manager
from leasehold.dispatch.registry import ClientPing, Connectivity, WorkerState
from leasehold.dispatch.settings import DispatchSettings
from leasehold.dispatch.task import Call
from leasehold.dispatch.worker import Job, Reply, Worker


class Authority:
    """A certificate authority in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
        self.path = str(folder / f"ca-{id(self)}.pem")
        cert = self._sign(self.name, self.key.public_key(), ca=True)
        Path(self.path).write_bytes(cert.public_bytes(serialization.Encoding.PEM))

    def _sign(self, subject: x509.Name, public: Any, *, ca: bool) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(self.key, hashes.SHA256())
        )

    def issue(self, name: str) -> dict[str, str]:
        """Settings with a certificate of this authority."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        cert = self._sign(subject, key.public_key(), ca=False)
        cert_file, key_file = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        cert_file.write_bytes(cert.public_bytes(serialization.Encoding.PEM))
        key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return {"tls_cert": str(cert_file), "tls_key": str(key_file), "tls_ca": self.path}


async def echo(job: Job) -> AsyncIterator[Reply]:
    yield Reply("Echo", job.payload, final=True)


async def test_mutual_tls(tmp_path: Path) -> None:
    ours, theirs = Authority(tmp_path), Authority(tmp_path)
    base: dict[str, Any] = {
        "manager_port": 0, "worker_port": 0, "network": "n", "chain_id": "c", "token": "t",
    }  # fmt: skip
    manager_settings = DispatchSettings(**base, **ours.issue("manager"))
    async with running(Manager(settings=manager_settings)) as manager:
        assert manager.url.startswith("https://")
        worker_settings = DispatchSettings(**base, **ours.issue("worker"), managers=(manager.url,))
        async with running(Worker(settings=worker_settings, handlers={"Echo": echo})) as worker:
            await asyncio.wait_for(manager.wait_for_worker("n", "c"), 10)
            call = Call(network="n", chain_id="c", type="Echo", payload=b"x")
            assert (await manager.call(call))[0].payload == b"x"
            # A manager with a certificate of somebody else gets no stream.
            stranger = DispatchSettings(**base, **theirs.issue("stranger"))
            async with running(Manager(settings=stranger, http=False)) as other:
                ping = ClientPing("w", "n", "c", Connectivity("0.0.1", "grpc", worker.address))
                record = other.registry.ping(ping, "127.0.0.1")
                async with asyncio.timeout(10):
                    while record.state is not WorkerState.ERROR:
                        await asyncio.sleep(0.01)


@pytest.mark.parametrize("settings", [{}, {"token": "t"}])
async def test_a_plain_manager_cannot_reach_a_worker_with_tls(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    tls = Authority(tmp_path).issue("worker")
    mine = DispatchSettings(worker_port=0, managers=(), token="t", **tls)
    async with running(Worker(settings=mine, handlers={"Echo": echo})) as worker:
        plain = DispatchSettings(connect_timeout=2.0, **settings)
        async with running(Manager(settings=plain, http=False)) as manager:
            ping = ClientPing("w", "n", "c", Connectivity("0.0.1", "grpc", worker.address))
            record = manager.registry.ping(ping, "127.0.0.1")
            async with asyncio.timeout(10):
                while record.state is not WorkerState.ERROR:
                    await asyncio.sleep(0.01)

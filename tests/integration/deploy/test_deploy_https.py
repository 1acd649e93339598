"""HTTPS at ingress: certificates from files, and from a real ACME server (pebble)."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import shutil
import socket
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest_deploy import LEASE, Machine, eventually, group, service
from conftest_ingress import Request, Upstream, ask, cleared, proxy, self_signed, served

from leasehold.core.errors import LeaseholdError
from leasehold.core.service import running
from leasehold.deploy.ingress import certificates
from leasehold.deploy.ingress.certificates import Certificates, public
from leasehold.deploy.ingress.haproxy import Ingress
from leasehold.deploy.settings import DeploySettings


async def _ok(request: Request) -> None:
    await request.answer("proto " + str(b"x-forwarded-proto: https" in request.head.lower()))


async def test_files_are_served_and_followed_without_a_restart(tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    (files / "a.pem").write_text(self_signed("a.example", serial=11))
    (files / "b.pem").write_text("half a fi")
    upstream = Upstream(_ok)
    async with (
        cleared(tmp_path),
        proxy(tmp_path, tls_ports=(0,), redirect=True) as ingress,
        upstream.listening() as server,
    ):
        hosts = ["a.example", "b.example", "x.wild.example"]
        await ingress.point("t", hosts=hosts, servers=[server])
        kept = Certificates(ingress, tmp_path / "kept", files=files)
        await kept.look()
        port = ingress.tls_port
        assert await _serial(port, "a.example") == 11
        assert await served(port, "b.example") is None, "no other name's certificate is shown"
        assert await served(port, "nobody.example") is None
        # Replaced, added (as a wildcard, in two files), and taken away, while it serves.
        (files / "a.pem").write_text(self_signed("a.example", serial=12))
        (files / "b.pem").write_text(self_signed("b.example", serial=21))
        wild = self_signed("*.wild.example", serial=31)
        at = wild.index("-----BEGIN PRIVATE")
        (files / "w.crt").write_text(wild[:at])
        (files / "w.key").write_text(wild[at:])
        await kept.look()
        assert await _serial(port, "a.example") == 12
        assert await _serial(port, "b.example") == 21
        assert await _serial(port, "x.wild.example") == 31
        _, answer = await ask(
            port, "GET / HTTP/1.1|Host: a.example", tls=_trusting(), sni="a.example"
        )
        assert answer.endswith(b"proto True")
        status, answer = await ask(ingress.port, "GET /p?q=1 HTTP/1.1|Host: a.example")
        assert status == 308
        assert f"location: https://a.example:{port}/p?q=1".encode() in answer.lower()
        (files / "b.pem").unlink()
        await kept.look()
        assert await served(port, "b.example") is None
        assert await _serial(port, "a.example") == 12
        assert (await ask(ingress.port, "GET / HTTP/1.1|Host: b.example"))[0] == 200
        # A proxy that is started again has what it had.
        before = (await ingress.keeper.list())["ingress"]["pid"]
        os.kill(before, 9)

        async def again() -> bool:
            with contextlib.suppress(OSError):
                return await served(port, "a.example") is not None
            return False

        await eventually(again)
        assert await _serial(port, "a.example") == 12


async def _serial(port: int, host: str) -> int | None:
    found = await served(port, host)
    return found.serial_number if found else None


def _trusting() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def test_only_names_an_authority_can_know_are_asked_for() -> None:
    assert public("a.example")
    for name in ("localhost", "x.localhost", "host", "a.internal", "10.0.0.1", "a_b.example"):
        assert not public(name), name


# -- a real authority ------------------------------------------------------------------------------

BINDING = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"


@dataclass
class Pebble:
    directory: str
    root: str
    """URL of the certificate that everything it issues descends from."""
    ca_file: Path


def _free_port(kind: int = socket.SOCK_STREAM) -> int:
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextlib.asynccontextmanager
async def pebble(folder: Path, http_port: int, *, bound: bool = False) -> AsyncIterator[Pebble]:
    """Let's Encrypt's test server. It looks for proofs at ``http_port`` of 127.0.0.1, whatever the
    name; refuses every twentieth nonce and forgets authorizations, to keep clients honest."""
    folder.mkdir()
    acme, management, dns, admin = _free_port(), _free_port(), _free_port(), _free_port()
    ca_file = folder / "ca.pem"
    ca_file.write_text(self_signed("localhost"))
    settings: dict[str, object] = {
        "listenAddress": f"127.0.0.1:{acme}",
        "managementListenAddress": f"127.0.0.1:{management}",
        "certificate": str(ca_file),
        "privateKey": str(ca_file),
        "httpPort": http_port,
        "tlsPort": 1,
        "externalAccountBindingRequired": bound,
        "externalAccountMACKeys": {"kid-1": BINDING} if bound else {},
    }
    (folder / "pebble.json").write_text(json.dumps({"pebble": settings}))
    commands = [
        ["pebble-challtestsrv", "-defaultIPv4", "127.0.0.1", "-defaultIPv6", "",
         "-dns01", f"127.0.0.1:{dns}", "-http01", "", "-https01", "", "-tlsalpn01", "",
         "-management", f"127.0.0.1:{admin}"],
        ["pebble", "-strict", "-config", str(folder / "pebble.json"),
         "-dnsserver", f"127.0.0.1:{dns}"],
    ]  # fmt: skip
    assert shutil.which("pebble"), "scripts/setup --dev installs it"
    running = []
    with open(folder / "log", "wb") as log:
        try:
            for command in commands:
                started = await asyncio.create_subprocess_exec(
                    *command, stdout=log, stderr=log, env={"PEBBLE_VA_NOSLEEP": "1"}
                )
                running.append(started)
            await eventually(lambda: _listens(acme))
            yield Pebble(
                f"https://localhost:{acme}/dir", f"https://localhost:{management}/roots/0", ca_file
            )
        finally:
            for process in running:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def _authority(ingress: Ingress, folder: Path, server: Pebble, **more: object) -> Certificates:
    settings = DeploySettings(
        acme_directory=server.directory,
        acme_agree_to_terms=True,
        acme_contact="ops@provider.example",
        acme_ca_file=str(server.ca_file),
        **more,  # type: ignore[arg-type]
    )
    made = certificates.from_settings(ingress, folder, settings)
    assert made is not None
    return made


async def _root(server: Pebble) -> ssl.SSLContext:
    async with certificates.client(str(server.ca_file)) as http:
        return ssl.create_default_context(cadata=(await http.get(server.root)).text)


async def test_a_name_gets_its_certificate_from_an_authority_and_keeps_it_fresh(
    tmp_path: Path,
) -> None:
    upstream = Upstream(_ok)
    async with (
        cleared(tmp_path),
        proxy(tmp_path, tls_ports=(0,)) as ingress,
        pebble(tmp_path / "pebble", ingress.port) as server,
        upstream.listening() as replica,
    ):
        kept = _authority(ingress, tmp_path / "kept", server)
        async with certificates_running(kept):
            names = ["a.example", "b.example", "c.localhost"]
            await ingress.point("t", hosts=names, servers=[replica])
            await eventually(lambda: ingress.secure == {"a.example", "b.example"}, 30)
            root = await _root(server)
            for name in ("a.example", "b.example"):
                _, answer = await ask(
                    ingress.tls_port, f"GET / HTTP/1.1|Host: {name}", tls=root, sni=name
                )
                assert answer.endswith(b"proto True"), "trusted by who trusts the authority"
            assert kept.status(["a.example", "c.localhost"])["c.localhost"] == {"state": "none"}
            assert ingress.table.challenges == {}
            first = await _serial(ingress.tls_port, "a.example")
        # The next provider has them still and asks for nothing.
        kept = _authority(ingress, tmp_path / "kept", server)
        async with certificates_running(kept):
            assert not kept._asked
            assert await _serial(ingress.tls_port, "a.example") == first
            # With two thirds of its time gone it is renewed.
            now = kept.clock.now()
            old = dataclasses.replace(kept.issued["a.example"], begins=now - 900, ends=now + 90)
            kept.issued["a.example"] = old
            await kept.look()
            await eventually(lambda: kept.issued["a.example"] is not old, 30)

            async def renewed() -> bool:
                return await _serial(ingress.tls_port, "a.example") not in (first, None)

            await eventually(renewed)
        modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "kept").iterdir()}
        assert modes == {0o600}


@contextlib.asynccontextmanager
async def certificates_running(kept: Certificates) -> AsyncIterator[None]:
    async with running(kept):
        yield


async def test_a_name_that_does_not_lead_here_is_told_and_left_for_a_while(tmp_path: Path) -> None:
    async with (
        cleared(tmp_path),
        proxy(tmp_path, tls_ports=(0,)) as ingress,
        pebble(tmp_path / "pebble", _free_port()) as server,
    ):
        kept = _authority(ingress, tmp_path / "kept", server)
        async with certificates_running(kept):
            await ingress.point("t", hosts=["elsewhere.example"], servers=[])
            await eventually(lambda: "elsewhere.example" in kept.troubles, 30)
            said = kept.status(["elsewhere.example"])["elsewhere.example"]
            assert said["state"] == "none"
            assert "did not accept the name" in said["error"]
            assert said["again"] >= kept.clock.now() + 20
            await kept.look()
            assert not kept._asked, "it is not asked for again yet"


async def test_an_authority_may_want_its_customers_key(tmp_path: Path) -> None:
    account = tmp_path / "account"
    account.write_text(f"kid-1 {BINDING}\n")
    async with (
        cleared(tmp_path),
        proxy(tmp_path, tls_ports=(0,)) as ingress,
        pebble(tmp_path / "pebble", ingress.port, bound=True) as server,
    ):
        await ingress.point("t", hosts=["a.example"], servers=[])
        stranger = _authority(ingress, tmp_path / "stranger", server)
        async with certificates_running(stranger):
            await eventually(lambda: "a.example" in stranger.troubles, 30)
        customer = _authority(
            ingress, tmp_path / "customer", server, acme_account_file=str(account)
        )
        async with certificates_running(customer):
            await eventually(lambda: ingress.secure == {"a.example"}, 30)


def test_terms_are_the_operators_to_agree_to(tmp_path: Path) -> None:
    settings = DeploySettings(acme_directory="https://ca.example/dir")
    with pytest.raises(LeaseholdError, match="acme_agree_to_terms"):
        certificates.from_settings(None, tmp_path, settings)  # type: ignore[arg-type]


async def test_a_lease_is_served_by_https_and_its_status_says_so(
    machine: Machine, tmp_path: Path
) -> None:
    files = tmp_path / "files"
    files.mkdir()
    (files / "hello.pem").write_text(self_signed("hello.localhost"))
    async with machine.provider(
        ingress_certificates=str(files), ingress_tls_ports=(0,)
    ) as provider:
        await provider.up(group(service()))
        port = provider.deploy.ingress.tls_port
        await eventually(lambda: provider.deploy.ingress.secure == {"hello.localhost"})
        request = "GET / HTTP/1.1|Host: hello.localhost"
        _, answer = await ask(port, request, tls=_trusting(), sni="hello.localhost")
        assert answer.endswith(b"\r\n\r\nhello\n")
        status = await provider.deploy.status(LEASE)
        assert status["uris"] == [f"https://hello.localhost:{port}"]
        assert status["certificates"]["hello.localhost"]["source"] == "file"
        await provider.close()
        await provider.until("deploy.removed")
        assert provider.deploy.ingress.secure == set() or await _gone(provider.deploy.ingress)


async def _gone(ingress: Ingress) -> bool:
    await eventually(lambda: not ingress.secure)
    return True

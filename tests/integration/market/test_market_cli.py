"""The market's commands against a running ledger, as a tenant and a provider type them."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from leasehold.app.accounts import Accounts
from leasehold.app.running import Running, write_running
from leasehold.cli.frame import run
from leasehold.market.accounts import Key
from leasehold.market.settings import MarketSettings
from leasehold.market.testing import market

SDL = Path(__file__).parents[2] / "data/sdl/valid/v2.0/simple/sdl.yaml"

Cli = Callable[..., Any]


@pytest.fixture
def cli(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Cli]:
    """Runs a command line with ``--json`` and decodes its answer. A tenant ``acme``, a provider."""
    monkeypatch.setenv("LEASEHOLD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LEASEHOLD_STATE", str(tmp_path / "state"))
    tenant = Accounts(tmp_path / "home").new("acme", "ed25519")
    provider = Key.generate("ed25519")
    (tmp_path / "state").mkdir()
    provider.save(tmp_path / "state" / "provider.key")
    ready, stop = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        settings = MarketSettings(port=0, folder=str(tmp_path / "state" / "ledger"))
        async with market(tenant, provider, settings=settings, serve=True) as ledger:
            write_running(
                tmp_path / "state",
                Running(
                    pid=os.getpid(),
                    gateway="",
                    ledger=ledger.url,
                    ingress="",
                    ops="",
                    provider=provider.address,
                    state=str(tmp_path / "state"),
                ),
            )
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert ready.wait(20)

    def call(*argv: str, fails: str = "") -> Any:
        capsys.readouterr()
        code = run([*argv, "--json"])
        out = json.loads(capsys.readouterr().out)
        if fails:
            assert code != 0
            assert out["error"]["code"] == fails
        else:
            assert code == 0, out
        return out

    yield call
    loop.call_soon_threadsafe(stop.set)
    thread.join(20)


def sdl(tmp_path: Path) -> str:
    text = SDL.read_text()
    head, _, rest = text.partition("      signedBy:")
    file = tmp_path / "deploy.yaml"
    file.write_text(head + rest[rest.index("      pricing:") :])
    return str(file)


def test_from_an_sdl_file_to_a_lease_and_back(
    cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = cli("deployment", "create", sdl(tmp_path))
    assert made["dseq"] == 1
    cli("provider", "set", "https://p.example:8443", "-a", "region=us-west")
    assert [p["host_uri"] for p in cli("provider", "ls")] == ["https://p.example:8443"]
    order = cli("order", "ls", "--only", "open")[0]["id"]
    cli("bid", "accept", "1/1/1", "--auto", fails="no_bids")
    cli("bid", "create", order, "40.5")
    cli("bid", "create", order, "40.5", fails="bid_exists")
    assert cli("order", "show", "acme/1/1/1")["bids"][0]["price"] == "40.5"
    lease = cli("bid", "accept", "1/1/1", "--auto")["lease"]
    assert lease.startswith(order)
    shown = cli("deployment", "show", "acme/1")
    assert shown["leases"][0]["state"] == "active"
    assert shown["escrow"]["rate"] == "40.5"
    assert cli("provider", "show")["leases"][0]["id"] == lease
    cli("deployment", "deposit", "1", "250")
    assert run(["deployment", "show", "acme/1"]) == 0
    assert run(["bid", "ls"]) == 0
    assert run(["order", "show", "acme/1/1/1"]) == 0
    text = capsys.readouterr().out
    assert "acme/1/1/1" in text
    assert "5000250 uakt" in text
    assert "at most 50 uakt each" in text
    cli("bid", "close", "acme/1/1/1", "--reason", "10001", "--yes")
    assert cli("deployment", "show", "1")["groups"][0]["state"] == "paused"
    cli("deployment", "group", "start", "1/1")
    assert cli("order", "ls", "--only", "open")[0]["id"].endswith("/1/1/2")
    cli("deployment", "close", "1", fails="not_confirmed")
    cli("deployment", "close", "1", "--yes")
    cli("deployment", "close", "1", "-y", fails="deployment_closed")
    assert cli("deployment", "ls", "--only", "active") == []


def test_certificates(cli: Cli, tmp_path: Path) -> None:
    made = cli("cert", "new", str(tmp_path / "cert"))
    assert (tmp_path / "cert" / "client.key").stat().st_mode & 0o777 == 0o600
    assert cli("cert", "ls")[0]["state"] == "valid"
    cli("cert", "publish", str(tmp_path / "cert" / "client.crt"), fails="certificate_exists")
    cli("cert", "revoke", made["serial"], "--yes")
    cli("cert", "revoke", made["serial"], "--yes", fails="certificate_revoked")
    assert cli("cert", "ls", "--owner", "acme")[0]["state"] == "revoked"
    cli("cert", "new", str(tmp_path / "cert"), fails="key_exists")


def test_sending_coins_opens_an_account(cli: Cli, tmp_path: Path) -> None:
    friend = Accounts(tmp_path / "home").new("friend", "ed25519")
    sent = cli("account", "send", "friend", "12.5", "--as", "acme")
    assert sent["to"] == friend.address
    assert cli("account", "show", "friend")["balance"] == {"uakt": "12.5"}
    cli("account", "send", "acme", "13", "--as", "friend", fails="insufficient_funds")


def test_audits(cli: Cli) -> None:
    cli("provider", "set", "https://p.example:8443", "-a", "region=us-west")
    address = cli("provider", "ls")[0]["id"]
    cli("provider", "audit", address, "-a", "region=us-west")
    assert cli("provider", "show")["audits"][0]["attributes"][0]["key"] == "region"
    cli("provider", "audit", address, "--revoke")
    assert cli("provider", "show")["audits"][0]["attributes"] == []
    cli("provider", "set", "https://x", "-a", "novalue", fails="bad_attribute")


def test_the_ledger_is_exported_replayed_and_taken_over(cli: Cli, tmp_path: Path) -> None:
    cli("deployment", "create", sdl(tmp_path))
    assert cli("ledger", "status")["counts"]["deployments"] == 1
    cli("ledger", "export", str(tmp_path / "state.jsonl"))
    cli("ledger", "export", str(tmp_path / "history.jsonl"), "--history")
    live = cli("ledger", "replay")
    assert live["blocks"] == 1
    assert cli("ledger", "replay", str(tmp_path / "history.jsonl")) == live
    elsewhere = str(tmp_path / "elsewhere")
    taken = cli("ledger", "import", str(tmp_path / "state.jsonl"), "--state", elsewhere)
    assert taken["height"] == 1
    (tmp_path / "state.jsonl").write_bytes(
        (tmp_path / "state.jsonl").read_bytes().replace(b'"active"', b'"closed"')
    )
    cli("ledger", "import", str(tmp_path / "state.jsonl"), fails="bad_export")

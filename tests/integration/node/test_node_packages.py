"""The four shipped packages, doing their work on a real node."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from leasehold.core.errors import LeaseholdError
from leasehold.events.event import Entity, NewEvent, WillBlock
from leasehold.events.log import ANY
from leasehold.events.memory import MemoryLog
from leasehold.model.events.lease import ManifestReceived, WorkloadHealthy
from leasehold.model.events.market import LeaseClosed, LeaseWon, Price
from leasehold.model.market import LeaseId
from leasehold.node import trust
from leasehold.node.identity import peer_id
from leasehold.node.log_market import LogMarket
from leasehold.node.service import Node
from leasehold.node.settings import AquaIpfs, Decider, SystemServices
from leasehold.node.testing import node_in, until

KUBO = os.environ.get("LEASEHOLD_TEST_KUBO") or shutil.which("ipfs")
"""A kubo to test against; no package registry carries its program."""


async def test_all_four_come_up_and_stay(tmp_path: Path) -> None:
    async with node_in(tmp_path, system_services=SystemServices(), keep=True) as node:
        assert {r.status for r in node.deployer.results.values()} == {"ready"}
        assert set(node.versions()) == {
            "node", "spell", "aqua_ipfs", "trust_graph", "registry", "decider",
        }  # fmt: skip
        weights = (await node.call("trust-graph", "get_weights", []))["weights"]
        assert sorted(weights.values()) == [8] * 8 + [16] * 4 + [32]
        listed = {s["name"]: s["version"] for s in node.list_instances(spells=False)}
        assert listed["registry"] == "1.0.0"
    async with node_in(tmp_path, system_services=SystemServices()) as node:
        assert {r.status for r in node.deployer.results.values()} == {"unchanged"}


async def test_trust_graph(tmp_path: Path) -> None:
    keys = [Ed25519PrivateKey.generate() for _ in range(3)]
    ids = [peer_id(key.public_key()) for key in keys]
    now = int(time.time())

    def link(issuer: int, peer: int, until: int = now + 1000) -> trust.Link:
        return trust.issue(keys[issuer], ids[peer], issued_at=now, expires_at=until)

    services = SystemServices(enable=("trust-graph",))
    async with node_in(tmp_path, system_services=services, keep=True) as node:

        async def call(function: str, *args: Any, caller: str = "") -> dict[str, Any]:
            who = caller or node.principals.host
            reply: dict[str, Any] = await node.call("trust-graph", function, list(args), caller=who)
            return reply

        chain = [link(0, 0), link(0, 1), link(1, 2)]
        assert "no trusted root" in (await call("insert_cert", chain, now))["error"]
        assert "only the host" in (await call("set_root", ids[0], 3, caller="x"))["error"]
        assert (await call("set_root", ids[0], 3))["success"]
        assert (await call("insert_cert", chain, now, caller="anybody"))["success"]
        old = [link(0, 0), link(0, 1, now + 1)]
        assert (await call("insert_cert", old, now + 5))["expired"] is True
        assert (await call("get_weight", ids[2]))["weight"] == 2
        assert (await call("get_all_certs", ids[2]))["certs"] == [chain]
        assert (await call("revoke", trust.revoke(keys[0], ids[1], at=now + 1)))["success"]
        assert (await call("get_weight", ids[2]))["weight"] == 0
        assert (await call("get_weight", ids[0]))["weight"] == 8
        os.kill(node.supervisor.states[node.find("trust-graph", spell=False).id].pid, 9)
        assert (await call("get_weight", ids[2]))["weight"] == 0  # Kept over a restart.
        assert node.gate.accepts("anybody")  # Trust is not enforced.
    await _close(tmp_path)


async def _close(root: Path) -> None:
    async with node_in(root):
        pass


class Neighbourhood:
    """Other nodes of this process, by peer id."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}

    async def peers(self) -> list[str]:
        return [*self.nodes, "12D3KooWNobodyHome"]

    async def call(self, peer: str, service: str, function: str, args: list[Any]) -> Any:
        if peer not in self.nodes:
            raise LeaseholdError("unreachable", f"{peer} does not answer")
        return await self.nodes[peer].call(service, function, args)


async def test_registry_finds_expires_renews_and_copies(tmp_path: Path) -> None:
    services = SystemServices(enable=("registry",))
    near = Neighbourhood()
    async with (
        node_in(tmp_path / "a", system_services=services) as a,
        node_in(tmp_path / "b", system_services=services, neighbours=near) as b,
    ):
        near.nodes[a.principals.host] = a

        async def call(node: Node, function: str, *args: Any) -> dict[str, Any]:
            reply: dict[str, Any] = await node.call(
                "registry", function, list(args), caller=node.principals.host
            )
            assert reply["success"], reply
            return reply

        resource = (await call(a, "create_resource", "managers"))["resource_id"]
        await call(a, "put_record", resource, "http://10.0.0.1:8085")
        await call(a, "put_record", resource, "http://10.0.0.2:8085", "other", 7, 1)
        found = (await call(a, "find", "managers"))["records"]
        assert [r["value"][-13:] for r in found] == ["10.0.0.2:8085", "10.0.0.1:8085"]
        now = int(time.time())
        assert (await call(a, "expire", now + 10))["removed"] == 1
        assert (await call(a, "renew", now + 10))["renewed"] == 1
        spell = b.find("registry-spell", spell=True).id
        await until(lambda: not b.spells.is_running(spell))
        outcome = await b.run_spell("registry-spell")
        # One neighbour is down: said, and tried again next time; the other's records are here.
        assert "12D3KooWNobodyHome" in str(await b.spells.use(spell, lambda s: s.errors()))
        assert await b.spells.use(spell, lambda s: s.get_u32("last_replicate")) is None
        copied = (await call(b, "find", "managers"))["records"]
        assert "http://10.0.0.1:8085" in [r["value"] for r in copied]
        assert outcome.outcome == "error"
        junk = [{}, {"label": "x"}, {"label": "x" * 999, "owner": "o", "peer": "p", "value": "v",
                "issued_at": now, "expires_at": now + 5}]  # fmt: skip
        assert (await call(b, "merge", junk, now))["refused"] == 3


LEASE = LeaseId("acme", 1, 1, 1, "prov")


async def test_decider_follows_the_log(tmp_path: Path) -> None:
    log = MemoryLog()
    entity = Entity("lease", str(LEASE))

    async def happened(*payloads: Any) -> None:
        await log.append(entity, ANY, [NewEvent.of(payload) for payload in payloads])

    async def published(topic: str) -> list[dict[str, Any]]:
        return [
            event.payload.data
            async for event in log.read_all()
            if event.type == "spell.published" and event.payload.topic == topic
        ]

    await happened(LeaseWon(id=LEASE, price=Price("u", "1"), group={}, height=1))
    services = SystemServices(enable=("decider",), decider=Decider(worker_period_sec=1))
    async with node_in(
        tmp_path, system_services=services, log=log, market=LogMarket(log, "prov")
    ) as node:

        async def status(wanted: str) -> None:
            async def seen() -> bool:
                checks = await published("lease.check")
                return bool(checks) and checks[-1]["status"] == wanted

            await until(seen)

        await status("waiting")
        assert list(node.journal.scopes) == [f"worker:{LEASE}"]
        await happened(ManifestReceived(id=LEASE, hash="aa", group={}))
        await status("missing")
        await happened(WorkloadHealthy(id=LEASE, hash="aa"))
        await status("healthy")
        await happened(ManifestReceived(id=LEASE, hash="bb", group={}))
        await status("drifted")
        await happened(LeaseClosed(id=LEASE, height=9))
        decider = node.find("decider", spell=True).id
        await until(lambda: not node.spells.is_running(decider))
        await node.run_spell("decider")
        assert not node.journal.scopes
        assert (await published("decider"))[-1] == {"leases": 1, "workers": 0}
        # Findings are published when they change, not at every run.
        checks = [check["status"] for check in await published("lease.check")]
        assert checks == list(dict.fromkeys(checks))
    async for event in log.read(entity):
        assert not isinstance(event, WillBlock)


class Kubo(BaseHTTPRequestHandler):
    """What kubo's RPC reference says of the few calls used here."""

    blobs: dict[str, bytes] = {}

    def do_POST(self) -> None:
        url = urlparse(self.path)
        query = {k: v[0] for k, v in parse_qs(url.query).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        match url.path:
            case "/api/v0/add":
                kind = self.headers["Content-Type"]
                assert kind.startswith("multipart/form-data; boundary=")
                mark = kind.partition("boundary=")[2].encode()
                data = body.split(b"\r\n\r\n", 1)[1].rpartition(b"\r\n--" + mark)[0]
                cid = f"bafk{len(self.blobs)}"
                self.blobs[cid] = data
                self.reply(200, json.dumps({"Name": "file", "Hash": cid, "Size": "1"}).encode())
            case "/api/v0/cat" if query["arg"] in self.blobs:
                self.reply(200, self.blobs[query["arg"]])
            case "/api/v0/block/stat" if query["arg"] in self.blobs:
                self.reply(200, b'{"Key": "x", "Size": 1}')
            case "/api/v0/id":
                self.reply(200, b'{"ID": "12D3KooWKubo"}')
            case _:
                text = "block was not found locally (offline): ipld: could not find x"
                self.reply(500, json.dumps({"Message": text, "Code": 0, "Type": "error"}).encode())

    def reply(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def double() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Kubo)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"/ip4/127.0.0.1/tcp/{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[str]:
    """The API address of a real IPFS daemon without peers: kubo where there is one, else js-ipfs,
    which ``scripts/interop-setup ipfs`` installs and which offers the same API."""
    serve = _kubo(KUBO, tmp_path / "ipfs") if KUBO else _js_ipfs(tmp_path / "ipfs")
    with serve as address:
        yield address


@contextlib.contextmanager
def _kubo(program: str, repo: Path) -> Iterator[str]:
    env = {**os.environ, "IPFS_PATH": str(repo)}

    def run(*args: str) -> None:
        subprocess.run([program, *args], env=env, check=True, capture_output=True)

    run("init", "--profile=test")
    run("config", "Addresses.API", "/ip4/127.0.0.1/tcp/0")
    run("config", "Addresses.Gateway", "/ip4/127.0.0.1/tcp/0")
    with _running([program, "daemon", "--offline"], env) as lines:
        next(line for line in lines if b"Daemon is ready" in line)
        yield (repo / "api").read_text().strip()


@contextlib.contextmanager
def _js_ipfs(repo: Path) -> Iterator[str]:
    root = Path(__file__).parents[3]
    subprocess.run([root / "scripts" / "interop-setup", "ipfs"], check=True, timeout=300)
    source = root / "tests" / "interop" / "ipfs"
    names = ("package.json", "package-lock.json")
    key = hashlib.sha256(b"".join((source / n).read_bytes() for n in names)).hexdigest()[:12]
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    cache = Path(os.environ.get("LEASEHOLD_INTEROP_CACHE", home / "leasehold" / "interop"))
    program = cache / f"ipfs-{key}" / "daemon.mjs"
    shutil.copyfile(source / "daemon.mjs", program)  # Modules are looked up beside the file.
    with _running(["node", str(program), str(repo)]) as lines:
        yield json.loads(next(lines))["api"]


@contextlib.contextmanager
def _running(command: list[str], env: dict[str, str] | None = None) -> Iterator[Iterator[bytes]]:
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        yield iter(process.stdout)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("which", ["double", "daemon"])
async def test_aqua_ipfs(tmp_path: Path, which: str, request: pytest.FixtureRequest) -> None:
    address = request.getfixturevalue(which)
    config = AquaIpfs(local_api_multiaddr=address, external_api_multiaddr="/dns4/me/tcp/5001")
    services = SystemServices(enable=("aqua-ipfs",), aqua_ipfs=config)
    async with node_in(tmp_path / "node", system_services=services) as node:

        async def call(function: str, *args: Any) -> dict[str, Any]:
            reply: dict[str, Any] = await node.call(
                "aqua-ipfs", function, list(args), caller=node.principals.host
            )
            return reply

        content = os.urandom(100_000)
        put = await call("put", base64.b64encode(content).decode())
        assert put["success"], put
        got = await call("get", put["cid"])
        assert base64.b64decode(got["content"]) == content
        assert (await call("exists", put["cid"]))["exists"] is True
        other = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy"
        if which == "double" or KUBO:  # js-ipfs goes on looking, for offline=true as well.
            assert (await call("exists", other))["exists"] is False
        assert (await call("get_peer_id"))["peer_id"].startswith("12D3KooW")
        assert (await call("get_external_api_multiaddr"))["multiaddr"] == "/dns4/me/tcp/5001"
        assert "no API address" in (await call("set_local_api_multiaddr", "nonsense"))["error"]
        assert "not base64" in (await call("put", "!"))["error"]
        await call("set_local_api_multiaddr", "/ip4/127.0.0.1/tcp/1")
        assert "does not answer" in (await call("get", put["cid"]))["error"]


async def test_a_changed_address_reinstalls_aqua_ipfs(tmp_path: Path) -> None:
    def services(port: int) -> SystemServices:
        config = AquaIpfs(local_api_multiaddr=f"/ip4/127.0.0.1/tcp/{port}")
        return SystemServices(enable=("aqua-ipfs",), aqua_ipfs=config)

    async with node_in(tmp_path, system_services=services(1), keep=True) as node:
        before = node.find("aqua-ipfs", spell=False).id
    async with node_in(tmp_path, system_services=services(2)) as node:
        assert node.deployer.results["aqua-ipfs"].changes == ["replaced aqua-ipfs", "initialised"]
        assert node.find("aqua-ipfs", spell=False).id != before
        reply = await node.call("aqua-ipfs", "get_local_api_multiaddr", [])
        assert reply["multiaddr"] == "/ip4/127.0.0.1/tcp/2"

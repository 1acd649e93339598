"""Trust enforced: image peers and workers are accepted by what trust-graph says, for real."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path

from leasehold.app.node import make_gate, signed_by, tell_of_peers
from leasehold.core.clock import SystemClock
from leasehold.core.errors import LeaseholdError
from leasehold.core.service import running
from leasehold.dispatch.manager import Manager
from leasehold.dispatch.registry import WorkerState
from leasehold.dispatch.settings import DispatchSettings
from leasehold.dispatch.worker import Worker
from leasehold.node import trust
from leasehold.node.bundled import certificates
from leasehold.node.distro import PackageDistro, SpellDistro
from leasehold.node.identity import load_or_create, peer_id
from leasehold.node.settings import SystemServices, TrustGraph
from leasehold.node.spells.trigger import ConnectionConfig, TriggerConfig
from leasehold.node.testing import node_in, until
from leasehold.p2p.host import Host
from leasehold.p2p.keys import KeyPair
from leasehold.p2p.settings import P2PSettings

NEAR = P2PSettings(listen=("/ip4/127.0.0.1/tcp/0",))
WATCH = PackageDistro(
    name="watch",
    spells=(
        SpellDistro(
            name="watch",
            script="print(trigger['peer'][0]['connected'], trigger['peer'][0]['peer_id'])",
            trigger=TriggerConfig(
                connections=ConnectionConfig(connect=True, disconnect=True), overlap="allow"
            ),
        ),
    ),
)


def trusting(folder: Path, *peers: str) -> SystemServices:
    """Settings by which only ``peers`` are trusted, by a root of our own."""
    root, now = load_or_create(folder / "root.key"), int(time.time())
    own = peer_id(root.public_key())
    first = trust.issue(root, own, issued_at=now, expires_at=now + 1000)
    file = folder / "certificates.json"
    chains = [[first, trust.issue(root, p, issued_at=now, expires_at=now + 1000)] for p in peers]
    file.write_text(json.dumps({"roots": {own: 2}, "certificates": chains}))
    graph = TrustGraph(enforce=True, certificates=str(file), replace_bundle=True)
    return SystemServices(enable=("trust-graph",), trust_graph=graph)


async def test_only_trusted_image_peers_connect_and_spells_hear_of_them(tmp_path: Path) -> None:
    friend, stranger = KeyPair.generate(), KeyPair.generate()
    services = trusting(tmp_path, str(friend.peer_id))
    assert list(await certificates(services).weights())[-1:] == [str(friend.peer_id)]
    async with node_in(tmp_path / "node", WATCH, system_services=services) as node:
        await until(lambda: node.gate.accepts(str(friend.peer_id)))
        host = Host(KeyPair.generate(), NEAR, allow=lambda peer: node.gate.accepts(str(peer)))
        tell_of_peers(node, host)
        async with running(host), running(Host(friend, NEAR)) as near:
            await near.connect(host.peer_id, host.addresses)
            async with running(Host(stranger, NEAR)) as far:
                with contextlib.suppress(LeaseholdError):
                    await far.connect(host.peer_id, host.addresses)
                await until(lambda: far.connection(host.peer_id) is None)
            assert host.connection(stranger.peer_id) is None
            assert host.connection(friend.peer_id) is not None
        spell = node.find("watch", spell=True).id

        async def heard() -> bool:
            lines = [row["text"] for row in await node.spells.use(spell, lambda s: s.logs())]
            return sorted(lines) == [f"{word} {friend.peer_id}" for word in ("False", "True")]

        await until(heard)


async def test_only_trusted_workers_are_registered(tmp_path: Path) -> None:
    clock = SystemClock()
    own = tmp_path / "node" / "host.key"
    own.parent.mkdir()
    known, other = tmp_path / "known.key", tmp_path / "other.key"
    services = trusting(tmp_path, peer_id(load_or_create(known).public_key()))
    gate = make_gate(own, services, clock)
    settings = DispatchSettings(
        manager_port=0, worker_port=0, ping_interval=0.1, network="n", chain_id="c"
    )
    async with node_in(tmp_path / "node", system_services=services, gate=gate) as node:
        assert node.gate.own == node.principals.host
        async with running(Manager(clock, settings, admit=gate.check_worker)) as manager:
            assert manager.http is not None
            here = DispatchSettings(
                manager_port=0, worker_port=0, ping_interval=0.1, network="n", chain_id="c",
                managers=(f"127.0.0.1:{manager.http.port}",),
            )  # fmt: skip
            workers = [
                Worker(clock, here, sign=signed_by(key, clock) if key else None)
                for key in (own, known, other, None)
            ]
            async with contextlib.AsyncExitStack() as stack:
                for worker in workers:
                    await stack.enter_async_context(running(worker))

                def online() -> set[str]:
                    found = manager.registry.workers.values()
                    return {w.id for w in found if w.state is WorkerState.ONLINE}

                await until(lambda: online() == {workers[0].id, workers[1].id})
                # The node's own worker and the one somebody vouches for; the others were refused.
                assert set(manager.registry.workers) == {workers[0].id, workers[1].id}

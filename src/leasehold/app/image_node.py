"""The image system alone: ``leasehold node --only images``, beside somebody else's engine.

Mirror, transfer and coordination of one node, and its ops endpoint. Who else is in the fleet comes
from ``images.members_file``; without one this node is alone and still worth having: a cache that
outlives its registry.
"""

from __future__ import annotations

import socket
from pathlib import Path

from leasehold.app.settings import Settings
from leasehold.core.clock import Clock
from leasehold.core.ops import Ops
from leasehold.core.service import Service, running
from leasehold.core.web import HttpServer
from leasehold.images.membership import FileMembers, Members
from leasehold.images.node import ImagesNode
from leasehold.node.bundled import certificates
from leasehold.node.gate import TrustGate
from leasehold.p2p.multiaddr import Multiaddr


class ImagesRole(Service):
    """One node's image system, kept in ``folder``/images."""

    def __init__(self, folder: Path, settings: Settings, *, clock: Clock | None = None) -> None:
        super().__init__("images", clock=clock)
        self.folder = folder
        self.settings = settings

    async def start(self) -> None:
        settings = self.settings.images
        root = self.folder / "images"
        root.mkdir(parents=True, exist_ok=True)
        members: Members | None = None
        if settings.kubernetes_pod:
            members = self._pods()
        elif settings.members_file:
            members = FileMembers(Path(settings.members_file), clock=self.clock)
        # No trust-graph runs here: the files it would be given are asked directly.
        trusted = self.settings.system_services
        gate = TrustGate(
            clock=self.clock,
            enforce=trusted.trust_graph.enforce,
            weights=certificates(trusted).weights,
        )
        self.node = ImagesNode(
            root,
            settings.node_name or socket.gethostname(),
            clock=self.clock,
            settings=settings,
            p2p=self.settings.p2p,
            coord=self.settings.coordination,
            members=members,
            bootstrap=[Multiaddr.parse(seed) for seed in settings.seeds],
            fleet_secret=_secret(settings.fleet_secret_file),
            zone=settings.zone,
            allow=lambda peer: gate.accepts(str(peer), "image peer"),
        )
        # Its store is asked every few seconds; a store that does not answer is "not ready".
        ops = Ops(self.settings.ops, clock=self.clock)
        ops.add_check("images", self._unready)
        for service in (gate, ops, self.node, self._socket()):
            await self.resources.enter_async_context(running(service))

    def _socket(self) -> HttpServer:
        """Answers ``leasehold images`` on this machine; who can open the socket is the operator."""
        from litestar import Litestar
        from litestar.datastructures import State

        from leasehold.gateway.errors import HANDLERS
        from leasehold.gateway.images import routes

        app = Litestar(
            routes(lambda: self.node.images),
            exception_handlers=HANDLERS,
            openapi_config=None,
            state=State({"auth": _Anybody()}),
            logging_config=None,
        )
        return HttpServer(app, path=self.folder / "images.sock", name="images", clock=self.clock)

    def _pods(self) -> Members:
        from leasehold.images.kubernetes import ApiServer, KubernetesMembers

        settings = self.settings.images
        labels = dict(
            pair.strip().split("=", 1)
            for pair in settings.kubernetes_labels.split(",")
            if "=" in pair
        )
        api = ApiServer(
            settings.kubernetes_namespace,
            settings.kubernetes_pod,
            labels,
            kubeconfig=settings.kubernetes_config,
        )
        return KubernetesMembers(api, settings.kubernetes_pod, clock=self.clock)

    def _unready(self) -> str | None:
        reasons = self.node.not_ready()
        if self.node.images.unready:
            reasons.append(self.node.images.unready)
        return "; ".join(reasons) or None


class _Anybody:
    """Who got this far is the operator: the socket is his alone (mode 0600)."""

    def is_operator(self, _connection: object) -> bool:
        return True


def _secret(path: str) -> bytes:
    return Path(path).read_bytes().strip() if path else b""

"""The image system of one node in a fleet: inside a provider, or alone.

``leasehold up`` runs it when its settings tell of a fleet; ``leasehold node --only images`` always,
beside somebody else's engine. Who else there is comes from a file, from the pods of a cluster, or
from the nodes' own announcements. A node that is alone is still worth having: a cache that outlives
its registry.
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
from leasehold.images.settings import ImagesSettings
from leasehold.node.bundled import certificates
from leasehold.node.gate import TrustGate
from leasehold.p2p.multiaddr import Multiaddr


def in_fleet(settings: ImagesSettings) -> bool:
    """Whether a provider shares images with other nodes."""
    return bool(
        settings.fleet or settings.members_file or settings.kubernetes_pod or settings.seeds
    )


def images_node(root: Path, settings: Settings, gate: TrustGate, clock: Clock) -> ImagesNode:
    """One node of the fleet that the settings tell of, kept in ``root``."""
    root.mkdir(parents=True, exist_ok=True)
    images = settings.images
    members: Members | None = None
    if images.kubernetes_pod:
        members = _pods(images, clock)
    elif images.members_file:
        members = FileMembers(Path(images.members_file), clock=clock)
    return ImagesNode(
        root,
        images.node_name or socket.gethostname(),
        clock=clock,
        settings=images,
        p2p=settings.p2p,
        coord=settings.coordination,
        members=members,
        bootstrap=[Multiaddr.parse(seed) for seed in images.seeds],
        fleet_secret=_secret(images.fleet_secret_file),
        zone=images.zone,
        allow=lambda peer: gate.accepts(str(peer), "image peer"),
    )


def _pods(settings: ImagesSettings, clock: Clock) -> Members:
    from leasehold.images.kubernetes import ApiServer, KubernetesMembers

    labels = dict(
        pair.strip().split("=", 1) for pair in settings.kubernetes_labels.split(",") if "=" in pair
    )
    api = ApiServer(
        settings.kubernetes_namespace,
        settings.kubernetes_pod,
        labels,
        kubeconfig=settings.kubernetes_config,
    )
    return KubernetesMembers(api, settings.kubernetes_pod, clock=clock)


class ImagesRole(Service):
    """One node's image system, kept in ``folder``/images."""

    def __init__(self, folder: Path, settings: Settings, *, clock: Clock | None = None) -> None:
        super().__init__("images", clock=clock)
        self.folder = folder
        self.settings = settings

    async def start(self) -> None:
        # No trust-graph runs here: the files it would be given are asked directly.
        trusted = self.settings.system_services
        gate = TrustGate(
            clock=self.clock,
            enforce=trusted.trust_graph.enforce,
            weights=certificates(trusted).weights,
        )
        self.node = images_node(self.folder / "images", self.settings, gate, self.clock)
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

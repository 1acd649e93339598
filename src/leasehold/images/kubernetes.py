"""Members from a Kubernetes cluster: the pods of a DaemonSet, by what they say of themselves.

Each agent writes where it listens into annotations of its own pod (the original's names, so both
kinds of agents can share a fleet), and follows all pods with its label and the zones of the nodes.
Two pictures come out of that: ``view`` has the pods that are ready, among which a digest's puller
is elected; ``known`` has every running pod that announced itself, ready or not, to find one another
by (else nobody would ever become ready).

Pods and nodes are listed and then watched from the list's version; whatever breaks that is waited
out, 1 s doubling to 30 s, and begins with a new list. An API server that does not answer changes no
picture: *unknown is not gone*.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator, Mapping
from typing import Any, Protocol

from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.core.logs import get_logger
from leasehold.images.membership import Member, Members, View

PEER_ID = "gantry.io/peer-id"
ADDRESSES = "gantry.io/p2p-addrs"
"""Comma-separated multiaddrs, each ending in ``/p2p/<peer id>``."""

TRANSFER = "gantry.io/transfer-addr"
ZONE = "topology.kubernetes.io/zone"

GATHER = 0.25
"""Seconds changes are gathered for before a new view is made of them."""

RETRY_FIRST, RETRY_LAST = 1.0, 30.0

Object = Mapping[str, Any]

log = get_logger(__name__)


class Cluster(Protocol):
    """The API server (:class:`ApiServer`, or a test's). Any exception means: try again later."""

    async def list(self, kind: str) -> tuple[list[Object], str]:
        """The objects of a kind, ``pods`` or ``nodes``, and the version to watch from."""
        ...

    def watch(self, kind: str, version: str) -> AsyncIterator[tuple[str, Object]]:
        """``(ADDED | MODIFIED | DELETED, object)`` until the server ends it."""
        ...

    async def annotate(self, annotations: Mapping[str, str]) -> None:
        """Set annotations of our own pod."""
        ...

    async def close(self) -> None: ...


class KubernetesMembers(Members):
    """``pod`` is our own pod's name, to tell its own announcement."""

    def __init__(self, cluster: Cluster, pod: str, *, clock: Clock | None = None) -> None:
        super().__init__(name="kubernetes members", clock=clock)
        self.pod = pod
        self.cluster = cluster
        self._everyone = View()
        self._objects: dict[str, dict[str, Object]] = {"pods": {}, "nodes": {}}
        self._listed: set[str] = set()
        self._dirty = False
        self._bad: set[str] = set()
        self._own: Member | None = None
        self._announced = False
        self._rng = random.Random()

    async def start(self) -> None:
        self.resources.push_async_callback(self.cluster.close)
        for kind in ("nodes", "pods"):
            self.spawn(self._follow(kind), name=f"follow {kind}")
        self.spawn(self._gather(), name="gather")

    @property
    def known(self) -> View:
        return self._everyone

    def announce_own(self, member: Member) -> None:
        """Write it into our pod's annotations, for as long as that takes."""
        self._own = member
        self.spawn(self._announce(member), name="announce")

    def unready(self) -> list[str]:
        reasons = []
        if self._listed != {"pods", "nodes"}:
            reasons.append("members not synced")
        if not self._announced:
            reasons.append("announce pending")
        running = sum(1 for pod in self._objects["pods"].values() if _running(pod))
        if running > 1 and len(self._everyone) <= 1:
            reasons.append("peers not announced")
        return reasons

    async def _announce(self, member: Member) -> None:
        pause = RETRY_FIRST
        while True:
            try:
                await self.cluster.annotate(
                    {
                        PEER_ID: member.peer_id,
                        ADDRESSES: ",".join(member.addresses),
                        TRANSFER: member.transfer,
                    }
                )
            except Exception as error:  # whatever it is, the API server may be better later
                log.warning("members.announce_failed", error=str(error))
                await self.clock.sleep(self._rng.uniform(0.75, 1.25) * pause)
                pause = min(RETRY_LAST, pause * 2)
            else:
                self._announced = True
                return

    async def _follow(self, kind: str) -> None:
        pause = RETRY_FIRST
        while True:
            try:
                found, version = await self.cluster.list(kind)
                self._objects[kind] = {_name(item): item for item in found}
                self._listed.add(kind)
                self._dirty = True
                pause = RETRY_FIRST
                async with contextlib.aclosing(self.cluster.watch(kind, version)) as changes:  # type: ignore[type-var]
                    async for change, item in changes:
                        if change == "DELETED":
                            self._objects[kind].pop(_name(item), None)
                        else:
                            self._objects[kind][_name(item)] = item
                        self._dirty = True
            except Exception as error:  # a bad answer is a reason to ask again, as is none
                log.warning("members.cluster_unreachable", kind=kind, error=str(error))
                await self.clock.sleep(self._rng.uniform(0.75, 1.25) * pause)
                pause = min(RETRY_LAST, pause * 2)

    async def _gather(self) -> None:
        while True:
            await self.clock.sleep(GATHER)
            if self._dirty and "pods" in self._listed:
                self._dirty = False
                self._publish()

    def _publish(self) -> None:
        zones = {name: _labels(node).get(ZONE, "") for name, node in self._objects["nodes"].items()}
        everyone: dict[str, Member] = {}
        ready: dict[str, Member] = {}
        for name, pod in sorted(self._objects["pods"].items()):
            member = self._member(name, pod, zones)
            if member is not None:
                # A pod that takes over a node from a dying one has the same name: the ready wins.
                if member.node not in ready:
                    everyone[member.node] = member
                if _ready(pod):
                    ready[member.node] = everyone[member.node] = member
        if everyone != self._everyone.members:
            self._everyone = View(everyone.values())
        self.set(ready.values())

    def _member(self, name: str, pod: Object, zones: Mapping[str, str]) -> Member | None:
        said = pod["metadata"].get("annotations") or {}
        node = pod["spec"].get("nodeName", "")
        if not (_running(pod) and node and PEER_ID in said):
            return None
        member = Member(
            node=node,
            peer_id=said[PEER_ID],
            addresses=tuple(a for a in said.get(ADDRESSES, "").split(",") if a),
            transfer=said.get(TRANSFER, ""),
            zone=zones.get(node, ""),
        )
        try:
            _ = member.peer
        except ValueError:
            if name not in self._bad:
                self._bad.add(name)
                log.warning("members.annotation_malformed", pod=name, peer_id=said[PEER_ID])
            return None
        return member


class ApiServer:
    """:class:`Cluster` over lightkube: the service account of our pod, or a kubeconfig.

    ``selector`` are the labels of the agents' pods. Needs list and watch of pods and nodes, and
    patch of pods.
    """

    SECONDS = 300
    """After which a watch is ended and begun anew, in case it died unnoticed."""

    def __init__(
        self, namespace: str, pod: str, selector: Mapping[str, str], *, kubeconfig: str = ""
    ) -> None:
        import httpx2  # these take half a second, and only Kubernetes needs them
        from lightkube import AsyncClient, KubeConfig
        from lightkube.core.exceptions import ConfigError
        from lightkube.resources.core_v1 import Node, Pod

        try:
            config = KubeConfig.from_file(kubeconfig) if kubeconfig else KubeConfig.from_env()
        except (ConfigError, OSError) as error:
            raise LeaseholdError(
                "no_cluster",
                f"cannot tell which Kubernetes cluster this is: {error}",
                kind=Kind.UNSUPPORTED,
                path="images.members_kubernetes",
            ) from error
        self.namespace = namespace
        self.pod = pod
        self._selector = dict(selector)
        self._client = AsyncClient(config, timeout=httpx2.Timeout(10.0))
        self._kinds: dict[str, Any] = {"pods": Pod, "nodes": Node}

    def _scope(self, kind: str) -> dict[str, Any]:
        return {"namespace": self.namespace, "labels": self._selector} if kind == "pods" else {}

    async def list(self, kind: str) -> tuple[list[Object], str]:
        found = self._client.list(self._kinds[kind], chunk_size=500, **self._scope(kind))
        return [item.to_dict() async for item in found], str(found.resourceVersion)

    async def watch(self, kind: str, version: str) -> AsyncIterator[tuple[str, Object]]:
        import asyncio

        events = self._client.watch(
            self._kinds[kind],
            resource_version=version,
            server_timeout=self.SECONDS,
            **self._scope(kind),
        )
        try:
            async with asyncio.timeout(self.SECONDS * 1.1):
                async for change, item in events:
                    yield change, item.to_dict()
        except TimeoutError:
            return
        finally:
            await events.aclose()

    async def annotate(self, annotations: Mapping[str, str]) -> None:
        from lightkube.types import PatchType

        change = {"metadata": {"annotations": dict(annotations)}}
        await self._client.patch(
            self._kinds["pods"],
            self.pod,
            change,
            namespace=self.namespace,
            patch_type=PatchType.MERGE,
        )

    async def close(self) -> None:
        await self._client.close()


def _name(item: Object) -> str:
    return str(item["metadata"]["name"])


def _labels(item: Object) -> Mapping[str, str]:
    return item["metadata"].get("labels") or {}


def _running(pod: Object) -> bool:
    status = pod.get("status") or {}
    alive = pod["metadata"].get("deletionTimestamp") is None
    return alive and status.get("phase") == "Running" and bool(status.get("podIP"))


def _ready(pod: Object) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(c.get("type") == "Ready" and c.get("status") == "True" for c in conditions)

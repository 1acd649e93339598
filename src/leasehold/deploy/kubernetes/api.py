"""The API server as the driver sees it: plain JSON objects, and one kind of error.

Over lightkube, which finds the cluster, authenticates and speaks server-side apply. An API server
that cannot be reached (``cluster_unreachable``) or is out of order (``cluster_in_trouble``) is
UNAVAILABLE: it says nothing about the workloads. Everything else it refuses keeps its words.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx2
import msgspec
from httpx2.websockets import HTTPXWSException
from lightkube import AsyncClient, KubeConfig
from lightkube.config import client_adapter
from lightkube.core.exceptions import ApiError, ConfigError
from lightkube.core.resource import api_info
from lightkube.core.selector import build_selector
from lightkube.generic_resource import create_global_resource, create_namespaced_resource
from lightkube.models.meta_v1 import Status
from lightkube.types import CascadeType, PatchType

from leasehold.core.clock import Clock, SystemClock
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.deploy.kubernetes.settings import KubernetesSettings

Object = dict[str, Any]

FIELD_MANAGER = "leasehold"

EVERYWHERE = "*"
"""Instead of a namespace."""

KINDS: dict[str, Any] = {
    "Namespace": create_global_resource("", "v1", "Namespace", "namespaces"),
    "Node": create_global_resource("", "v1", "Node", "nodes"),
    "StorageClass": create_global_resource(
        "storage.k8s.io", "v1", "StorageClass", "storageclasses"
    ),
    "Pod": create_namespaced_resource("", "v1", "Pod", "pods"),
    "Service": create_namespaced_resource("", "v1", "Service", "services"),
    "Secret": create_namespaced_resource("", "v1", "Secret", "secrets"),
    "Event": create_namespaced_resource("", "v1", "Event", "events"),
    "Deployment": create_namespaced_resource("apps", "v1", "Deployment", "deployments"),
    "StatefulSet": create_namespaced_resource("apps", "v1", "StatefulSet", "statefulsets"),
    "Ingress": create_namespaced_resource("networking.k8s.io", "v1", "Ingress", "ingresses"),
    "NetworkPolicy": create_namespaced_resource(
        "networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies"
    ),
}

STATUS = {
    400: Kind.INVALID, 401: Kind.UNAUTHENTICATED, 403: Kind.FORBIDDEN, 404: Kind.NOT_FOUND,
    409: Kind.CONFLICT, 410: Kind.CONFLICT, 422: Kind.INVALID, 429: Kind.RATE_LIMITED,
}  # fmt: skip
"""Answers of the API server that mean something; all others mean that it is out of order."""

BODY = 64 * 1024
"""Bytes of a log line at most; what is longer arrives in pieces."""


def unreachable(why: object) -> LeaseholdError:
    """The API server does not answer: nothing is known, nothing is wrong."""
    return LeaseholdError(
        "cluster_unreachable",
        f"the Kubernetes API server cannot be reached: {why}",
        kind=Kind.UNAVAILABLE,
        path="deploy.kubernetes",
        retry_after=5.0,
    )


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Errors of the client as ours."""
    try:
        yield
    except ApiError as error:
        status = error.status
        code = status.code or 0
        if code not in STATUS:
            raise LeaseholdError(
                "cluster_in_trouble",
                f"the Kubernetes API server could not do it: {status.message or code}",
                kind=Kind.UNAVAILABLE,
                retry_after=5.0,
            ) from error
        raise LeaseholdError(
            f"kubernetes_{(status.reason or 'refused').lower()}",
            status.message or f"the API server answered {code}",
            kind=STATUS[code],
        ) from error
    except (httpx2.HTTPError, HTTPXWSException, ssl.SSLError, OSError) as error:
        raise unreachable(str(error) or type(error).__name__) from error


class Api:
    """Use it as an async context manager, or close it."""

    def __init__(self, settings: KubernetesSettings, *, clock: Clock | None = None) -> None:
        self.settings = settings
        self.clock = clock or SystemClock()
        timeout = httpx2.Timeout(settings.request_timeout)
        config = _config(settings)
        self.client = AsyncClient(config, timeout=timeout, field_manager=FIELD_MANAGER)
        # The same connection settings for what lightkube does not do: former logs, live commands.
        self.raw = client_adapter.AsyncClient(
            config, client_adapter.ConnectionParams(timeout=timeout)
        )
        self.server = str(config.cluster.server)

    async def close(self) -> None:
        await self.client.close()
        await self.raw.aclose()

    async def __aenter__(self) -> Api:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # -- objects ----------------------------------------------------------------------------------

    async def version(self) -> tuple[int, int]:
        """Of the API server, like (1, 34)."""
        with told():
            answer = await self.raw.get("version")
            answer.raise_for_status()
        found = answer.json()
        return int(found["major"]), int(found["minor"].rstrip("+"))

    async def may(self, verb: str, group: str, resource: str) -> bool:
        """Whether our account may do this, in any namespace; ``resource`` like ``pods/log``."""
        name, _, part = resource.partition("/")
        asked = {"verb": verb, "group": group, "resource": name, "subresource": part}
        body = {"spec": {"resourceAttributes": asked}}
        url = "apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        with told():
            answer = await self.raw.post(url, json=body)
            answer.raise_for_status()
        return bool(answer.json()["status"]["allowed"])

    async def apply(
        self, found: Object, *, manager: str = FIELD_MANAGER, dry_run: bool = False
    ) -> Object:
        """Server-side apply. Fields of ours that others changed are taken back."""
        meta = found["metadata"]
        with told():
            made = await self.client.patch(
                KINDS[found["kind"]],
                meta["name"],
                found,
                namespace=meta.get("namespace"),
                patch_type=PatchType.APPLY,
                field_manager=manager,
                force=True,
                dry_run=dry_run,
            )
        return dict(made)

    async def get(self, kind: str, name: str, namespace: str | None = None) -> Object | None:
        """None when there is no such object."""
        try:
            with told():
                return dict(await self.client.get(KINDS[kind], name, namespace=namespace))
        except LeaseholdError as error:
            if error.kind is Kind.NOT_FOUND:
                return None
            raise

    async def list(
        self, kind: str, namespace: str | None = None, *, labels: dict[str, Any] | None = None
    ) -> tuple[list[Object], str]:
        """The objects and the version of the list, to watch from."""
        with told():
            found = self.client.list(
                KINDS[kind], namespace=namespace, labels=labels, chunk_size=500
            )
            # Only the list itself says of what kind its items are.
            return [{"kind": kind, **item} async for item in found], found.resourceVersion

    async def watch(
        self, kind: str, namespace: str | None, version: str, *, labels: dict[str, Any] | None
    ) -> AsyncIterator[tuple[str, Object]]:
        """``(ADDED, MODIFIED or DELETED, object)`` after ``version``, for as long as the setting
        says. Kind CONFLICT: too long ago, list again. A server that neither says anything nor ends
        the watch in its time has fallen silent, which is ``cluster_unreachable``."""
        # Not lightkube's own: that begins anew for ever and so cannot tell silence from peace.
        seconds = self.settings.watch_seconds
        asked = {"watch": "true", "resourceVersion": version, "timeoutSeconds": str(seconds)}
        if labels:
            asked["labelSelector"] = build_selector(labels)
        info = api_info(KINDS[kind])
        group, of = info.resource.group, info.resource.version
        url = f"apis/{group}/{of}" if group else f"api/{of}"
        if namespace not in (None, EVERYWHERE):
            url += f"/namespaces/{namespace}"
        timeout = httpx2.Timeout(self.settings.request_timeout, read=None)
        with told():
            try:
                async with asyncio.timeout(seconds * 1.5 + 1.0), self.raw.stream(
                    "GET", f"{url}/{info.plural}", params=asked, timeout=timeout
                ) as answer:  # fmt: skip
                    if answer.is_error:
                        await answer.aread()
                        raise ApiError(request=answer.request, response=answer)
                    async for line in answer.aiter_lines():
                        event = msgspec.json.decode(line)
                        if event["type"] == "ERROR":
                            raise ApiError(status=Status.from_dict(event["object"]))
                        yield event["type"], event["object"]
            except TimeoutError as error:
                raise unreachable("it fell silent") from error

    async def delete(
        self, kind: str, name: str, namespace: str | None = None, *, orphan: bool = False
    ) -> bool:
        """True when it was there. What it owns goes with it, unless it is to be orphaned."""
        cascade = CascadeType.ORPHAN if orphan else CascadeType.BACKGROUND
        try:
            with told():
                await self.client.delete(KINDS[kind], name, namespace=namespace, cascade=cascade)
        except LeaseholdError as error:
            if error.kind is Kind.NOT_FOUND:
                return False
            # A namespace that is being removed already answers that it is in conflict.
            if error.kind is not Kind.CONFLICT:
                raise
        return True

    # -- pods -------------------------------------------------------------------------------------

    async def logs(
        self,
        namespace: str,
        pod: str,
        *,
        follow: bool = False,
        tail: int | None = None,
        previous: bool = False,
        limit: int | None = None,
    ) -> AsyncIterator[tuple[str, str]]:
        """``(time, text)`` of each line. ``previous``: of the container before the last restart;
        ``limit`` in bytes."""
        asked: dict[str, Any] = {"timestamps": "true"}
        if follow:
            asked["follow"] = "true"
        if previous:
            asked["previous"] = "true"
        if tail is not None:
            asked["tailLines"] = tail
        if limit is not None:
            asked["limitBytes"] = limit
        timeout = httpx2.Timeout(self.settings.request_timeout, read=None)
        url = f"api/v1/namespaces/{namespace}/pods/{pod}/log"
        with told():
            async with self.raw.stream("GET", url, params=asked, timeout=timeout) as answer:
                if answer.is_error:
                    await answer.aread()
                    raise ApiError(request=answer.request, response=answer)
                async for line in answer.aiter_lines():
                    at, _, text = line.partition(" ")
                    yield at, text

    @contextlib.asynccontextmanager
    async def exec(
        self, namespace: str, pod: str, command: Sequence[str], *, tty: bool, stdin: bool
    ) -> AsyncIterator[Any]:
        """The websocket of a command in a pod's container; frames begin with a channel byte."""
        asked = [
            ("stdout", "true"),
            ("stderr", "false" if tty else "true"),
            ("stdin", "true" if stdin or tty else "false"),
            ("tty", "true" if tty else "false"),
            *(("command", part) for part in command),
        ]
        url = f"api/v1/namespaces/{namespace}/pods/{pod}/exec"
        protocols = ["v5.channel.k8s.io", "v4.channel.k8s.io"]
        with told():
            async with self.raw.websocket(url, params=asked, subprotocols=protocols) as socket:
                yield socket


def _config(settings: KubernetesSettings) -> Any:
    try:
        if settings.kubeconfig:
            file = Path(settings.kubeconfig).expanduser()
            found = KubeConfig.from_file(file)
        else:
            found = KubeConfig.from_env()
        chosen = found.get(context_name=settings.context or None)
    except (ConfigError, OSError) as error:
        raise LeaseholdError(
            "no_cluster",
            f"cannot tell which Kubernetes cluster to use: {error}",
            kind=Kind.UNSUPPORTED,
            path="deploy.kubernetes.kubeconfig",
            expected="a kubeconfig file, or a service account in a pod",
        ) from error
    assert chosen is not None
    return chosen

"""Every object of a workload, as plain JSON: a pure function of manifest and settings.

One namespace a lease, named by the lease's hash. A service becomes a Deployment, or a StatefulSet
when it has a persistent volume; a ClusterIP service for what the lease and ingress use, a second
service ``<name>-np`` for node ports; an Ingress per HTTP port; a pull secret where it has registry
credentials. Network policies keep leases apart: in from the same namespace and the ingress
controller, out to DNS and public IPv4. Only old stable kinds are used.

Names are derived and every object carries the manifest's hash as an annotation, so applying the
same manifest again changes nothing and restarts nothing.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from leasehold.deploy.kubernetes import gpu
from leasehold.deploy.net.rules import PRIVATE
from leasehold.deploy.oci.bundle import CAPABILITIES
from leasehold.deploy.settings import DeploySettings
from leasehold.deploy.workload import (
    VolumeMount,
    Workload,
    disk_bytes,
    revision,
    stateful,
    volume_mounts,
)
from leasehold.model.manifest import Credentials, Expose, ManifestService
from leasehold.model.market import LeaseId

PREFIX = "leasehold.dev/"
MANAGER = "leasehold"

Object = dict[str, Any]


@dataclass(frozen=True)
class Look:
    """What of the cluster and of the moment goes into the objects."""

    may_lead: Callable[[str], bool] = lambda host: True
    """Whether a host name may lead to this lease."""
    surge: bool = True
    """False: an update has no room for new replicas beside old ones."""
    sleeps: bool = True
    """Whether the cluster knows the ``sleep`` handler (Kubernetes 1.30 and later)."""


def render(workload: Workload, settings: DeploySettings, look: Look | None = None) -> list[Object]:
    """The objects in the order they are applied."""
    return list(_Renderer(workload, settings, look or Look()).objects())


def key(found: Object) -> tuple[str, str]:
    """Kind and name: what an object is within its lease."""
    return found["kind"], found["metadata"]["name"]


class _Renderer:
    def __init__(self, workload: Workload, settings: DeploySettings, look: Look) -> None:
        self.workload = workload
        self.deploy = settings
        self.settings = settings.kubernetes
        self.look = look
        self.namespace = workload.name

    def objects(self) -> Iterator[Object]:
        yield self._namespace()
        if self.settings.network_policies:
            yield from self._policies()
        for service in self.workload.services:
            credentials = _credentials(service)
            if credentials is not None:
                yield self._pull_secret(service, credentials)
            yield self._controller(service)
            yield from self._services(service)
            for expose in service.exposes:
                if expose.ingress:
                    yield from self._ingress(service, expose)

    # -- frames -----------------------------------------------------------------------------------

    def _object(
        self, version: str, kind: str, name: str, service: str = "", **parts: Any
    ) -> Object:
        return {
            "apiVersion": version,
            "kind": kind,
            "metadata": {
                "name": name,
                "namespace": self.namespace,
                "labels": self._labels(service),
                "annotations": {f"{PREFIX}manifest": self.workload.hash},
            },
            **parts,
        }

    def _labels(self, service: str = "") -> dict[str, str]:
        labels = {
            "app.kubernetes.io/managed-by": MANAGER,
            f"{PREFIX}lease": self.namespace,
            **_id_labels(self.workload.lease),
        }
        if service:
            labels[f"{PREFIX}service"] = service
        return labels

    def _selector(self, service: str) -> dict[str, str]:
        return {f"{PREFIX}lease": self.namespace, f"{PREFIX}service": service}

    def _namespace(self) -> Object:
        found = self._object("v1", "Namespace", self.namespace)
        del found["metadata"]["namespace"]
        found["metadata"]["annotations"][f"{PREFIX}lease-id"] = str(self.workload.lease)
        found["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] = "baseline"
        return found

    # -- isolation --------------------------------------------------------------------------------

    def _policies(self) -> Iterator[Object]:
        def policy(name: str, **spec: Any) -> Object:
            return self._object("networking.k8s.io/v1", "NetworkPolicy", name, spec=spec)

        here = {"namespaceSelector": {"matchLabels": {f"{PREFIX}lease": self.namespace}}}
        controller = {
            "namespaceSelector": {
                "matchLabels": {"kubernetes.io/metadata.name": self.settings.ingress_namespace}
            }
        }
        dns = [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")]
        public = {"ipBlock": {"cidr": "0.0.0.0/0", "except": PRIVATE.split(", ")}}
        yield policy(
            "default",
            podSelector={},
            policyTypes=["Ingress", "Egress"],
            ingress=[{"from": [here]}, {"from": [controller]}],
            egress=[
                {"to": [here]},
                {"to": [{"namespaceSelector": {}}], "ports": dns},
                {"to": [public]},
            ],
        )
        for service in self.workload.services:
            ports = [
                {"protocol": e.proto, "port": e.port}
                for e in service.exposes
                if e.global_ and not e.ingress
            ]
            if ports:
                yield policy(
                    f"{service.name}-np",
                    podSelector={"matchLabels": self._selector(service.name)},
                    policyTypes=["Ingress"],
                    ingress=[{"from": [{"ipBlock": {"cidr": "0.0.0.0/0"}}], "ports": ports}],
                )

    def _pull_secret(self, service: ManifestService, given: Credentials) -> Object:
        text = f"{given.username}:{given.password}"
        entry = {
            "username": given.username,
            "password": given.password,
            "email": given.email,
            "auth": base64.b64encode(text.encode()).decode(),
        }
        config = json.dumps({"auths": {given.host: entry}}, sort_keys=True)
        return self._object(
            "v1",
            "Secret",
            f"{service.name}-pull",
            service.name,
            type="kubernetes.io/dockerconfigjson",
            data={".dockerconfigjson": base64.b64encode(config.encode()).decode()},
        )

    # -- pods -------------------------------------------------------------------------------------

    def _controller(self, service: ManifestService) -> Object:
        mounts = volume_mounts(service)
        spec: dict[str, Any] = {
            "replicas": service.count,
            "revisionHistoryLimit": 1,
            "minReadySeconds": 0,
            "selector": {"matchLabels": self._selector(service.name)},
            "template": {
                "metadata": {
                    "labels": {
                        **self._labels(service.name),
                        f"{PREFIX}revision": revision(service, ""),
                    }
                },
                "spec": self._pod(service, mounts),
            },
        }
        if stateful(service):
            spec["serviceName"] = service.name
            spec["podManagementPolicy"] = "Parallel"
            spec["volumeClaimTemplates"] = [
                self._claim(service, mount) for mount in mounts if mount.storage.persistent
            ]
            return self._object("apps/v1", "StatefulSet", service.name, service.name, spec=spec)
        spec["progressDeadlineSeconds"] = max(1, int(self.deploy.start_deadline))
        # On a full cluster a surge would wait for room that only the old pod's end can make.
        rolling = (
            {"maxSurge": 1, "maxUnavailable": 0}
            if self.settings.surge and self.look.surge
            else {"maxSurge": 0, "maxUnavailable": 1}
        )
        spec["strategy"] = {"type": "RollingUpdate", "rollingUpdate": rolling}
        return self._object("apps/v1", "Deployment", service.name, service.name, spec=spec)

    def _pod(self, service: ManifestService, mounts: list[VolumeMount]) -> Object:
        pod: Object = {
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": self.settings.unready_seconds
            + math.ceil(self.deploy.stop_grace),
            "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [self._container(service, mounts)],
        }
        if self.settings.runtime_class:
            pod["runtimeClassName"] = self.settings.runtime_class
        if _credentials(service) is not None:
            pod["imagePullSecrets"] = [{"name": f"{service.name}-pull"}]
        volumes = [
            {
                "name": _volume(service, mount),
                "emptyDir": {
                    "sizeLimit": str(mount.size),
                    **({"medium": "Memory"} if mount.storage.storage_class == "ram" else {}),
                },
            }
            for mount in mounts
            if not mount.storage.persistent
        ]
        if volumes:
            pod["volumes"] = volumes
        if service.resources.gpu is not None and service.resources.gpu_units:
            affinity = gpu.affinity(service.resources.gpu)
            if affinity is not None:
                pod["affinity"] = affinity
        return pod

    def _container(self, service: ManifestService, mounts: list[VolumeMount]) -> Object:
        container: Object = {
            "name": service.name,
            "image": service.image,
            "imagePullPolicy": "IfNotPresent",
            "env": self._environment(service),
            "resources": self._resources(service),
            "securityContext": {
                "privileged": False,
                "allowPrivilegeEscalation": False,
                "runAsNonRoot": False,
                "readOnlyRootFilesystem": self.deploy.readonly_rootfs,
                "capabilities": {
                    "drop": ["ALL"],
                    "add": [name.removeprefix("CAP_") for name in CAPABILITIES],
                },
            },
        }
        if service.command:
            container["command"] = list(service.command)
        if service.args:
            container["args"] = list(service.args)
        names = _port_names(service)
        if names:
            container["ports"] = [
                {"containerPort": port, "protocol": protocol, "name": name}
                for (port, protocol), name in sorted(names.items())
            ]
            # Proxies learn a moment later that a replica is on its way out; it serves until then.
            wait = self.settings.unready_seconds
            if wait:
                sleep = {"sleep": {"seconds": wait}}
                old = {"exec": {"command": ["sleep", str(wait)]}}
                container["lifecycle"] = {"preStop": sleep if self.look.sleeps else old}
        tcp = sorted(port for port, protocol in names if protocol == "TCP")
        if tcp:
            container["readinessProbe"] = {
                "tcpSocket": {"port": tcp[0]},
                "periodSeconds": 1,
                "timeoutSeconds": max(1, math.ceil(self.deploy.check_timeout)),
                "failureThreshold": 3,
            }
        if mounts:
            container["volumeMounts"] = [
                {
                    "name": _volume(service, mount),
                    "mountPath": mount.mount,
                    "readOnly": mount.readonly,
                }
                for mount in mounts
            ]
        return container

    def _environment(self, service: ManifestService) -> list[dict[str, str]]:
        given = dict(entry.partition("=")[::2] for entry in service.env or ())
        told = self.workload.environment(self.deploy.public_host)
        found = {**{k: v for k, v in told.items() if k not in given}, **given}
        return [{"name": name, "value": value} for name, value in found.items()]

    def _resources(self, service: ManifestService) -> Object:
        given = service.resources
        # What is kept in memory and what is kept on the node's disk counts there, mounted or not.
        mounts = [m for m in volume_mounts(service) if not m.storage.persistent]
        ram = sum(m.size for m in mounts if m.storage.storage_class == "ram")
        disk = sum(m.size for m in mounts) - ram
        amounts = {
            "cpu": f"{given.cpu_milli}m",
            "memory": str(given.memory_bytes + ram),
            "ephemeral-storage": str(disk_bytes(service) + disk),
        }
        if given.gpu is not None and given.gpu_units:
            amounts[gpu.resource(given.gpu)] = str(given.gpu_units)
        # A limit of none at all would be kept to: what was not leased is not mentioned.
        amounts = {name: amount for name, amount in amounts.items() if amount not in ("0", "0m")}
        return {"requests": amounts, "limits": dict(amounts)}

    def _claim(self, service: ManifestService, mount: VolumeMount) -> Object:
        spec: Object = {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": str(mount.size)}},
        }
        kind = mount.storage.storage_class
        name = self.settings.storage_classes.get(kind, "" if kind == "default" else kind)
        if name:
            spec["storageClassName"] = name
        return {"metadata": {"name": _volume(service, mount)}, "spec": spec}

    # -- ways in ----------------------------------------------------------------------------------

    def _services(self, service: ManifestService) -> Iterator[Object]:
        inside = [e for e in service.exposes if not e.global_ or e.ingress]
        outside = [e for e in service.exposes if e.global_ and not e.ingress]
        if inside or stateful(service):
            yield self._service(service, service.name, "ClusterIP", inside)
        if outside:
            yield self._service(service, f"{service.name}-np", "NodePort", outside)

    def _service(
        self, service: ManifestService, name: str, kind: str, exposes: list[Expose]
    ) -> Object:
        ports = {(e.outside_port, e.proto): e.port for e in exposes}
        names = _port_names(service)
        spec: Object = {
            "type": kind,
            "selector": self._selector(service.name),
            "ports": [
                {
                    "name": f"{protocol.lower()}-{port}",
                    "port": port,
                    # By name: during an update every replica is reached at its own port.
                    "targetPort": names[target, protocol],
                    "protocol": protocol,
                }
                for (port, protocol), target in sorted(ports.items())
            ],
        }
        if not ports:
            spec["clusterIP"] = "None"
        return self._object("v1", "Service", name, service.name, spec=spec)

    def _ingress(self, service: ManifestService, expose: Expose) -> Iterator[Object]:
        named = self.workload.hosts(service, expose, self.deploy.static_domain)
        hosts = [host for host in named if self.look.may_lead(host)]
        if not hosts:
            return
        backend = {"service": {"name": service.name, "port": {"number": expose.outside_port}}}
        found = self._object(
            "networking.k8s.io/v1",
            "Ingress",
            f"{service.name}-{expose.port}",
            service.name,
            spec={
                "ingressClassName": self.settings.ingress_class,
                "rules": [
                    {
                        "host": host,
                        "http": {
                            "paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]
                        },
                    }
                    for host in hosts
                ],
            },
        )
        found["metadata"]["annotations"].update(_nginx(expose))
        if self.settings.cluster_issuer:
            issuer = self.settings.cluster_issuer
            found["metadata"]["annotations"]["cert-manager.io/cluster-issuer"] = issuer
            found["spec"]["tls"] = [{"hosts": hosts, "secretName": f"{service.name}-tls"}]
        yield found


def _port_names(service: ManifestService) -> dict[tuple[int, str], str]:
    """A name for each port of the container: of the lowest port it is reached at from outside."""
    found: dict[tuple[int, str], int] = {}
    for expose in service.exposes:
        inside = (expose.port, expose.proto)
        found[inside] = min(found.get(inside, expose.outside_port), expose.outside_port)
    names: dict[tuple[int, str], str] = {}
    for (port, protocol), outside in sorted(found.items()):
        name = f"{protocol.lower()}-{outside}"
        names[port, protocol] = f"{name}-{port}" if name in names.values() else name
    return names


def _nginx(expose: Expose) -> dict[str, str]:
    """The http options as the nginx controller takes them: seconds where we have milliseconds."""
    options = expose.http_options
    cases = options.next_cases or []
    translated = [f"http_{case}" if case.isdigit() else case for case in cases]
    values = {
        "proxy-body-size": options.max_body_size or None,
        "proxy-read-timeout": _seconds(options.read_timeout),
        "proxy-send-timeout": _seconds(options.send_timeout),
        "proxy-next-upstream-tries": options.next_tries or None,
        "proxy-next-upstream-timeout": _seconds(options.next_timeout),
        "proxy-next-upstream": " ".join(translated) or None,
        "proxy-buffer-size": options.proxy_buffer_size or None,
    }
    return {
        f"nginx.ingress.kubernetes.io/{key}": str(value)
        for key, value in values.items()
        if value is not None
    }


def _seconds(milliseconds: int) -> int | None:
    return -(-milliseconds // 1000) or None


def _volume(service: ManifestService, mount: VolumeMount) -> str:
    return f"{service.name}-{mount.storage.name}"


def _credentials(service: ManifestService) -> Credentials | None:
    given = service.credentials or (service.params.credentials if service.params else None)
    return given if given is not None and given.username else None


def _id_labels(lease: LeaseId) -> dict[str, str]:
    return {
        f"{PREFIX}owner": lease.owner,
        f"{PREFIX}dseq": str(lease.dseq),
        f"{PREFIX}gseq": str(lease.gseq),
        f"{PREFIX}oseq": str(lease.oseq),
        f"{PREFIX}provider": lease.provider,
    }

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
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from leasehold.deploy.kubernetes import gpu
from leasehold.deploy.net.rules import PRIVATE
from leasehold.deploy.workload import VolumeMount, Workload, disk_bytes, stateful, volume_mounts
from leasehold.model.manifest import Credentials, Expose, ManifestService
from leasehold.model.market import LeaseId

PREFIX = "leasehold.dev/"
MANAGER = "leasehold"

Object = dict[str, Any]


class KubernetesSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How workloads look on a cluster."""

    runtime_class: Annotated[
        str, Meta(description="runtime class of pods; empty for the cluster's default")
    ] = "gvisor"
    ingress_class: Annotated[str, Meta(description="ingress class of tenants' hosts")] = "nginx"
    ingress_namespace: Annotated[
        str, Meta(description="namespace of the ingress controller, let in by network policies")
    ] = "ingress-nginx"
    public_host: Annotated[str, Meta(description="host name of the cluster")] = "localhost"
    static_domain: Annotated[
        str, Meta(description="domain of generated host names; empty: none are generated")
    ] = ""
    network_policies: Annotated[bool, Meta(description="keep leases apart")] = True
    storage_classes: Annotated[
        dict[str, str], Meta(description="storage class of the cluster by class of the manifest")
    ] = {}
    surge: Annotated[
        bool,
        Meta(
            description="start new replicas beside old ones on update; off where the cluster is "
            "full, then one at a time is replaced"
        ),
    ] = True


def render(workload: Workload, settings: KubernetesSettings | None = None) -> list[Object]:
    """The objects in the order they are applied."""
    return list(_Renderer(workload, settings or KubernetesSettings()).objects())


class _Renderer:
    def __init__(self, workload: Workload, settings: KubernetesSettings) -> None:
        self.workload = workload
        self.settings = settings
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
            "selector": {"matchLabels": self._selector(service.name)},
            "template": {
                "metadata": {"labels": self._labels(service.name)},
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
        # On a full cluster a surge would wait for room that only the old pod's end can make.
        rolling = (
            {"maxSurge": 1, "maxUnavailable": 0}
            if self.settings.surge
            else {"maxSurge": 0, "maxUnavailable": 1}
        )
        spec["strategy"] = {"type": "RollingUpdate", "rollingUpdate": rolling}
        return self._object("apps/v1", "Deployment", service.name, service.name, spec=spec)

    def _pod(self, service: ManifestService, mounts: list[VolumeMount]) -> Object:
        pod: Object = {
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
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
            },
        }
        if service.command:
            container["command"] = list(service.command)
        if service.args:
            container["args"] = list(service.args)
        ports = {(expose.port, expose.proto) for expose in service.exposes}
        if ports:
            container["ports"] = [
                {"containerPort": port, "protocol": protocol} for port, protocol in sorted(ports)
            ]
        tcp = sorted(port for port, protocol in ports if protocol == "TCP")
        if tcp:
            container["readinessProbe"] = {
                "tcpSocket": {"port": tcp[0]},
                "periodSeconds": 2,
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
        told = self.workload.environment(self.settings.public_host)
        found = {**{k: v for k, v in told.items() if k not in given}, **given}
        return [{"name": name, "value": value} for name, value in found.items()]

    def _resources(self, service: ManifestService) -> Object:
        given = service.resources
        amounts = {
            "cpu": f"{given.cpu_milli}m",
            "memory": str(given.memory_bytes),
            "ephemeral-storage": str(disk_bytes(service)),
        }
        if given.gpu is not None and given.gpu_units:
            amounts[gpu.resource(given.gpu)] = str(given.gpu_units)
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
        spec: Object = {
            "type": kind,
            "selector": self._selector(service.name),
            "ports": [
                {
                    "name": f"{protocol.lower()}-{port}",
                    "port": port,
                    "targetPort": target,
                    "protocol": protocol,
                }
                for (port, protocol), target in sorted(ports.items())
            ],
        }
        if not ports:
            spec["clusterIP"] = "None"
        return self._object("v1", "Service", name, service.name, spec=spec)

    def _ingress(self, service: ManifestService, expose: Expose) -> Iterator[Object]:
        hosts = self.workload.hosts(service, expose, self.settings.static_domain)
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
        yield found


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

"""Settings of the Kubernetes driver."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta


class KubernetesSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which cluster, and how workloads look on it."""

    kubeconfig: Annotated[
        str,
        Meta(
            description="file that says how the cluster is reached; empty: the service account of "
            "the pod the provider runs in, else $KUBECONFIG, else ~/.kube/config"
        ),
    ] = ""
    context: Annotated[str, Meta(description="context of that file; empty: its current one")] = ""

    # what pods look like
    runtime_class: Annotated[
        str, Meta(description="runtime class of pods; empty for the cluster's default")
    ] = "gvisor"
    ingress_class: Annotated[str, Meta(description="ingress class of tenants' hosts")] = "nginx"
    ingress_namespace: Annotated[
        str, Meta(description="namespace of the ingress controller, let in by network policies")
    ] = "ingress-nginx"
    cluster_issuer: Annotated[
        str,
        Meta(
            description="cert-manager cluster issuer of certificates for tenants' hosts; empty: "
            "no HTTPS"
        ),
    ] = ""
    network_policies: Annotated[bool, Meta(description="keep leases apart")] = True
    storage_classes: Annotated[
        dict[str, str], Meta(description="storage class of the cluster by class of the manifest")
    ] = {}
    surge: Annotated[
        bool,
        Meta(
            description="start new replicas beside old ones on update; where there is no room for "
            "that, one at a time is replaced"
        ),
    ] = True
    unready_seconds: Annotated[
        int,
        Meta(
            description="seconds a replica goes on serving after it was asked to end, until no "
            "proxy sends it requests any more",
            ge=0,
            le=3600,
        ),
    ] = 5

    # how the cluster is followed, seconds
    request_timeout: Annotated[
        float, Meta(description="seconds the API server may take to answer", gt=0)
    ] = 10.0
    watch_seconds: Annotated[
        int,
        Meta(
            description="seconds after which a watch is begun anew; an API server that fell silent "
            "is noticed within as long and a half",
            ge=1,
            le=600,
        ),
    ] = 30
    no_room_grace: Annotated[
        float, Meta(description="seconds a replica may wait for room before that is said", ge=0)
    ] = 10.0
    repair_period: Annotated[
        float,
        Meta(description="seconds between looks for objects others changed or removed", gt=0),
    ] = 300.0
    inventory_period: Annotated[
        float, Meta(description="seconds between looks at what others use of the nodes", gt=0)
    ] = 60.0
    orphan_period: Annotated[
        float, Meta(description="seconds between looks for namespaces without a lease", gt=0)
    ] = 600.0
    orphan_grace: Annotated[
        float,
        Meta(
            description="seconds a namespace of a lease this provider never heard of is left alone "
            "before it is removed; those of closed leases go at once",
            ge=0,
        ),
    ] = 86_400.0

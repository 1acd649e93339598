"""Settings of the deploy system."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from leasehold.deploy.kubernetes.settings import KubernetesSettings


class DeploySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How workloads run: on this machine, or on a cluster."""

    driver: Annotated[
        str,
        Meta(
            description="what runs workloads: oci (containers of this machine) or kubernetes (a "
            "cluster; see deploy.kubernetes)",
            pattern="^(oci|kubernetes)$",
        ),
    ] = "oci"
    kubernetes: KubernetesSettings = KubernetesSettings()
    runtime: Annotated[
        str,
        Meta(
            description="what runs containers: auto (crun, else runc), crun, runc, runsc (strong "
            "isolation), or process (no isolation at all, for development only)",
            pattern="^(auto|crun|runc|runsc|process)$",
        ),
    ] = "auto"

    # confinement
    user_namespace: Annotated[
        bool, Meta(description="root in a container is an id without rights on the host")
    ] = True
    id_base: Annotated[
        int, Meta(description="first host id of the containers' id range", ge=1, le=2**31)
    ] = 2_000_000
    id_count: Annotated[int, Meta(description="ids in the containers' range", ge=1, le=2**24)] = (
        65_536
    )
    pids: Annotated[int, Meta(description="processes and threads of a replica", ge=1)] = 1024
    readonly_rootfs: Annotated[
        bool, Meta(description="containers cannot write outside their volumes")
    ] = False
    disk_limits: Annotated[
        bool,
        Meta(description="give each replica's disk a file system of its size (needs loop devices)"),
    ] = True
    capabilities: Annotated[
        bool,
        Meta(
            description="keep the few capabilities that images use to change user and owner, "
            "inside the container's user namespace"
        ),
    ] = True
    cgroup_parent: Annotated[
        str, Meta(description="control group above all workloads", pattern="^/[a-z0-9_./-]+$")
    ] = "/leasehold"

    # network
    pool: Annotated[
        str, Meta(description="addresses of replicas, only seen inside the node's own network")
    ] = "10.213.0.0/16"
    uplink: Annotated[
        bool, Meta(description="connect the node's network to the host: egress and node ports")
    ] = True
    egress: Annotated[
        str,
        Meta(
            description="where replicas may connect to: none, public (public IPv4 only), all",
            pattern="^(none|public|all)$",
        ),
    ] = "public"
    mtu: Annotated[int, Meta(description="bytes of the largest packet", ge=576, le=65535)] = 1400
    ingress_address: Annotated[str, Meta(description="address ingress listens on")] = "0.0.0.0"
    ingress_ports: Annotated[
        tuple[int, ...], Meta(description="ports ingress tries in turn; 0 picks a free one")
    ] = (80, 8081)
    ingress_tls_ports: Annotated[
        tuple[int, ...],
        Meta(
            description="ports ingress tries in turn for HTTPS, once it has certificates from a "
            "folder or an authority; 0 picks a free one"
        ),
    ] = (443, 8444)
    ingress_certificates: Annotated[
        str,
        Meta(
            description="folder with certificates for host names: NAME.pem (chain and key), or "
            "NAME.crt and NAME.key; looked at every minute (empty: none)"
        ),
    ] = ""
    ingress_redirect: Annotated[
        bool,
        Meta(description="send plain requests for names with a certificate to HTTPS (status 308)"),
    ] = False
    acme_directory: Annotated[
        str,
        Meta(
            description="directory URL of the ACME certificate authority asked for certificates "
            "of tenants' host names (empty: none is asked); it must reach this machine on port 80",
            pattern="^(https?://.+)?$",
        ),
    ] = ""
    acme_agree_to_terms: Annotated[
        bool, Meta(description="you agree to the terms of service of that authority")
    ] = False
    acme_contact: Annotated[
        str, Meta(description="e-mail address the authority may write to (empty: none)")
    ] = ""
    acme_ca_file: Annotated[
        str,
        Meta(description="PEM file of whom to trust for the authority's HTTPS (empty: the system)"),
    ] = ""
    acme_account_file: Annotated[
        str,
        Meta(
            description="file with the key id and the HMAC key (base64url) of an external account, "
            "where the authority asks for one (empty: none)"
        ),
    ] = ""
    ingress_threads: Annotated[
        int, Meta(description="threads of the ingress proxy", ge=1, le=64)
    ] = 2
    ingress_maxconn: Annotated[
        int, Meta(description="connections ingress holds at once", ge=16)
    ] = 4096
    public_host: Annotated[
        str, Meta(description="host name tenants reach this provider by, for URLs and node ports")
    ] = "localhost"
    static_domain: Annotated[
        str,
        Meta(description="domain below which a service without hosts gets a generated name"),
    ] = "localhost"
    node_ports: Annotated[
        tuple[int, int], Meta(description="range of ports for services that are not HTTP")
    ] = (30_000, 32_767)
    leased_ips: Annotated[
        tuple[str, ...],
        Meta(
            description="IPv4 addresses of this host that are leased to tenants, one a name in a "
            "manifest; nothing else should listen on them"
        ),
    ] = ()

    # life of a deployment, seconds
    parallel_starts: Annotated[int, Meta(description="replicas started at once", ge=1)] = 4
    start_deadline: Annotated[
        float, Meta(description="seconds a version may take to answer before it has failed", gt=0)
    ] = 300.0
    start_attempts: Annotated[
        int, Meta(description="times a new replica may end before its version has failed", ge=1)
    ] = 5
    stop_grace: Annotated[
        float, Meta(description="seconds between asking a replica to end and killing it", ge=0)
    ] = 10.0
    drain: Annotated[
        float, Meta(description="seconds old replicas may take to finish their requests", ge=0)
    ] = 30.0
    restart_first: Annotated[
        float, Meta(description="seconds before a replica that ended is started again", ge=0)
    ] = 0.5
    restart_cap: Annotated[
        float, Meta(description="longest such wait; it doubles with each end", gt=0)
    ] = 60.0
    restart_reset: Annotated[
        float, Meta(description="seconds a replica must live for the wait to start over", gt=0)
    ] = 60.0
    teardown_attempts: Annotated[int, Meta(description="tries of a teardown", ge=1)] = 50
    teardown_first: Annotated[float, Meta(description="first wait between them, s", gt=0)] = 0.1
    teardown_cap: Annotated[float, Meta(description="longest wait between them, s", gt=0)] = 3.0

    # monitor, seconds; the original's defaults
    monitor_period: Annotated[
        float, Meta(description="seconds between checks of a healthy workload", gt=0)
    ] = 10.0
    monitor_jitter: Annotated[float, Meta(description="random seconds added", ge=0)] = 5.0
    monitor_retry: Annotated[
        float, Meta(description="seconds between checks of an unhealthy workload", gt=0)
    ] = 4.0
    monitor_retry_jitter: Annotated[float, Meta(description="random seconds added", ge=0)] = 15.0
    monitor_attempts: Annotated[
        int, Meta(description="unhealthy checks in a row before the lease is given up", ge=1)
    ] = 40
    check_timeout: Annotated[
        float, Meta(description="seconds a replica may take to accept a connection", gt=0)
    ] = 1.0

    # logs
    log_bytes: Annotated[
        int, Meta(description="bytes of a replica's log file before it is rotated", ge=4096)
    ] = 10 << 20
    log_files: Annotated[int, Meta(description="log files kept of a replica", ge=1, le=100)] = 3
    log_rate: Annotated[
        int, Meta(description="bytes of output a second taken from a replica", ge=4096)
    ] = 32 << 20
    log_retention: Annotated[
        float, Meta(description="seconds logs are kept after a lease has closed", ge=0)
    ] = 86_400.0

    # inventory
    gpus: Annotated[
        tuple[str, ...],
        Meta(
            description="GPUs offered, by their names in the machine's CDI files "
            "(nvidia.com/gpu=0); each belongs to one replica at a time"
        ),
    ] = ()
    gpu_model: Annotated[
        str,
        Meta(
            description="what they are: vendor/nvidia/model/a100/ram/80Gi/interface/pcie",
            pattern="^((vendor|model|ram|interface)/[^/]+(/(model|ram|interface)/[^/]+)*)?$",
        ),
    ] = ""
    cdi_folders: Annotated[
        tuple[str, ...], Meta(description="folders with CDI files; later ones win")
    ] = ("/etc/cdi", "/var/run/cdi")
    offer_cpu: Annotated[float, Meta(description="share of the CPUs offered", gt=0, le=1)] = 1.0
    offer_memory: Annotated[float, Meta(description="share of the memory offered", gt=0, le=1)] = (
        0.8
    )
    offer_storage: Annotated[float, Meta(description="share of the disk offered", gt=0, le=1)] = 0.8
    overcommit_cpu: Annotated[
        int, Meta(description="per cent of the CPUs sold beyond what there is", ge=0, le=10_000)
    ] = 0
    overcommit_memory: Annotated[
        int, Meta(description="per cent of the memory sold beyond what there is", ge=0, le=1000)
    ] = 0
    overcommit_storage: Annotated[
        int, Meta(description="per cent of the disk sold beyond what there is", ge=0, le=1000)
    ] = 0

    @property
    def https(self) -> bool:
        """Whether ingress listens for HTTPS."""
        return bool(self.ingress_certificates or self.acme_directory)

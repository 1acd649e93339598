"""The settings of the image data plane; bytes are bytes, times are seconds."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

MIB = 1024 * 1024
GIB = 1024 * MIB


class Registry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A registry that needs more than its host name."""

    name: Annotated[
        str, Meta(description="The host as written in references, e.g. docker.io", min_length=1)
    ]
    endpoint: Annotated[
        str | None,
        Meta(description="Base URL instead of https://<name>; http:// needs insecure = true"),
    ] = None
    aliases: Annotated[
        tuple[str, ...], Meta(description="Other values of the mirror's ns parameter it answers to")
    ] = ()
    credentials_file: Annotated[
        str | None,
        Meta(description="File holding user:password, read when the node starts; mode 0600"),
    ] = None
    insecure: Annotated[
        bool, Meta(description="Allow http. Loopback registries need no permission.")
    ] = False


class ImagesSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[images]``: store, origin, mirror and transfer of one node."""

    # where from
    registries: Annotated[
        tuple[Registry, ...],
        Meta(description="Registries with an endpoint, alias or credentials of their own"),
    ] = ()
    allow_registries: Annotated[
        tuple[str, ...],
        Meta(description="When set, only these registries are ever contacted (host[:port])"),
    ] = ()
    connect_seconds: Annotated[
        float, Meta(description="Connecting to a registry, token service or peer", gt=0)
    ] = 10.0
    stall_seconds: Annotated[
        float,
        Meta(description="An origin transfer without a single byte for so long has stalled", gt=0),
    ] = 30.0
    origin_attempts: Annotated[
        int,
        Meta(description="Tries of one origin transfer; each goes on where the last broke", ge=1),
    ] = 4
    origin_concurrency: Annotated[
        int, Meta(description="Origin transfers at a time on this node", ge=1)
    ] = 16
    image_concurrency: Annotated[
        int, Meta(description="Layers of one image fetched at a time", ge=1)
    ] = 6

    # the fleet
    fleet: Annotated[
        bool,
        Meta(
            description="whether leasehold up shares images with other nodes; also on with"
            " members_file, kubernetes_pod or seeds"
        ),
    ] = False
    node_name: Annotated[
        str, Meta(description="This node's name in the fleet; default: the host's name")
    ] = ""
    zone: Annotated[str, Meta(description="Where this node is, for images.coord.zone_scope")] = ""
    members_file: Annotated[
        str, Meta(description="JSON list of the fleet's nodes; read again when it changes")
    ] = ""
    seeds: Annotated[
        tuple[str, ...],
        Meta(
            description="Addresses of other nodes, /ip4/…/tcp/29401/p2p/…: nodes then announce"
            " themselves to one another, when no file and no pods tell who there is"
        ),
    ] = ()
    fleet_secret_file: Annotated[
        str, Meta(description="File with a secret only nodes that know it may announce with")
    ] = ""
    kubernetes_pod: Annotated[
        str,
        Meta(description="Name of the pod this node runs in: members are then the pods beside it"),
    ] = ""
    kubernetes_namespace: Annotated[str, Meta(description="Namespace of those pods")] = "default"
    kubernetes_labels: Annotated[
        str, Meta(description="Labels of those pods, key=value,key=value")
    ] = "app.kubernetes.io/name=leasehold-images"
    kubernetes_config: Annotated[
        str, Meta(description="Kubeconfig file; empty: the pod's service account")
    ] = ""

    # the store
    store: Annotated[
        str,
        Meta(description="disk (its own directory) or containerd (containerd's content store)"),
    ] = "disk"
    containerd_socket: Annotated[
        str, Meta(description="Socket of containerd when store = containerd")
    ] = "/run/containerd/containerd.sock"
    containerd_namespace: Annotated[
        str, Meta(description="containerd namespace; k8s.io under Kubernetes")
    ] = "k8s.io"
    budget_bytes: Annotated[
        int, Meta(description="Bytes of blobs kept before the least recently used leave", ge=1)
    ] = 50 * GIB
    headroom_percent: Annotated[
        float,
        Meta(description="Free disk kept, in percent of budget_bytes, whatever the holders", ge=0),
    ] = 5.0
    min_holders: Annotated[
        int,
        Meta(description="A digest fewer nodes hold is evicted only when the disk is short", ge=0),
    ] = 3
    fsync: Annotated[bool, Meta(description="Blobs reach the disk before they count as held")] = (
        True
    )
    keep_seconds: Annotated[
        float,
        Meta(description="An image unused for so long is forgotten by gc unless pinned", ge=0),
    ] = 7 * 86_400.0
    gc_seconds: Annotated[float, Meta(description="Between two collections of garbage", gt=0)] = (
        3600.0
    )

    # limits on what strangers send
    manifest_bytes: Annotated[
        int, Meta(description="Largest manifest, index or config", ge=1024)
    ] = 4 * MIB
    blob_bytes: Annotated[int, Meta(description="Largest blob", ge=1)] = 64 * GIB
    unpacked_bytes: Annotated[
        int, Meta(description="Largest layer once unpacked; stops compression bombs", ge=1)
    ] = 64 * GIB
    unpacked_entries: Annotated[int, Meta(description="Most files in a layer", ge=1)] = 1_000_000
    layers: Annotated[int, Meta(description="Most layers in an image", ge=1, le=500)] = 127

    # private images and tags
    access_recheck_seconds: Annotated[
        float,
        Meta(description="A lease's right to a private image is asked of the registry this often"),
    ] = 300.0
    access_bound_seconds: Annotated[
        float,
        Meta(description="With the registry down, a right seen this recently still holds"),
    ] = 3600.0
    known_tag_seconds: Annotated[
        float,
        Meta(description="With the registry down, a tag resolved this recently still resolves"),
    ] = 86_400.0

    # the mirror
    mirror_host: Annotated[str, Meta(description="Address of the mirror")] = "127.0.0.1"
    mirror_port: Annotated[int, Meta(description="Port of the mirror", ge=0, le=65535)] = 29500
    mirror_allow_non_loopback: Annotated[
        bool, Meta(description="Let the mirror listen beyond loopback (it has no authentication)")
    ] = False
    mirror_known_tag_seconds: Annotated[
        float,
        Meta(
            description="The mirror answers tags resolved this recently while the registry is"
            " down; 0: every tag is 503 and the client asks the registry itself"
        ),
    ] = 0.0
    mirror_shared_content: Annotated[
        bool,
        Meta(
            description="The mirror serves what any client of this node or cluster may pull."
            " Off: each request's own Authorization must pass at the registry"
        ),
    ] = True

    # the peer transfer
    transfer_host: Annotated[str, Meta(description="Address of the peer transfer")] = "0.0.0.0"
    transfer_port: Annotated[int, Meta(description="Port of the peer transfer", ge=0, le=65535)] = (
        29501
    )
    plaintext: Annotated[
        bool, Meta(description="Peer transfer over HTTP without TLS, for original agents")
    ] = False
    serve_cap: Annotated[
        int, Meta(description="Peers served at a time; the next is told 429 and whom to ask", ge=1)
    ] = 10
    stripe_holders: Annotated[
        int, Meta(description="Holders one large blob is fetched from at a time", ge=1)
    ] = 4
    peer_stall_seconds: Annotated[
        float, Meta(description="A peer that sends nothing for so long is left for another", gt=0)
    ] = 10.0
    peer_budget_seconds: Annotated[
        float,
        Meta(description="Without one new byte from any peer for so long, peers are given up"),
    ] = 300.0

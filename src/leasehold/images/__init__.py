"""Each image leaves its origin once: the node-side image system.

A digest is fetched from the registry by one node and copied from node to node. This package is
the data plane and the coordination; either works without the other.

data plane
    ``ports``       what the parts ask of one another
    ``oci``         manifests, indexes, configs: parse, check, choose a platform
    ``origin``      registries: tokens, ranges, guarded redirects
    ``staging``     content on its way in: any order, hashed as the prefix grows
    ``store``       verified content on disk by digest; ``eviction`` keeps it inside its budget
    ``unpack``      a layer becomes a directory; ``tarstream`` is what makes that safe
    ``download``    one digest on its way here: origin or holders, shared by all who ask
    ``service``     :class:`Images`, the face to the rest of Leasehold
    ``mirror``      what containerd, podman and skopeo talk to
    ``transfer``    what other nodes talk to

coordination
    ``coord/``      ``/gantry/coord``: who has it, who pulls it
    ``resolver``    the seven rules
    ``discovery``   provider records; ``membership`` who is in the cluster
"""

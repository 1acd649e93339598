"""Each image leaves its origin once: the node-side image system.

A digest is fetched from the registry by one node and copied from node to node. This package is
the data plane and the coordination; either works without the other.

data plane
    ``ports``        what the parts ask of one another
    ``oci``          manifests, indexes, configs: parse, check, choose a platform
    ``origin``       registries; ``challenge`` answers for tokens, ``guard`` watches redirects
    ``staging``      content on its way in: any order, hashed as the prefix grows
    ``store``        verified content on disk by digest; ``containerd`` the same in its store
    ``eviction``     inside the budget without losing the last copy; ``housekeeping`` the operator's
    ``download``     one digest on its way here, shared by all who ask
    ``peers``        how holders fill a download; ``peerclient`` and ``peertls`` reach them
    ``transfer``     what other nodes talk to
    ``mirror``       what containerd, podman and skopeo talk to; ``client_setup`` points them here
    ``unpack``       layers as directories; ``extraction`` fills one; ``tarstream`` makes that safe,
                     with ``tarheader`` (records) and ``lower`` (what is below)
    ``assembly``     one image put together; ``records`` what that took; ``access`` who may use it
    ``service``      :class:`Images`, the face to the rest of Leasehold
    ``build``        small images made in memory; ``memory`` a registry in memory, for tests

coordination
    ``coord/``      ``/gantry/coord``: who has it, who pulls it
    ``resolver``    the seven rules; ``neighbourhood`` whom it asks, ``judging`` what answers mean
    ``gate``        the last resort; ``hrw`` ranks; ``inflight``, ``negative``, ``quarantine``
    ``discovery``   provider records
    ``membership``  who is in the cluster: by hand, a file, ``gossip`` or ``kubernetes``
    ``node``        both halves as one service; ``testing`` a resolver among neighbours, for tests
"""

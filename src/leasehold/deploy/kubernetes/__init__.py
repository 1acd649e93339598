"""Leases on a Kubernetes cluster: one namespace each, watched and kept as it was applied.

``service``    the deploy system of a cluster, put together
``driver``     how a lease is brought up, watched, adopted and removed there
``render``     every object of a workload, as plain JSON; a pure function
``apply``      making objects be as rendered; seeing what others changed
``rollout``    one version brought up in place of another
``watch``      health, exits and repair of what is up
``cache``      what the API server says, as last heard: one watch a kind
``pods``       reading pods and controllers: is it up, and if not, why not
``api``        the API server: plain JSON objects, one kind of error
``inventory``  what the nodes offer
``logs``       logs of replicas that are there, with those ``kept`` of replicas that are gone
``exec``       commands inside replicas
``gpu``        node affinity for the GPU models a service asks for
``doctor``     what a cluster lacks
``testing``    a cluster in memory, for tests in virtual time
"""

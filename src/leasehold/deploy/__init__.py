"""Turns an accepted manifest into a running workload, and keeps it running.

Entities: it acts on ``lease`` entities. On ``manifest.received`` it pulls, prepares, starts, waits
for an answer and lets requests in (``deploy.image_pulled``, ``volume_ready``, ``started``,
``running``, ``healthy``, else ``failed``); afterwards it watches (``exited``, ``unhealthy``,
``healthy``); on ``lease.closed`` it removes everything (``removed``).

``service``     the deploy system of one machine, put together
``leases``      the activity on leases, and their deployments
``driver``      the seam between a deployment and what runs it
``local``       the driver of this machine
``deployment``  one lease: an actor running the table of ``machine``
``machine``     the six states and what moves them
``rollout``     one version brought up beside another without losing a request
``monitor``     restarts what ended
``verdict``     healthy, unhealthy or unknown; when a lease is given up
``workload``    names, revisions and environment, worked out of a manifest
``replica``     what is asked of a runtime, and what it answers
``routes``      ingress, node ports and names pointed at replicas
``logs``        reading replicas' logs
``doctor``      what this machine lacks
``keeper/``     the process that holds containers, ingress and names while the provider is away
``oci/``        containers by crun, runc or runsc
``net/``        the node's network namespace, its rules and its DNS
``ingress/``    haproxy and the table behind it
``kubernetes/`` the driver of a cluster
``ports``       what it needs: images, volumes, the market
"""

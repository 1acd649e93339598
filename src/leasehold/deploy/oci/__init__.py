"""Running replicas as OCI containers on this machine.

``image``    what an image's configuration says: command, user, environment, health check
``seccomp``  the system calls a replica may make
``bundle``   ``config.json``: namespaces, limits, mounts
``cgroups``  v1 and v2: reading usage, cleaning up
``driver``   starts and ends replicas through the keeper with crun, runc or runsc
"""

"""The keeper: the small process that holds what must outlive the provider.

It is exec'd once per state folder, imports the standard library only, and goes on when the
provider stops or is killed. It is the parent of every container (as sub-reaper), so exit codes are
never lost; it reads their output, so no writer ever blocks on a dead reader; and it holds the open
descriptors of network namespaces. Its mount namespace is its own: what it mounts is seen by nobody
else and is gone with it, and the cgroup hierarchy is arranged there as crun needs it.

``linux``      the system calls Python does not wrap
``userns``     user namespaces, id ranges and id-mapped mounts
``rootfs``     assembling a container's root: overlay, volumes, files, mount points
``journal``    what was started and how it ended, durable before it is answered
``logs``       output of a process into rotated files, a time on each line, at a bounded rate
``processes``  children, adopted strangers, exit codes
``host``       what is arranged on the host before serving
``server``     the socket and the loop
``client``     the provider's side (uses the rest of Leasehold)
"""

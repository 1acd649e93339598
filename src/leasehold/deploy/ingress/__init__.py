"""HTTP from outside to the replicas, by host name, through a haproxy of its own process.

The proxy runs in the node's network namespace with listening sockets that were opened on the host
and handed to it, and is kept by the keeper: it goes on answering while the provider is away.

``table``    what leads where: targets, hosts, servers; the commands that turn one into another
``config``   the proxy's configuration file as a function of the table
``haproxy``  the process, its admin socket, switching without losing a request
"""

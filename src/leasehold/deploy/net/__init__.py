"""The network of the leases, in one network namespace of the node.

Every replica has a namespace and an address of its own, joined by a routed pair of devices; what
may talk to what is one nftables table. The host sees a single uplink and one table of its own.

``netlink``  rtnetlink by hand: links, addresses, routes, neighbours
``nft``      nftables through its library
``node``     the node's namespace: uplink, rules, attach and detach of replicas
``names``    the DNS server that answers with a lease's own names
"""

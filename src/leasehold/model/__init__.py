"""Value types everybody shares; no behaviour beyond parsing, checking and printing.

``market``     owner, deployment, group, order, bid and lease ids
``resources``  cpu, memory, storage, gpu and endpoint amounts
``manifest``   what runs: groups of services; canonical JSON and version hash
``sdl``        the tenant's YAML and how it becomes groups and a manifest
``digest``     content digests
``reference``  image references
``chain``      blocks and transactions of any chain
``events/``    the payload of every event that crosses a package
"""

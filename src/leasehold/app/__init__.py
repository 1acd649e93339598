"""Where the parts are wired together, one module a role.

``settings``  the whole tree of settings, one section a part
``up``        every role in one process: what ``leasehold up`` runs
``adapters``  small classes that give one system what it asks of another through a port
``demo/``     the demonstration: image, registry, and the flow from order to first answer
"""

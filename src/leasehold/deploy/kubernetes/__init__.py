"""The Kubernetes mapping: a lease as objects of one namespace.

``render``   every object of a workload, as plain JSON; a pure function
``gpu``      node affinity for the GPU models a service asks for
"""

"""A fleet in one process: how often does a digest leave its origin, and how soon has everybody it?

Every node runs the real resolver, coordination server, pump, in-flight map, negative cache and
gate; only time, the wires, the DHT and the bytes are simulated. Time is virtual and every random
choice seeded: the same arguments give the same numbers.

    python -m sim images --nodes 1000 --scenario herd

``node``    one node: real coordination, simulated content
``fleet``   the world, its faults, the scenarios, one run
``report``  the command, its table and its pictures
"""

from sim.images.report import main

__all__ = ["main"]

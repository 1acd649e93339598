"""Leasehold turns a won lease into a running workload, and keeps it running.

The path through the packages is the path of a lease::

    market -> index -> market feed -> manifest -> images + storage -> deploy

Everything that happens is an event on an entity's stream (``events``); everything that
reacts is an activity that sleeps until its entity has news (``observe``). ``app`` wires
the parts into roles, ``cli`` and ``gateway`` are the faces.
"""

__version__ = "0.1.0"

"""Volumes as observed repos: registries, repos, workflows, and a shadow that records history.

``volumes``      what others use: a lease's volume, ready to be mounted; freeze, adopt, purge
``commands``     what may be asked for; ``state``: what the histories say
``observer``     the registry activity; ``repo_activity``: one repo; ``depchain``: whose turn it is
``replicate``    what follows in one history from another; moves, retention
``wiring``       puts the activities into an engine
``filesystem``   the files: made, served, snapshotted, frozen, moved, archived (``ports``)
``shadow``       snapshots in Git (``tree``: their records); ``content``: bytes kept once
``restore``, ``archive``, ``copying``, ``immutable``, ``gitlab``  one mechanism each
``testing``      repos without files, for tests and simulators

Entities: ``registry:<name>``, ``repo:<uuid>``, ``workflow:<id>``; events in
``model.events.storage``.
"""

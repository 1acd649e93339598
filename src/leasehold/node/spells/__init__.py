"""Spells: stored Starlark scripts fired by triggers.

``trigger``   what may fire a spell, and the rules of each clock
``schedule``  when each clock is due: a heap, no tasks, no time of its own
``bus``       waits for what is due and for connection, mailbox and log events
``store``     one SQLite file a spell: script, trigger, KV, errors, logs, mailbox, runs
``files``     the directories of spells, and which of their stores are open
``engine``    installs, updates in place, removes, runs
``migration`` state of an older schema, brought up on a copy
``functions`` a spell called like a service
``pool``      warm worker processes, killed on overrun; ``worker`` is what runs in them
"""

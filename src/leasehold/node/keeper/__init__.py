"""The small process that starts, restarts and logs a node's host processes.

It outlives the node: services go on while the node is being restarted or upgraded, crashed ones
are restarted meanwhile, and no line of output is lost. Standard library only, one thread, one
``selectors`` loop, exec'd once per state folder: ``python -m leasehold.node.keeper ROOT``.

*Nothing is started without being written down.* A child is forked, waits on a pipe, and executes
its program only after its pid and start time are in the journal; a keeper that is killed in
between leaves a child that reads end-of-file and exits. A keeper that starts again adopts what the
journal names, telling processes apart by pid *and* start time; it cannot know how an adopted
process ended, and says so (exit ``None``).

*Nothing is waited for.* That a child executes its program, or could not, arrives as one more event
of the loop, so that twenty services start side by side.

Output goes through a FIFO that the child opened for reading *and* writing, so that a service never
gets SIGPIPE when its reader is gone; it blocks when 64 KiB are waiting, and goes on afterwards.
Services get their listening socket as descriptor 3 (the ``LISTEN_FDS`` protocol): a caller can
connect before the service is up, and connections made during a restart wait instead of failing.

Protocol: JSON lines on ``keeper.sock``. Requests carry ``n`` and are answered with the same ``n``;
lines without ``n`` are changes of state, sent to everybody connected.

``loop``     descriptors and timers, and a failure that costs nothing but itself
``clients``  the protocol
``watch``    start, restart, stop, adopt
``process``  one service, and its log
``child``    between fork and exec
``script``   services in Python without an exec
"""

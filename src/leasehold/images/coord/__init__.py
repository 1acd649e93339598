"""Coordination between nodes: ``/gantry/coord/1.0.0`` and ``/gantry/coord/1.1.0``.

Two questions, each one stream, one request and one answer: *what do you know of this digest?*
(``pull_intent``) and *please pull these* (``please_pull``).

``messages``  the frames, byte for byte, as values
``server``    answers, on the wire and locally by the same code
``client``    asks, within two seconds, and never retries
``pump``      what "please pull" sets in motion
"""

PROTOCOL_1_0 = "/gantry/coord/1.0.0"
PROTOCOL_1_1 = "/gantry/coord/1.1.0"
MAX_MESSAGE = 1_048_576
"""Bytes of one frame's body; exactly so many are allowed."""

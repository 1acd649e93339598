"""How requests of a target are treated, and what of it the proxy must be reloaded for.

The names and defaults are those of a manifest's ``httpOptions``, which come from nginx; the proxy
is haproxy, so each is translated:

=============== ================================================================================
``max_body``    Content-Length above it: 413. A body of unknown length is counted while it passes.
``read_timeout``  silence of the service, also before its answer: 504
``send_timeout``  the service takes no data for so long: the connection is given up (TCP user
                timeout), 502
``next_tries``  tries in all, the first included; 0 stands for ``MOST_TRIES``
``next_timeout``  no further try is begun after so long; 0: no bound
``next_cases``  after which failures another try is made: ``error``, ``timeout``, a status, ``off``
=============== ================================================================================

Once a request was passed on, it is tried again only if its method may be repeated (not POST, PATCH,
LOCK). Sizes of the body, and the read timeout, are entries of maps; the rest stands in a backend's
own text, its :class:`Shape`.
"""

from __future__ import annotations

import msgspec

MOST_TRIES = 30
"""Tries where the tenant sets no bound; the proxy waits a second between tries at one replica."""

CONNECT_MS = 5_000
"""Milliseconds to connect to a replica of this machine."""

SHORTEST_CONNECT_MS = 100

RETRY_WAIT_MS = 1_000
"""haproxy's own pause before it tries the same server again."""

RETRY_ON = {
    "error": ("conn-failure", "empty-response", "junk-response"),
    "timeout": ("conn-failure", "response-timeout"),
    **{status: (status,) for status in ("403", "404", "500", "502", "503", "504")},
}
"""``next_cases`` in haproxy's words. It has none for 429, which is passed to the client."""


class Options(msgspec.Struct, frozen=True, omit_defaults=True):
    """Bytes and milliseconds; the market's defaults."""

    max_body: int = 1 << 20
    read_timeout_ms: int = 60_000
    send_timeout_ms: int = 60_000
    tries: int = 3
    next_timeout_ms: int = 0
    cases: tuple[str, ...] = ("error", "timeout")
    replicas: int = 1
    """As the manifest says: a lone replica that was too slow is not asked the same again."""


class Shape(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a backend's text says; another one needs a reload."""

    retries: int = 2
    retry_on: str = "conn-failure empty-response junk-response"
    connect_ms: int = CONNECT_MS
    send_timeout_ms: int = 60_000

    @classmethod
    def of(cls, options: Options) -> Shape:
        tries = options.tries or MOST_TRIES
        cases = options.cases or Options().cases
        retries = 0 if cases == ("off",) else min(tries, MOST_TRIES) - 1
        words = dict.fromkeys(word for case in cases for word in RETRY_ON.get(case, ()))
        connect = CONNECT_MS
        if options.replicas == 1:
            words.pop("response-timeout", None)
        if options.next_timeout_ms:
            # A refused connection costs a pause, an unanswered one the time to connect.
            retries = min(retries, options.next_timeout_ms // RETRY_WAIT_MS)
            connect = options.next_timeout_ms // (retries + 1)
            connect = max(SHORTEST_CONNECT_MS, min(CONNECT_MS, connect))
            if options.read_timeout_ms >= options.next_timeout_ms:
                words.pop("response-timeout", None)
        return cls(
            retries,
            " ".join(words) if retries and words else "none",
            connect,
            options.send_timeout_ms,
        )

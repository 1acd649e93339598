"""The proxy's configuration and map files, as functions of the table."""

from __future__ import annotations

import functools
import os

from leasehold.deploy.ingress.table import Options, Table, Target, name

HTTP_FD, ADMIN_FD, HTTPS_FD = 3, 4, 5
"""Descriptors under which the proxy inherits its listening sockets."""

DEFAULTS = Options()

# ruff: noqa: E501  (a line of the proxy's language cannot be broken)
_HEAD = """# Written by leasehold; changes are overwritten.
global
  maxconn {maxconn}
  nbthread {threads}
  stats socket fd@{admin} level admin
  stats timeout 1h
  tune.bufsize 16384
  hard-stop-after 60s
{identity}
defaults
  mode http
  option dontlognull
  option redispatch 1
  option forwardfor
  http-reuse safe
  retries {retries}
  retry-on conn-failure empty-response 0rtt-rejected
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  timeout http-request 30s
  timeout http-keep-alive 60s
  timeout queue 30s
  timeout tunnel 1h

frontend http
  bind fd@{http}
{tls}  http-request set-var(txn.host) req.hdr(host),field(1,:),lower
  http-request set-var(txn.be) var(txn.host),map_str(hosts.map)
  http-request return status 404 content-type text/plain string "no workload answers to this host name\\n" unless {{ var(txn.be) -m found }}
  http-request set-var(txn.limit) var(txn.be),map_str_int(body.map,{max_body})
  http-request set-var(txn.size) req.hdr_val(content-length)
  http-request return status 413 content-type text/plain string "the body is larger than this service accepts\\n" if {{ var(txn.limit),sub(txn.size) lt 0 }}
  http-request return status 411 content-type text/plain string "a body needs a Content-Length here\\n" if {{ req.hdr(transfer-encoding) -m found }}
  use_backend %[var(txn.be)]
"""


def render(table: Table, *, threads: int, maxconn: int, tls: bool = False) -> str:
    """``haproxy.cfg``: a pool of backends with server slots, filled as the table says."""
    head = _HEAD.format(
        maxconn=maxconn,
        threads=threads,
        http=HTTP_FD,
        admin=ADMIN_FD,
        retries=DEFAULTS.tries,
        max_body=DEFAULTS.max_body,
        identity="  user nobody\n  group nogroup\n" if os.geteuid() == 0 else "",
        tls=f"  bind fd@{HTTPS_FD} ssl crt-list certs.list alpn h2,http/1.1\n" if tls else "",
    )
    by_number = {target.backend: target for target in table.targets.values()}
    return head + "".join(
        _backend(number, table.slots, _filled(by_number.get(number)))
        for number in range(table.pool)
    )


Filled = tuple[int, tuple[tuple[int, str], ...]]
"""What a backend's text depends on: tries, and server lines by slot."""


def _filled(target: Target | None) -> Filled | None:
    if target is None:
        return None
    lines = (
        (slot, f"{server}{' weight 0' if slot in target.draining else ''}")
        for slot, server in target.slots.items()
    )
    return target.options.tries, tuple(sorted(lines))


@functools.lru_cache(maxsize=4096)
def _backend(number: int, slots: int, filled: Filled | None) -> str:
    """One backend of the pool. A change touches one of them; the others come from the cache."""
    tries, servers = filled or (DEFAULTS.tries, ())
    by_slot = dict(servers)
    lines = [
        f"\nbackend {name(number)}\n  balance leastconn\n"
        "  http-request set-timeout server var(txn.be),"
        f"map_str_int(read.map,{DEFAULTS.read_timeout_ms})\n"
    ]
    if tries != DEFAULTS.tries:
        lines.append(f"  retries {tries}\n")
    lines += [
        f"  server s{slot} {by_slot.get(slot, '0.0.0.0:1 disabled')}\n"
        for slot in range(1, slots + 1)
    ]
    return "".join(lines)


def maps(table: Table) -> dict[str, str]:
    """The map files: host to backend, and the options that differ from the defaults."""
    hosts, body, read = [], [], []
    for host, target in sorted(table.by_host(), key=lambda pair: pair[0]):
        hosts.append(f"{host} {name(target.backend)}\n")
    for target in table.targets.values():
        if target.options.max_body != DEFAULTS.max_body:
            body.append(f"{name(target.backend)} {target.options.max_body}\n")
        if target.options.read_timeout_ms != DEFAULTS.read_timeout_ms:
            read.append(f"{name(target.backend)} {target.options.read_timeout_ms}\n")
    return {"hosts.map": "".join(hosts), "body.map": "".join(body), "read.map": "".join(read)}

"""The proxy's configuration and map files, as functions of the table."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path

from leasehold.deploy.ingress.options import Options, Shape
from leasehold.deploy.ingress.table import PLAIN, Table, Target, name

HTTP_FD, ADMIN_FD, HTTPS_FD = 3, 4, 5
"""Descriptors under which the proxy inherits its listening sockets."""

CHALLENGE = "/.well-known/acme-challenge/"
"""Where a certificate authority looks for the proof that a name leads here (RFC 8555, 8.3)."""

TOO_LARGE = "the body is larger than this service accepts\\n"

DEFAULTS = Options()


@dataclass(frozen=True)
class Frame:
    """What does not depend on workloads. ``tls_port`` 0: no HTTPS. ``redirect``: plain requests
    for names with a certificate are sent to HTTPS."""

    threads: int
    maxconn: int
    tls_port: int = 0
    redirect: bool = False


# ruff: noqa: E501  (a line of the proxy's language cannot be broken)
_HEAD = """# Written by leasehold; changes are overwritten.
global
  maxconn {maxconn}
  nbthread {threads}
  stats socket fd@{admin} level admin
  stats timeout 1h
  tune.bufsize 16384
  hard-stop-after 60s
  lua-load-per-thread limit.lua
  ssl-default-bind-options ssl-min-ver TLSv1.2 no-tls-tickets
{identity}
defaults
  mode http
  option dontlognull
  option redispatch 1
  http-reuse safe
  retries {shape.retries}
  retry-on {shape.retry_on}
  timeout connect {shape.connect_ms}ms
  timeout client 60s
  timeout server 60s
  timeout http-request 30s
  timeout http-keep-alive 60s
  timeout queue 30s
  timeout tunnel 1h

frontend http
  bind fd@{http}
{tls}  option forwardfor
  http-request set-header X-Forwarded-Proto %[ssl_fc,iif(https,http)]
  http-request return status 200 content-type text/plain lf-string "%[path,field(4,/),map(acme.map)]" if {{ path_beg {challenge} }} {{ path,field(4,/),map(acme.map) -m found }}
{routing}  http-request set-var(txn.size) req.hdr_val(content-length)
  http-request return status 413 content-type text/plain string "{too_large}" if {{ var(txn.limit),sub(txn.size) lt 0 }}
  http-request disable-l7-retry if {{ method POST PATCH LOCK }}
  use_backend counted if {{ req.hdr(transfer-encoding) -m found }}
  use_backend counted if {{ req.ver -m beg 2 }} {{ method POST PUT PATCH DELETE }} !{{ req.hdr(content-length) -m found }}
  use_backend %[var(txn.be)]

# Bodies of unknown length go round once more, through a filter that costs too much for all.
backend counted
  retries 0
  retry-on none
  http-reuse never
  timeout server 70s
  errorfile 502 413.http
  server self unix@counted.sock send-proxy-v2

frontend counted
  bind unix@counted.sock accept-proxy mode 600{owner}
{again}  http-request disable-l7-retry if {{ method POST PATCH LOCK }}
  filter lua.body-limit
  use_backend %[var(txn.be)]
"""

_ROUTING = """  http-request set-var(txn.host) req.hdr(host),field(1,:),lower
  http-request set-var(txn.be) var(txn.host),map_str(hosts.map)
  http-request return status 404 content-type text/plain string "no workload answers to this host name\\n" unless {{ var(txn.be) -m found }}
{redirect}  http-request set-var(txn.limit) var(txn.be),map_str_int(body.map,{max_body})
"""


def render(table: Table, frame: Frame) -> str:
    """``haproxy.cfg``: a pool of backends with server slots, filled as the table says."""
    root = os.geteuid() == 0
    tls = f"  bind fd@{HTTPS_FD} ssl crt-list certs.list strict-sni alpn h2,http/1.1\n"
    redirect = (
        "  http-request redirect location "
        f"https://%[var(txn.host)]{'' if frame.tls_port == 443 else f':{frame.tls_port}'}"
        "%[pathq] code 308 if !{ ssl_fc } { var(txn.host),map(secure.map) -m found }\n"
    )
    head = _HEAD.format(
        maxconn=frame.maxconn,
        threads=frame.threads,
        http=HTTP_FD,
        admin=ADMIN_FD,
        shape=PLAIN,
        challenge=CHALLENGE,
        too_large=TOO_LARGE,
        identity="  user nobody\n  group nogroup\n" if root else "",
        owner=" user nobody" if root else "",
        tls=tls if frame.tls_port else "",
        routing=_ROUTING.format(
            max_body=DEFAULTS.max_body,
            redirect=redirect if frame.tls_port and frame.redirect else "",
        ),
        again=_ROUTING.format(max_body=DEFAULTS.max_body, redirect=""),
    )
    by_number = {target.backend: target for target in table.targets.values()}
    return head + "".join(
        _backend(number, table.slots, table.shape(number), _filled(by_number.get(number)))
        for number in range(table.pool)
    )


Filled = tuple[tuple[int, str], ...]
"""Server lines by slot."""


def _filled(target: Target | None) -> Filled:
    if target is None:
        return ()
    lines = (
        (slot, f"{server}{' weight 0' if slot in target.draining else ''}")
        for slot, server in target.slots.items()
    )
    return tuple(sorted(lines))


@functools.lru_cache(maxsize=4096)
def _backend(number: int, slots: int, shape: Shape, servers: Filled) -> str:
    """One backend of the pool. A change touches one of them; the others come from the cache."""
    by_slot = dict(servers)
    lines = [
        f"\nbackend {name(number)}\n  balance leastconn\n"
        "  http-request set-timeout server var(txn.be),"
        f"map_str_int(read.map,{DEFAULTS.read_timeout_ms})\n"
    ]
    if shape.retries != PLAIN.retries:
        lines.append(f"  retries {shape.retries}\n")
    if shape.retry_on != PLAIN.retry_on:
        lines.append(f"  retry-on {shape.retry_on}\n")
    if shape.connect_ms != PLAIN.connect_ms:
        lines.append(f"  timeout connect {shape.connect_ms}ms\n")
    # On each line: haproxy does not take this one over from default-server.
    patience = f" tcp-ut {shape.send_timeout_ms}ms"
    lines += [
        f"  server s{slot} {by_slot.get(slot, '0.0.0.0:1 disabled')}{patience}\n"
        for slot in range(1, slots + 1)
    ]
    return "".join(lines)


def maps(table: Table, secure: frozenset[str]) -> dict[str, str]:
    """The map files: host to backend, options that differ from the defaults, proofs for
    certificate authorities, and the hosts with a certificate."""
    hosts, body, read = [], [], []
    for host, target in sorted(table.by_host(), key=lambda pair: pair[0]):
        hosts.append(f"{host} {name(target.backend)}\n")
    for target in table.targets.values():
        if target.options.max_body != DEFAULTS.max_body:
            body.append(f"{name(target.backend)} {target.options.max_body}\n")
        if target.options.read_timeout_ms != DEFAULTS.read_timeout_ms:
            read.append(f"{name(target.backend)} {target.options.read_timeout_ms}\n")
    return {
        "hosts.map": "".join(hosts),
        "body.map": "".join(body),
        "read.map": "".join(read),
        "acme.map": "".join(f"{token} {text}\n" for token, text in table.challenges.items()),
        "secure.map": "".join(f"{host} 1\n" for host in sorted(secure)),
    }


def files(table: Table, frame: Frame, secure: frozenset[str]) -> dict[str, str]:
    """Every file the proxy reads but the certificates themselves."""
    message = TOO_LARGE.replace("\\n", "\n")
    return {
        **maps(table, secure),
        "certs.list": "".join(f"certs/{name}\n" for name in table.certificates),
        "limit.lua": _LIMIT,
        "413.http": "HTTP/1.1 413 Payload Too Large\r\nContent-Type: text/plain\r\n"
        f"Content-Length: {len(message)}\r\nConnection: close\r\n\r\n{message}",
        "haproxy.cfg": render(table, frame),
    }


_LIMIT = Path(__file__).with_name("limit.lua").read_text()

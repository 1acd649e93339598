"""Services of an SDL: image, command, exposes, parameters, credentials."""

from __future__ import annotations

import re

from leasehold.model.hostname import is_subdomain
from leasehold.model.manifest import Credentials, HttpOptions
from leasehold.model.resources import U32_MAX
from leasehold.model.sdl.nodes import At
from leasehold.model.sdl.spec import ExposeSpec, Mount, Params, ServiceSpec, To
from leasehold.model.shape import MAX_NAME, SERVICE_NAME, is_env_name

MAX_BODY = 100 * 1024 * 1024
"""Largest request body a service may ask ingress to pass, in bytes."""

MAX_TIMEOUT_MS = 60_000
MAX_PROXY_BUFFER = 1024 * 1024
DEFAULT_BODY = 1024 * 1024
DEFAULT_TRIES = 3
NEXT_CASES = ("error", "timeout", "403", "404", "429", "500", "502", "503", "504", "off")
PERMISSIONS = ("logs", "events")
TEE_TYPES = ("cpu", "cpu-gpu")
HOST = re.compile(r"^[A-Za-z0-9]([-._A-Za-z0-9]*[A-Za-z0-9])?\Z")

_SIZED = "resources belong under profiles.compute"
_VOLUME = "a volume is named in profiles.compute and mounted in params.storage"
_ORDER = "leave it out: services start together, and one that fails is started again"
_RESTART = "leave it out: a service that ends is started again"
ELSEWHERE = {
    "build": "only images are run: build it, push it, and name it under image",
    "cmd": "write args (what the image starts stays) or command (what to start instead)",
    "count": "it belongs under deployment",
    "depends-on": _ORDER,
    "depends_on": _ORDER,
    "entrypoint": "write command",
    "environment": "write env, a list of NAME=value",
    "healthcheck": _RESTART,
    "links": "leave it out: the other service names this one under its expose.to",
    "mounts": _VOLUME,
    "networks": "leave it out: services of one placement reach each other by name",
    "ports": "write expose",
    "resources": _SIZED,
    "restart": _RESTART,
    "storage": _SIZED,
    "volumes": _VOLUME,
}
"""Words of other formats that people write under a service, and what to do instead."""

_BYTES = "a whole number of bytes"
_MILLISECONDS = "a whole number of milliseconds"
_LIST = "write [one, two], or each entry in a line with '- ' before it"
_EXPOSE = "write - port: 8080, and under it as and to"
_PORT = "a port is one number, no range: port is the service's own, as is the public one"
_TO = "write - global: true, or - service: NAME"


def read_service(name: str, at: At, trim: bool) -> ServiceSpec:
    got = at.members(
        ("image", "command", "args", "env", "expose", "params", "credentials", "dependencies"),
        ELSEWHERE,
    )
    if not SERVICE_NAME.match(name) or len(name) > MAX_NAME:
        at.fail(
            "service_name",
            f"{name!r} cannot be a service's name: lower-case letters, digits and '-', at most 63, "
            "starting with a letter and not ending with '-'",
            "a name like web-1",
            name,
        )
    image = (got["image"].text() or "") if "image" in got else ""
    if not image.strip():
        got.get("image", at).fail(
            "image_missing", f"service {name!r} needs an image", "an image reference", image
        )
    if "dependencies" in got:
        for item in got["dependencies"].items():
            if item.is_mapping:
                item.members(("service",))
    return ServiceSpec(
        at,
        name,
        image,
        _read_list(got.get("command")),
        _read_list(got.get("args")),
        _read_env(got.get("env")),
        [_read_expose(item) for item in got["expose"].items(_EXPOSE)] if "expose" in got else [],
        _read_params(got["params"]) if "params" in got and not got["params"].is_null else None,
        _read_credentials(got.get("credentials"), trim),
    )


def _read_list(at: At | None) -> list[str] | None:
    """Absent is null, an empty list stays one: the hash tells them apart."""
    return None if at is None or at.is_null else at.texts(_LIST)


def _read_env(at: At | None) -> list[str] | None:
    if at is None or at.is_null:
        return None
    if at.is_mapping:
        _env_mapping(at)
        return None
    out = []
    for item in at.items(_LIST):
        if item.is_mapping:
            _env_mapping(item)
            continue
        entry = item.text()
        if entry is None:
            continue
        name = entry.partition("=")[0]
        if not is_env_name(name):
            item.fail(
                "env_name",
                f"{name[:100]!r} cannot be the name of an environment variable"
                + ("; write NAME=value, without a space before '='" if " " in name else ""),
                "NAME or NAME=value",
                name[:100],
            )
        out.append(entry)
    return out


def _env_mapping(at: At) -> None:
    at.fail(
        "env_mapping",
        "env is a list of entries, not a mapping: write - NAME=value",
        "- NAME=value",
        "NAME: value",
    )


def _read_credentials(at: At | None, trim: bool) -> Credentials | None:
    if at is None or at.is_null:
        return None
    known = ("host", "email", "username", "password")
    got = {key: place.text() or "" for key, place in at.members(known).items()}
    if trim:
        got = {key: value.strip() for key, value in got.items()}
    for key in ("host", "username", "password"):
        if not got.get(key, "").strip():
            at.fail(
                "credentials", f"credentials need {key!r}", "host, username, password", "nothing"
            )
    if not trim:
        # Version 2.0 never carried the e-mail over; the hash depends on it.
        got.pop("email", None)
    return Credentials(**got)


def _read_expose(at: At) -> ExposeSpec:
    got = at.members(("port", "as", "proto", "to", "accept", "http_options"), hint=_EXPOSE)
    if "port" not in got:
        at.fail("missing", "'port' is missing", "1..65535", "nothing")
    proto_at = got.get("proto")
    said = (proto_at.text() if proto_at else "") or "tcp"
    proto = said.upper()
    if proto not in ("TCP", "UDP"):
        assert proto_at is not None
        proto_at.fail(
            "proto", f"unknown protocol {said!r}; http and https are tcp", "tcp | udp", said
        )
        proto = "TCP"
    hosts = got["accept"].items("write - HOST") if "accept" in got else []
    return ExposeSpec(
        at,
        got["port"].integer(1, 65535, hint=_PORT) if "port" in got else 1,
        got["as"].integer(0, 65535, hint=_PORT) if "as" in got and not got["as"].is_null else 0,
        proto,
        [_read_to(item) for item in got["to"].items(_TO)] if "to" in got else [],
        [_read_host(item) for item in hosts],
        hosts,
        _read_http(got.get("http_options")),
    )


def _read_to(at: At) -> To:
    got = at.members(("service", "global", "ip"), hint=_TO)
    to = To(
        at,
        (got["service"].text() or "") if "service" in got else "",
        got["global"].boolean() if "global" in got else False,
        (got["ip"].text() or "") if "ip" in got else "",
    )
    if not got and (at.is_null or not at.node.value):
        at.fail("to", f"nobody is named: {_TO}", "service | global: true", "none")
    return to


def _read_host(at: At) -> str:
    host = at.text() or ""
    if not HOST.match(host):
        at.fail("accept", f"{host!r} is not a host name", _host_form(host), host)
    elif not is_subdomain(host):
        at.fail(
            "host",
            f"{host[:100]!r} is not a host name of lower-case letters, digits, '-' and '.'",
            host.lower() if is_subdomain(host.lower()) else "a lower-case DNS name",
            host[:100],
        )
    return host


def _read_http(at: At | None) -> HttpOptions:
    got = (
        at.members(
            (
                "max_body_size",
                "read_timeout",
                "send_timeout",
                "next_tries",
                "next_timeout",
                "next_cases",
                "proxy_buffer_size",
            )
        )
        if at is not None
        else {}
    )

    def number(key: str, most: int, default: int, kind: str = "a whole number") -> int:
        return (got[key].integer(0, most, kind) if key in got else 0) or default

    cases = got["next_cases"].texts(_LIST) if "next_cases" in got else []
    for case in cases:
        if case not in NEXT_CASES:
            got["next_cases"].fail(
                "next_cases", f"unknown case {case!r}", " | ".join(NEXT_CASES), case
            )
    if "off" in cases and len(cases) > 1:
        got["next_cases"].fail("next_cases", "'off' stands alone", "off", ", ".join(cases))
    return HttpOptions(
        max_body_size=number("max_body_size", MAX_BODY, DEFAULT_BODY, _BYTES),
        read_timeout=number("read_timeout", MAX_TIMEOUT_MS, MAX_TIMEOUT_MS, _MILLISECONDS),
        send_timeout=number("send_timeout", MAX_TIMEOUT_MS, MAX_TIMEOUT_MS, _MILLISECONDS),
        next_tries=number("next_tries", U32_MAX, DEFAULT_TRIES),
        next_timeout=number("next_timeout", U32_MAX, 0, _MILLISECONDS),
        next_cases=cases or ["error", "timeout"],
        proxy_buffer_size=number("proxy_buffer_size", MAX_PROXY_BUFFER, 0, _BYTES),
    )


def _read_params(at: At) -> Params:
    got = at.members(("storage", "permissions", "tee"), {"resources": _SIZED})
    params = Params(at)
    if "storage" in got:
        for name, place in sorted(
            got["storage"].members(hint="write NAME, and under it mount").items()
        ):
            given = place.members(("mount", "readOnly"), hint="write mount: /path")
            params.mounts.append(
                Mount(
                    place,
                    name,
                    (given["mount"].text() or "") if "mount" in given else "",
                    given["readOnly"].boolean() if "readOnly" in given else False,
                )
            )
    if "permissions" in got:
        read_at = got["permissions"].members(("read",)).get("read")
        params.read = read_at.texts() if read_at else []
        for value in params.read:
            if value not in PERMISSIONS and read_at:
                read_at.fail(
                    "permission", f"unknown permission {value!r}", " | ".join(PERMISSIONS), value
                )
    if "tee" in got:
        params.tee = got["tee"].text() or ""
        if params.tee and params.tee not in TEE_TYPES:
            got["tee"].fail("tee", f"unknown tee {params.tee!r}", " | ".join(TEE_TYPES), params.tee)
            params.tee = ""
    return params


def _host_form(given: str) -> str:
    """What to write instead: the host of a URL, the names a wildcard stands for."""
    bare = (given.partition("://")[2] or given).partition("/")[0].partition(":")[0]
    if bare and HOST.match(bare):
        return f"{bare} (without https://)" if "://" in given else bare
    return "a host name, each name by itself" if "*" in given else "a host name"

"""``leasehold images``: what is here, where it came from, and getting or dropping it.

With a provider running on this machine its API is asked, with `leasehold node --only images` its
socket; otherwise the command opens the images folder itself, which only one process may do at a
time.
"""

from __future__ import annotations

import contextlib
import datetime
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Container images of this node.")

SOCKET = "images.sock"
"""In the state folder, mode 0600: where ``leasehold node --only images`` answers."""

STATE = typer.Option(None, help="State folder of the provider of this machine.")
JSON = typer.Option(False, "--json", help="As JSON.")


@app.command()
def ls(state: Path = STATE, as_json: bool = JSON) -> None:
    """List images, latest use last."""
    rows = _ask("GET", "/v1/images", state, lambda images, report: _listing(images, report))
    if as_json:
        _print_json(rows)
        return
    for row in rows:
        used = datetime.datetime.fromtimestamp(row["used"]).strftime("%Y-%m-%d %H:%M")
        marks = " pinned" if row["pinned"] else ""
        marks += f" used by {len(row['holds'])}" if row["holds"] else ""
        print(
            f"{_short(row['digest'])}  {_size(row['size']):>9}  {used}  {row['reference']}{marks}"
        )


@app.command()
def pull(
    reference: str = typer.Argument(help="For example docker.io/library/nginx:1.27."),
    username: str = typer.Option("", help="User at the registry; the password comes from stdin."),
    state: Path = STATE,
    as_json: bool = JSON,
) -> None:
    """Pull and unpack an image; says how many bytes came from the origin, peers and the cache."""
    password = sys.stdin.readline().rstrip("\n") if username else ""
    body = {"reference": reference, "username": username, "password": password}

    def directly(images: Any, report: Any) -> Any:
        return report.pull(images, reference, username, password)

    from leasehold.cli.progress import showing

    with showing(lambda: _flights(state)):
        done = _ask("POST", "/v1/images/pull", state, directly, body)
    if as_json:
        _print_json(done)
        return
    came = done["bytes"]
    print(f"{done['reference']} is {done['digest']}")
    print(
        f"  {_size(done['size'])} in {done['layers']} layers, ready after {done['seconds']:.2f} s:"
        f" {_size(came['origin'])} from its registry, {_size(came['peers'])} from peers,"
        f" {_size(came['cache'])} were here"
    )


@app.command()
def explain(
    name: str = typer.Argument(help="A reference, a digest or the beginning of one."),
    state: Path = STATE,
    as_json: bool = JSON,
) -> None:
    """Say where each part of an image came from, and how long it took."""
    found = _ask(
        "GET",
        "/v1/images/explain",
        state,
        lambda images, report: _now(report.explained(images.keeping.find(name))),
        query={"name": name},
    )
    if as_json:
        _print_json(found)
        return
    print(f"{found['reference']} {found['digest']}")
    for part in found["parts"]:
        came = ", ".join(f"{_size(n)} {source}" for source, n in part["sources"].items())
        unpacked = f", unpacked in {part['unpack_seconds']:.2f} s" if part["unpack_seconds"] else ""
        print(
            f"  {part['kind']:8} {_short(part['digest'])}  {_size(part['size']):>9}"
            f"  {came or 'nothing'} in {part['seconds']:.2f} s{unpacked}"
        )
    print(f"  ready after {found['seconds']:.2f} s")


@app.command()
def holders(
    name: str = typer.Argument(help="A reference, a digest or the beginning of one."),
    state: Path = STATE,
    as_json: bool = JSON,
) -> None:
    """Say which nodes of the fleet hold each part of an image, or a digest."""
    found = _ask(
        "GET",
        "/v1/images/holders",
        state,
        lambda images, report: report.holders(images, name),
        query={"name": name},
    )
    if as_json:
        _print_json(found)
        return
    for part in found:
        nodes = ["this node"] * part["here"] + (part["others"] or [])
        unknown = f" (others unknown: {part['why']})" if part["others"] is None else ""
        print(f"{part['kind']:8} {_short(part['digest'])}  {', '.join(nodes) or 'nobody'}{unknown}")


@app.command()
def fleet(state: Path = STATE, as_json: bool = JSON) -> None:
    """Show the nodes images are shared with, what cools down and an hour of bytes by source."""
    found = _ask(
        "GET", "/v1/images/fleet", state, lambda images, report: _now(report.fleet(images))
    )
    if as_json:
        _print_json(found)
        return
    if not found["node"]:
        print("this node shares images with nobody (images.fleet)")
    for member in found["members"]:
        mark = "  this node" if member["here"] else ""
        print(f"{member['node']}  {member['transfer']}  {member['zone']}{mark}".rstrip())
    if found["health"] is not None:
        print(f"provider records can be believed to {found['health']:.0%}")
    for cooling in found["cooling"]:
        print(
            f"cools down {_short(cooling['digest'])}  {cooling['failure']}, failed"
            f" {cooling['failures']} times, tried again in {cooling['remaining']:.0f} s"
        )
    came = {name: sum(minute[name] for minute in found["traffic"]) for name in ("origin", "peers")}
    print(f"last hour: {_size(came['origin'])} from registries, {_size(came['peers'])} from peers")


@app.command()
def inflight(state: Path = STATE, as_json: bool = JSON) -> None:
    """List what is being fetched just now, with the bytes that are here."""
    found = _ask(
        "GET", "/v1/images/inflight", state, lambda images, report: _now(report.flights(images))
    )
    if as_json:
        _print_json(found)
        return
    for flight in found:
        whole = _size(flight["size"]) if flight["size"] else "unknown"
        print(
            f"{flight['kind']:8} {_short(flight['digest'])}  {_size(flight['received'])} of {whole}"
            f"  {flight['registry']}/{flight['repository']}"
        )
    if not found:
        print("nothing is being fetched")


@app.command()
def inspect(
    name: str = typer.Argument(help="A reference, a digest or the beginning of one."),
    state: Path = STATE,
    as_json: bool = JSON,
) -> None:
    """Show manifest and config of an image (always as JSON)."""
    _print_json(
        _ask(
            "GET",
            "/v1/images/inspect",
            state,
            lambda images, report: report.inspect(images, name),
            query={"name": name},
        )
    )


@app.command()
def pin(
    name: str = typer.Argument(help="A reference, a digest or the beginning of one."),
    off: bool = typer.Option(False, "--off", help="Let it go again."),
    state: Path = STATE,
    as_json: bool = JSON,
) -> None:
    """Keep an image whatever happens: no eviction, no garbage collection."""
    row = _ask(
        "POST",
        "/v1/images/pin",
        state,
        lambda images, report: _now(report.listed(images.keeping.pin(name, pinned=not off))),
        {"name": name, "pinned": not off},
    )
    if as_json:
        _print_json(row)
    else:
        print(f"{row['reference']} is {'pinned' if row['pinned'] else 'not pinned'}")


@app.command()
def gc(
    keep: float = typer.Option(None, help="Seconds an unused image is kept; default: the setting."),
    state: Path = STATE,
    as_json: bool = JSON,
) -> None:
    """Forget unused images and drop the layers and blobs nobody needs."""
    done = _ask(
        "POST",
        "/v1/images/gc",
        state,
        lambda images, _: images.keeping.gc(keep),
        {"keep_seconds": keep},
    )
    if as_json:
        _print_json(done)
        return
    print(
        f"forgot {len(done['images'])} images, dropped {done['layers']} unpacked layers and"
        f" {done['blobs']} blobs ({_size(done['blob_bytes'])})"
    )
    if done["deferred"]:
        print(f"  {done['deferred']} blobs stay although there is too little room: few others hold")
        print("  them (images.min_holders)")


@app.command()
def verify(state: Path = STATE, as_json: bool = JSON) -> None:
    """Hash every blob again; what is bad is dropped and fetched anew when needed."""
    done = _ask("POST", "/v1/images/verify", state, lambda images, _: images.keeping.verify())
    if as_json:
        _print_json(done)
    else:
        print(
            f"{done['good']} blobs are good ({_size(done['bytes'])}), {len(done['bad'])} were bad"
        )
        for digest in done["bad"]:
            print(f"  dropped {digest}")
    if done["bad"]:
        raise typer.Exit(1)


@app.command()
def identity(state: Path = STATE, as_json: bool = JSON) -> None:
    """Show this node's peer id, as other nodes' files and seeds need it; makes it when new."""
    from leasehold.cli.state import state_folder
    from leasehold.p2p.keys import KeyPair

    folder = state_folder(state) / "images"
    folder.mkdir(parents=True, exist_ok=True)
    peer = str(KeyPair.load_or_create(folder / "identity").peer_id)
    if as_json:
        _print_json({"peer_id": peer})
    else:
        print(peer)


_opened: list[Any] = []
"""The images folder this command has opened itself, if it has."""


def _flights(state: Path | None) -> Any:
    """What is being fetched, by this command or by what runs here, as a progress bar shows it."""
    import msgspec

    from leasehold.cli.progress import Far

    if _opened:
        from leasehold.images import report

        flights = msgspec.to_builtins(report.flights(_opened[0]))
    else:
        with _running(state) as api:
            flights = api.get("/v1/images/inflight") if api is not None else []
    if not flights:
        return Far(0, 0, "resolving or unpacking")
    here = sum(flight["received"] for flight in flights)
    known = all(flight["size"] for flight in flights)
    total = sum(flight["size"] for flight in flights) if known else 0
    of = f" of {_size(total)}" if total else ""
    parts = f"{len(flights)} part{'s' if len(flights) > 1 else ''}"
    return Far(here, total, f"{_size(here)}{of} in {parts}")


def _ask(
    method: str,
    path: str,
    state: Path | None,
    directly: Any,
    body: Any = None,
    *,
    query: dict[str, str] | None = None,
) -> Any:
    """By the API of the provider that runs here, else on the folder itself."""
    with _running(state) as api:
        if api is not None:
            if method == "GET":
                return api.get(path, **(query or {}))
            return api.post(path, {} if body is None else body)
    return _alone(state, directly)


@contextlib.contextmanager
def _running(state: Path | None) -> Iterator[Any]:
    """The API of the provider that runs here, else of the image system that runs alone, if any."""
    from leasehold.cli.client import Api, operator
    from leasehold.cli.state import running, state_folder
    from leasehold.core.errors import LeaseholdError

    with contextlib.ExitStack() as closing:
        try:
            running(state)
        except LeaseholdError as error:
            if error.code != "not_up":
                raise
        else:
            yield closing.enter_context(operator(state))
            return
        socket = state_folder(state) / SOCKET
        api = Api("http://images", "owner-of-the-socket", socket=socket)
        closing.callback(api.close)
        yield api if _answers(socket) else None


def _answers(path: Path) -> bool:
    """Whether somebody listens: a socket outlives a process that was killed."""
    import socket

    with socket.socket(socket.AF_UNIX) as tried, contextlib.suppress(OSError):
        tried.connect(str(path))
        return True
    return False


def _alone(state: Path | None, directly: Any) -> Any:
    import asyncio

    import msgspec

    from leasehold.app.settings import read
    from leasehold.cli.state import state_folder
    from leasehold.core.logs import configure
    from leasehold.core.service import running as started
    from leasehold.images import report
    from leasehold.images.service import Images

    configure("warning")

    async def go() -> Any:
        folder = state_folder(state)
        images = Images(folder / "images", settings=read(folder).values.images)
        async with started(images):
            _opened.append(images)
            return msgspec.to_builtins(await directly(images, report))

    return asyncio.run(go())


async def _listing(images: Any, report: Any) -> Any:
    return [report.listed(record) for record in images.keeping.list()]


async def _now(value: Any) -> Any:
    return value


def _short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:12]


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def _print_json(value: Any) -> None:
    from leasehold.cli.state import print_json

    print_json(value)

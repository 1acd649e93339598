"""``leasehold manifest``: what a deployment's providers were sent, trying another, going back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from leasehold.core.errors import Kind, LeaseholdError, Violation

app = typer.Typer(
    help="Accepted manifests of a deployment: list, try another, go back, take host names over.",
    no_args_is_help=True,
)

DEPLOYMENT = typer.Argument(help="The deployment: acme/1, or 1 of the first account.")
LEDGER = typer.Option(None, help="RPC of the market; default: of this machine.")
STATE = typer.Option(None, help="State folder of the provider of this machine.")
JSON = typer.Option(False, "--json", help="As JSON.")


class Side:
    """A tenant's deployment and the providers that hold leases of it."""

    def __init__(self, deployment: str, ledger: str | None, state: Path | None) -> None:
        from leasehold.app.accounts import Accounts
        from leasehold.cli.state import home_folder, running

        name, slash, number = deployment.rpartition("/")
        if not number.isascii() or not number.isdigit():
            raise LeaseholdError(
                "bad_id",
                f"{deployment!r} is no deployment; write it as acme/1",
                kind=Kind.MALFORMED,
                expected="account/dseq",
                got=deployment,
            )
        self.name, self.key = Accounts(home_folder()).key(name if slash else None)
        self.dseq = int(number)
        self.ledger = ledger or running(state).ledger

    def on_market(self, action: Any) -> Any:
        """Run ``action(client)`` with a client that signs as the tenant."""
        import asyncio

        from leasehold.market.client import LedgerClient

        async def go() -> Any:
            async with LedgerClient(self.ledger, self.key) as client:
                return await action(client)

        return asyncio.run(go())

    @contextmanager
    def providers(self) -> Iterator[list[Any]]:
        """The APIs of the providers with a live lease."""
        import time

        from leasehold.cli.client import Api
        from leasehold.market.accounts import sign_token

        async def find(client: Any) -> list[str]:
            names: dict[str, None] = {}
            async for lease in client.list("leases", owner=self.key.address, dseq=self.dseq):
                if lease["state"] in ("active", "reclaiming"):
                    names[lease["id"].rpartition("/")[2]] = None
            return [(await client.get("providers", name))["host_uri"] for name in names]

        urls = self.on_market(find)
        if not urls:
            raise LeaseholdError(
                "no_lease",
                f"{self.name}/{self.dseq} has no live lease",
                kind=Kind.NOT_FOUND,
                got=f"{self.name}/{self.dseq}",
            )
        apis = [Api(url, sign_token(self.key, time.time())) for url in urls]
        try:
            yield apis
        finally:
            for api in apis:
                api.close()


@app.command()
def history(
    deployment: str = DEPLOYMENT,
    ledger: str = LEDGER,
    state: Path = STATE,
    as_json: bool = JSON,
) -> None:
    """The manifests that were accepted, newest first: when, hash, who sent it, images."""
    side = Side(deployment, ledger, state)
    with side.providers() as apis:
        kept = [entry for api in apis for entry in api.get(f"/deployment/{side.dseq}/manifests")]
    show_history(kept, as_json)


def show_history(kept: list[dict[str, Any]], as_json: bool) -> None:
    """Kept manifests: the current one has a star."""
    import datetime as dt

    from leasehold.cli.market import Names
    from leasehold.cli.state import print_json
    from leasehold.cli.tables import table

    if as_json:
        print_json(kept)
        return
    names = Names()
    rows = [
        [
            ("* " if entry["current"] else "  ") + entry["hash"][:12],
            dt.datetime.fromtimestamp(entry["at"], dt.UTC).isoformat(timespec="seconds"),
            names.address(entry["sender"]),
            ", ".join(f"{name}={image}" for name, image in entry["images"].items()),
            entry["hash"],
        ]
        for entry in kept
    ]
    table(["  MANIFEST", "ACCEPTED", "SENT BY", "IMAGES", "+HASH"], rows, empty="none accepted")


def previous(deployment: str, ledger: str | None, state: Path | None) -> str:
    """The hash of the manifest before the current one."""
    side = Side(deployment, ledger, state)
    with side.providers() as apis:
        kept = [entry for api in apis for entry in api.get(f"/deployment/{side.dseq}/manifests")]
    now = {entry["hash"] for entry in kept if entry["current"]}
    for entry in sorted(kept, key=lambda e: e["at"], reverse=True):
        if entry["hash"] not in now:
            return str(entry["hash"])
    raise LeaseholdError(
        "no_earlier_manifest",
        f"{deployment} has no manifest to go back to: only the current one was ever accepted",
        kind=Kind.NOT_FOUND,
        got=deployment,
    )


@app.command()
def rollback(
    hash: str = typer.Argument(help="Hash of an accepted manifest, or the beginning of it."),
    deployment: str = DEPLOYMENT,
    wait: bool = typer.Option(True, help="Wait until it is healthy or failed."),
    ledger: str = LEDGER,
    state: Path = STATE,
    as_json: bool = JSON,
) -> None:
    """Go back to a manifest: put its hash on the market and have the providers run it again."""
    from leasehold.cli.state import print_json

    side = Side(deployment, ledger, state)
    with side.providers() as apis:
        kept = [entry for api in apis for entry in api.get(f"/deployment/{side.dseq}/manifests")]
        found = sorted({e["hash"] for e in kept if e["hash"].startswith(hash.lower())})
        if len(found) != 1:
            raise LeaseholdError(
                "kept_manifest_not_found" if not found else "kept_manifest_ambiguous",
                f"{len(found)} accepted manifests begin with {hash!r}; see leasehold manifest "
                "history",
                kind=Kind.NOT_FOUND,
                got=hash,
            )
        side.on_market(lambda client: client.update_deployment(side.dseq, found[0]))
        tail = "?wait=healthy" if wait else ""
        results = [
            api.post(f"/deployment/{side.dseq}/rollback{tail}", {"hash": found[0]}) for api in apis
        ]
    _show(results, side, as_json, print_json)


@app.command()
def send(
    file: Path = typer.Argument(help="The changed SDL file."),
    deployment: str = DEPLOYMENT,
    wait: bool = typer.Option(True, help="Wait until it is healthy or failed."),
    ledger: str = LEDGER,
    state: Path = STATE,
    as_json: bool = JSON,
) -> None:
    """Update a deployment: put the SDL's hash on the market and send its manifest."""
    from leasehold.cli.sdl import _read
    from leasehold.cli.state import print_json
    from leasehold.model import sdl
    from leasehold.model.manifest import canonical

    side = Side(deployment, ledger, state)
    loaded = sdl.load(_read(str(file)))
    hash, body = loaded.hash.hex(), canonical(loaded.manifest())
    with side.providers() as apis:
        for api in apis:
            # Tried first: a manifest that would be refused must not get its hash on the market.
            report = api.request("POST", f"/deployment/{side.dseq}/validate", content=body)
            wrong = [v for v in report["violations"] if v["code"] != "hash_mismatch"]
            if wrong:
                raise LeaseholdError.of([Violation(**_known(v)) for v in wrong])

        async def announce(client: Any) -> None:
            id = f"{side.key.address}/{side.dseq}"
            if (await client.get("deployments", id))["hash"] != hash:
                await client.update_deployment(side.dseq, hash)

        side.on_market(announce)
        tail = "?wait=healthy" if wait else ""
        results = [
            api.request("PUT", f"/deployment/{side.dseq}/manifest{tail}", content=body)
            for api in apis
        ]
    _show(results, side, as_json, print_json)


@app.command()
def take(
    deployment: str = typer.Argument(help="The deployment that gets them: acme/2."),
    host: list[str] = typer.Option([], "--host", help="A host name its manifest asks for."),
    address: list[str] = typer.Option([], "--address", help="A leased address by its name."),
    group: int = typer.Option(1, help="The group of the deployment."),
    ledger: str = LEDGER,
    state: Path = STATE,
    as_json: bool = JSON,
) -> None:
    """Take over host names and leased addresses that lead to another deployment of yours."""
    from leasehold.cli.state import print_json

    side = Side(deployment, ledger, state)
    to = {"destination_dseq": side.dseq, "destination_gseq": group}
    asked = {
        "/hostname/migrate": ("hostnames_to_migrate", host),
        "/endpoint/migrate": ("endpoints_to_migrate", address),
    }
    if not host and not address:
        raise LeaseholdError(
            "nothing_to_migrate", "name a --host or an --address", kind=Kind.MALFORMED
        )
    moved: list[str] = []
    with side.providers() as apis:
        for api in apis:
            for path, (field, names) in asked.items():
                if names:
                    moved += api.post(path, {field: names, **to})["transferred"]
    if as_json:
        print_json({"transferred": moved})
        return
    for name in moved:
        print(f"{name} leads to {side.name}/{side.dseq}")


def _known(violation: dict[str, Any]) -> dict[str, Any]:
    names = Violation.__struct_fields__
    return {name: value for name, value in violation.items() if name in names}


@app.command()
def check(
    file: Path = typer.Argument(help="The SDL file whose manifest is tried."),
    deployment: str = DEPLOYMENT,
    ledger: str = LEDGER,
    state: Path = STATE,
    as_json: bool = JSON,
) -> None:
    """What the providers would say to this SDL's manifest, and what it would change."""
    from leasehold.cli.sdl import _read
    from leasehold.cli.state import print_json
    from leasehold.model import sdl
    from leasehold.model.manifest import canonical

    side = Side(deployment, ledger, state)
    body = canonical(sdl.load(_read(str(file))).manifest())
    with side.providers() as apis:
        reports = [
            api.request("POST", f"/deployment/{side.dseq}/validate", content=body) for api in apis
        ]
    if as_json:
        print_json(reports)
    for report in reports if not as_json else ():
        changes = report["changes"]
        for what in ("added", "dropped", "changed", "unchanged"):
            for name in changes[what]:
                print(f"  {what:9} {name}")
        for violation in report["violations"]:
            print(f"  {violation.get('path', '')}: {violation['message']} [{violation['code']}]")
        after = "" if report["on_market"] else " once its hash is on the market"
        print(f"would be accepted{after}" if report["valid"] else "would be refused")
    if not all(report["valid"] for report in reports):
        raise typer.Exit(1)


def _show(results: list[Any], side: Side, as_json: bool, print_json: Any) -> None:
    from leasehold.model.market import LeaseId

    if as_json:
        print_json(results)
        return
    for result in results:
        for lease, state in result["leases"].items():
            id = LeaseId.parse(lease)
            tail = "" if (id.gseq, id.oseq) == (1, 1) else f"/{id.gseq}/{id.oseq}"
            print(f"{side.name}/{id.dseq}{tail} is {state['phase']}")
            for uri in state.get("uris", ()):
                print(f"  {uri}")

"""Which lease is meant, and who may ask about it.

People write ``acme/1`` (deployment 1 of the account ``acme``), ``1``, the name of a service, a host
name, or the beginning of any of these; the market writes an id of five parts. A lease of an
account whose key is here is reached as its tenant, at the provider that holds it; any other as the
operator of the provider of this machine.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.model.market import LeaseId

if TYPE_CHECKING:
    from leasehold.app.accounts import Accounts
    from leasehold.cli.client import Api
    from leasehold.market.accounts import Key

ASKED = 100
"""Live leases whose providers are asked for their state by one listing."""

OFFERED = 5
"""Leases named in an error when a name fits several."""

LIVE = ("active", "reclaiming")


@dataclass(slots=True)
class Row:
    """A lease in a listing. ``at`` is seconds UTC of its newest event, 0 when not known."""

    id: LeaseId
    short: str
    state: str
    at: float = 0.0
    services: list[str] = field(default_factory=list)
    uris: list[str] = field(default_factory=list)
    unmet: str = ""

    @property
    def live(self) -> bool:
        return self.state != "closed"

    def names(self) -> list[str]:
        """What people may call it beside its short name."""
        hosts = [urlsplit(uri).hostname or "" for uri in self.uris]
        return [*self.services, *filter(None, hosts)]

    def to_dict(self) -> dict[str, Any]:
        return {
            "lease": str(self.id),
            "name": self.short,
            "state": self.state,
            "at": self.at,
            "services": self.services,
            "uris": self.uris,
            "unmet": self.unmet,
        }


class Reach:
    """The leases this user can ask about: with ``account`` only that tenant's."""

    def __init__(self, *, state: Path | None, ledger: str | None, account: str | None) -> None:
        from leasehold.app.accounts import Accounts
        from leasehold.cli.state import home_folder

        self.state = state
        self.account = account
        self.accounts: Accounts = Accounts(home_folder())
        self._ledger = ledger
        self._names = {self.accounts.address(name): name for name in self.accounts.names()}
        self._closing = contextlib.ExitStack()
        self._apis: dict[tuple[str, str], Api] = {}
        if account is not None:
            self.accounts.address(account)

    def __enter__(self) -> Reach:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    @property
    def as_operator(self) -> bool:
        """Whether a provider runs here and its token is readable."""
        from leasehold.cli.state import running, state_folder

        if self.account is not None:
            return False
        try:
            running(self.state)
            return bool((state_folder(self.state) / "operator.token").read_text().strip())
        except (LeaseholdError, OSError):
            return False

    def ledger(self) -> str:
        from leasehold.cli.state import running

        return self._ledger or running(self.state).ledger

    def short(self, id: LeaseId) -> str:
        """``acme/1``; with gseq and oseq where they are not 1."""
        owner = self._names.get(id.owner) or f"{id.owner[:9]}…{id.owner[-4:]}"
        tail = "" if (id.gseq, id.oseq) == (1, 1) else f"/{id.gseq}/{id.oseq}"
        return f"{owner}/{id.dseq}{tail}"

    def key(self, owner: str) -> Key | None:
        """The key of this owner, None when it is not here."""
        name = self._names.get(owner)
        return self.accounts.key(name)[1] if name else None

    # -- listing -------------------------------------------------------------------------------

    def rows(self, *, closed: bool = True) -> list[Row]:
        """All leases, oldest first: of the provider here, or else of this user's accounts."""
        rows = self._held() if self.as_operator else self._owned()
        return [row for row in rows if closed or row.live]

    def _held(self) -> list[Row]:
        rows = []
        for item in self._operator().get("/v1/leases"):
            id = LeaseId.parse(item.pop("lease"))
            rows.append(Row(id, self.short(id), **item))
        return rows

    def _owned(self) -> list[Row]:
        """By the market; of the live ones their providers say how they are."""
        owners = [self.accounts.address(self.account)] if self.account else list(self._names)
        if not owners:
            self.accounts.key()  # says that there is no account yet

        async def find(client: Any) -> list[dict[str, Any]]:
            return [
                lease
                for owner in owners
                async for lease in client.list("leases", owner=owner)
            ]  # fmt: skip

        rows = []
        asked = 0
        for item in self.on_market(find):
            id = LeaseId.parse(item["id"])
            row = Row(id, self.short(id), item["state"] if item["state"] in LIVE else "closed")
            if row.live and asked < ASKED:
                asked += 1
                self._ask_provider(row)
            rows.append(row)
        return rows

    def _ask_provider(self, row: Row) -> None:
        try:
            story = self.lease(row).timeline()
        except LeaseholdError as error:
            row.state, row.unmet = "unknown", error.message
            return
        row.state, row.unmet = story["state"], story.get("unmet", "")
        row.services, row.uris = story.get("services", []), story["uris"]
        row.at = story["steps"][-1]["at"]

    def on_market(self, action: Any, key: Key | None = None) -> Any:
        """Run ``action(client)`` on the ledger."""
        import asyncio

        from leasehold.market.client import LedgerClient

        async def go() -> Any:
            async with LedgerClient(self.ledger(), key) as client:
                return await action(client)

        return asyncio.run(go())

    # -- one lease -----------------------------------------------------------------------------

    def find(self, name: str) -> Lease:
        """The lease ``name`` means; LeaseholdError when it means none or several."""
        if name.count("/") == 4:
            id = LeaseId.parse(name)
            owner = self.accounts.address(id.owner)
            return self.lease(Row(LeaseId(owner, *list(_rest(id))), name, "unknown"))
        try:
            return self.lease(choose(self.rows(), name, self._names))
        except LeaseholdError as error:
            if not self.as_operator or error.kind is not Kind.NOT_FOUND or not self._names:
                raise
        # An operator may be a tenant, too: of another provider on the same market.
        return self.lease(choose(self._owned(), name, self._names))

    def lease(self, row: Row) -> Lease:
        """Access to one lease, as its tenant where the key is here."""
        id = row.id
        key = self.key(id.owner)
        if key is None:
            base = f"/v1/leases/{id.owner}/{id.dseq}/{id.gseq}/{id.oseq}"
            return Lease(row, self._operator(), base, None)
        api = self._tenant(self._provider_url(id.provider), key)
        return Lease(row, api, f"/lease/{id.dseq}/{id.gseq}/{id.oseq}", key)

    def tenant_at(self, provider: str | None) -> Api:
        """A provider's API (None: of the one here) as the tenant, by default of the first
        account."""
        from leasehold.cli.state import running

        key = self.accounts.key(self.account)[1]
        url = self._provider_url(provider) if provider else running(self.state).gateway
        return self._tenant(url, key)

    def _provider_url(self, provider: str) -> str:
        from leasehold.cli.state import running

        try:
            here = running(self.state)
            if here.provider == provider:
                return here.gateway
        except LeaseholdError:
            pass

        async def ask(client: Any) -> Any:
            return (await client.get("providers", provider))["host_uri"]

        return str(self.on_market(ask))

    def _operator(self) -> Api:
        from leasehold.cli.client import operator

        if ("", "") not in self._apis:
            self._apis["", ""] = self._closing.enter_context(operator(self.state))
        return self._apis["", ""]

    def _tenant(self, url: str, key: Key) -> Api:
        from leasehold.cli.client import Api
        from leasehold.market.accounts import sign_token

        at = (url, key.address)
        if at not in self._apis:
            api = Api(url, lambda: sign_token(key, time.time()))
            self._apis[at] = api
            self._closing.callback(api.close)
        return self._apis[at]


@dataclass(slots=True)
class Lease:
    """One lease and the way to it; ``key`` is its tenant's, None for the operator."""

    row: Row
    api: Api
    base: str
    key: Key | None

    @property
    def id(self) -> LeaseId:
        return self.row.id

    def timeline(self, after: int = 0, wait: float = 0.0) -> dict[str, Any]:
        """The story so far; with ``wait`` the answer comes when there is more than ``after``."""
        found: dict[str, Any] = self.api.get(f"{self.base}/timeline", after=after, wait=wait)
        return found

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.api.get(f"{self.base}/status")
        return found

    def logs(
        self, services: Sequence[str], *, follow: bool, tail: int, search: str = ""
    ) -> Iterator[dict[str, Any]]:
        """Lines ``{service, name, message, at}``, the last ``tail`` of each replica."""
        query: dict[str, Any] = {"service": ",".join(services), "tail": tail}
        query |= {"search": search} if search else {"follow": str(follow).lower()}
        with self.api.stream(f"{self.base}/output", **query) as lines:
            for line in lines:
                if line:
                    yield json.loads(line)

    def manifests(self) -> list[dict[str, Any]]:
        """The accepted manifests that are kept, newest first."""
        id = self.id
        mine, any_ = f"/deployment/{id.dseq}", f"/v1/deployments/{id.owner}/{id.dseq}"
        return list(self.api.get(f"{mine if self.key else any_}/manifests"))

    def events(self, *, follow: bool) -> Iterator[dict[str, Any]]:
        """What happened: a tenant's frames, or for the operator the log's events."""
        if self.key is not None:
            with self.socket("kubeevents", {"follow": str(follow).lower()}) as socket:
                for frame in socket:
                    yield json.loads(frame)
            return
        entity, after, seq = f"lease:{self.id}", None, 0
        while page := self.api.get("/v1/events/entity", entity=entity, after=after):
            yield from page
            after, seq = page[-1]["id"], page[-1]["seq"]
        if follow:
            with self.api.stream("/v1/events/tail", after=seq, kind="lease") as lines:
                for line in lines:
                    event = json.loads(line) if line else {}
                    if event.get("entity") == entity:
                        yield event

    @contextlib.contextmanager
    def socket(self, what: str, query: dict[str, Any] | list[tuple[str, str]]) -> Iterator[Any]:
        """An open websocket of this lease; its refusals are those of the API."""
        from leasehold.cli.sockets import connect

        with connect(self.api, f"{self.base}/{what}?{urlencode(query)}") as socket:
            yield socket


def choose(rows: Sequence[Row], name: str, owners: dict[str, str]) -> Row:
    """The row ``name`` means. ``owners`` names addresses.

    A live lease is meant rather than a closed one; of closed ones the newest.
    """
    exact = [row for row in rows if _fits(row, name, owners, prefix=False)]
    found = exact or [row for row in rows if _fits(row, name, owners, prefix=True)]
    live = [row for row in found if row.live]
    if len(live) == 1 or (found and not live):
        return (live or found)[-1]
    if not found:
        known = {row.short for row in rows} | {n for row in rows if row.live for n in row.names()}
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else "`leasehold lease ls` lists them"
        raise LeaseholdError(
            "lease_not_found", f"no lease {name!r}; {hint}", kind=Kind.NOT_FOUND, got=name
        )
    offered = ", ".join(row.short for row in live[:OFFERED])
    more = f" and {len(live) - OFFERED} more" if len(live) > OFFERED else ""
    raise LeaseholdError(
        "lease_ambiguous",
        f"{name!r} fits {len(live)} leases: {offered}{more}",
        kind=Kind.CONFLICT,
        expected="a name that fits one",
        got=name,
    )


def _fits(row: Row, name: str, owners: dict[str, str], *, prefix: bool) -> bool:
    if name == row.short:
        return True
    first, *numbers = name.split("/")
    if first.isascii() and first.isdigit() and not prefix:
        numbers, first = [first, *numbers], ""
    if numbers or not first:
        given = [n for n in numbers if n.isascii() and n.isdigit()]
        have = [str(row.id.dseq), str(row.id.gseq), str(row.id.oseq)]
        if len(given) != len(numbers) or len(given) > 3 or have[: len(given)] != given:
            return False
        called = [owners.get(row.id.owner, ""), row.id.owner]
        return not first or any(c == first or (prefix and c.startswith(first)) for c in called)
    called = [*row.names(), owners.get(row.id.owner, "")]
    called += [n.partition(".")[0] for n in row.names()]
    if prefix:
        return any(c.startswith(name) for c in [*called, str(row.id)])
    return name in called


def _rest(id: LeaseId) -> tuple[Any, ...]:
    return id.dseq, id.gseq, id.oseq, id.provider

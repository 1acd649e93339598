"""A client of the ledger: signs and sends transactions, asks about the state.

A transaction whose answer was lost is sent again as it is: the ledger answers with where it landed.
Only one is on its way at a time per client, since each has the signer's next sequence; when another
process uses the same key meanwhile, the sequence is asked for again and the transaction re-signed.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import AsyncIterator, Sequence
from typing import Any, Self

import msgspec

from leasehold.core.clock import Clock, SystemClock
from leasehold.core.errors import Kind, LeaseholdError, Violation, unavailable
from leasehold.core.retry import Backoff, retrying
from leasehold.market.accounts import Key
from leasehold.market.connections import Connections
from leasehold.market.ledger import messages as m
from leasehold.market.ledger.money import Coin
from leasehold.market.ports import BidView, Funds, Offer
from leasehold.model.market import BidId, DeploymentId, GroupId, LeaseId, OrderId
from leasehold.model.resources import Attribute, GroupSpec

SEQUENCE_RETRIES = 5
"""Times a transaction is signed anew because the sequence had moved on."""

_KINDS = {kind.http: kind for kind in Kind}


class Landed(msgspec.Struct, frozen=True):
    """Where a transaction landed, and what each of its messages created."""

    hash: str
    height: int
    created: list[dict[str, Any]] = []


class LedgerClient:
    """``url`` is the ledger's RPC; ``key`` signs (None: questions only).

    ``timeout`` is seconds for a whole call with its retries. Use it as an async context manager,
    or call :meth:`close`. It is also the ledger's ``MarketWriter`` and ``MarketReader``.
    """

    def __init__(
        self,
        url: str,
        key: Key | None = None,
        *,
        clock: Clock | None = None,
        denom: str = "uakt",
        timeout: float = 30.0,
    ) -> None:
        self.url = url
        self.key = key
        self.denom = denom
        self.clock: Clock = clock or SystemClock()
        self.timeout = timeout
        self._connections = Connections(url)
        self._chain_id = ""
        self._sequence: int | None = None
        self._turn = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        self._connections.close()

    @property
    def address(self) -> str:
        if self.key is None:
            raise LeaseholdError("no_key", "this needs an account key", kind=Kind.UNAUTHENTICATED)
        return self.key.address

    def coin(self, amount: str | int | Coin) -> Coin:
        """``amount`` base units of the client's denomination."""
        return amount if isinstance(amount, Coin) else Coin(self.denom, str(amount))

    # -- transactions --------------------------------------------------------------------------

    async def broadcast(self, *messages: Any, memo: str = "") -> Landed:
        """Sign and send one transaction; returns when it is durable, or raises its refusal."""
        key = self.key
        if key is None:
            raise LeaseholdError("no_key", "this needs an account key", kind=Kind.UNAUTHENTICATED)
        nonce = secrets.token_hex(8)
        async with self._turn:
            for attempt in range(SEQUENCE_RETRIES):
                if self._sequence is None:
                    self._sequence = await self._next_sequence(key.address)
                if not self._chain_id:
                    self._chain_id = (await self.status())["node_info"]["network"]
                raw = m.sign(key, self._chain_id, self._sequence, messages, memo, nonce)
                try:
                    landed = await self.send(raw)
                except LeaseholdError as error:
                    if error.code != "wrong_sequence" or attempt == SEQUENCE_RETRIES - 1:
                        # Whether it took its sequence is not known after a lost connection.
                        self._sequence = None
                        raise
                    self._sequence = None
                except asyncio.CancelledError:
                    self._sequence = None
                    raise
                else:
                    self._sequence += 1
                    return landed
        raise AssertionError("unreachable")

    async def send(self, raw: bytes) -> Landed:
        """Send signed bytes; again and again while the ledger does not answer."""
        tx = base64.b64encode(raw).decode()
        answer = await self.call("broadcast_tx_commit", tx=tx)
        for part in ("check_tx", "tx_result"):
            if answer[part]["code"]:
                raise _refusal(answer[part])
        data = answer["tx_result"]["data"]
        created = msgspec.json.decode(base64.b64decode(data)) if data else []
        return Landed(answer["hash"], int(answer["height"]), created)

    async def _next_sequence(self, address: str) -> int:
        try:
            return int((await self.get("accounts", address))["sequence"])
        except LeaseholdError as error:
            if error.kind is Kind.NOT_FOUND:
                return 0
            raise

    # -- questions -----------------------------------------------------------------------------

    async def call(self, method: str, **params: Any) -> Any:
        """One JSON-RPC call, retried while the ledger does not answer."""
        body = msgspec.json.encode({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
        try:
            async with self.clock.timeout(self.timeout):
                response = await retrying(
                    lambda: self._connections.post(body),
                    clock=self.clock,
                    backoff=Backoff(first=0.05, cap=2.0),
                    retry_on=lambda e: isinstance(e, OSError),
                )
        except TimeoutError:
            raise unavailable(
                "ledger_unreachable",
                f"the ledger at {self.url} does not answer; is `leasehold up` running?",
                got=self.url,
            ) from None
        try:
            answer = msgspec.json.decode(response)
        except msgspec.DecodeError:
            raise unavailable(
                "ledger_unreachable", f"{self.url} is no ledger RPC", got=response[:80]
            ) from None
        if "error" in answer:
            raise rpc_error(answer["error"])
        return answer["result"]

    async def ask(self, path: str, data: bytes = b"") -> Any:
        """A question about the state (see ``ledger.views``)."""
        answer = (await self.call("abci_query", path=path, data=data.hex()))["response"]
        if answer["code"]:
            raise _refusal(answer)
        return msgspec.json.decode(base64.b64decode(answer["value"]))

    async def status(self) -> dict[str, Any]:
        return dict(await self.call("status"))

    async def get(self, table: str, id: object) -> dict[str, Any]:
        """One object; LeaseholdError of kind NOT_FOUND."""
        return dict(await self.ask(f"/{table}/get", str(id).encode()))

    async def list(
        self, table: str, *, page: int = 1000, **filter: str | int
    ) -> AsyncIterator[dict[str, Any]]:
        """All objects that match, page by page, in the order they were made."""
        start = ""
        while True:
            question = {"filter": filter, "limit": page, "next": start}
            answer = await self.ask(f"/{table}/list", msgspec.json.encode(question))
            for item in answer["items"]:
                yield item
            start = answer["next"]
            if not start:
                return

    async def escrow(self, id: DeploymentId | str) -> dict[str, Any]:
        """A deployment's funds as of now, and how many charged blocks they last."""
        return dict(await self.ask("/escrow/get", str(id).encode()))

    async def balance(self, address: str) -> dict[str, str]:
        """Base units by denomination; empty for an account that does not exist."""
        try:
            return dict((await self.get("accounts", address))["coins"])
        except LeaseholdError as error:
            if error.kind is Kind.NOT_FOUND:
                return {}
            raise

    # -- the market as ports see it ------------------------------------------------------------

    async def _known(self, table: str, id: object) -> dict[str, Any] | None:
        try:
            return await self.get(table, id)
        except LeaseholdError as error:
            if error.kind is Kind.NOT_FOUND:
                return None
            raise

    async def offer(self, id: BidId) -> Offer | None:
        found = await self._known("offer", id)
        if found is None:
            return None
        return Offer(
            id=id.order,
            state=found["state"],
            group=msgspec.convert(found["spec"], GroupSpec),
            reclamation_window=found["reclamation_window"],
            bid=None if found["bid"] is None else _bid_view(found["bid"]),
        )

    async def bid(self, id: BidId) -> BidView | None:
        found = await self._known("bids", id)
        return None if found is None else _bid_view(found)

    async def lease(self, id: LeaseId) -> BidView | None:
        found = await self._known("leases", id)
        return None if found is None else _bid_view(found)

    async def funds(self, id: DeploymentId) -> Funds | None:
        try:
            found = await self.escrow(id)
        except LeaseholdError as error:
            if error.kind is Kind.NOT_FOUND:
                return None
            raise
        left = found["ticks_left"]
        return Funds(
            state=found["state"],
            funds=found["funds"],
            seconds_left=None if left is None else left * found["period_s"],
        )

    async def audited(self, provider: str, auditor: str) -> Sequence[Attribute]:
        found = await self._known("audits", f"{provider}/{auditor}")
        return msgspec.convert(found["attributes"], list[Attribute]) if found else []

    async def open_orders(self) -> AsyncIterator[OrderId]:
        async for item in self.list("orders", state="open"):
            yield OrderId.parse(item["id"])

    async def open_bids(self, provider: str) -> AsyncIterator[BidView]:
        async for item in self.list("bids", provider=provider, state="open"):
            yield _bid_view(item)

    async def live_leases(self, provider: str) -> AsyncIterator[BidView]:
        async for item in self.list("leases", provider=provider, state="live"):
            yield _bid_view(item)

    # -- one helper a message ------------------------------------------------------------------

    async def transfer(self, to: str, amount: str | int | Coin) -> Landed:
        return await self.broadcast(m.Send(to=to, amount=self.coin(amount)))

    async def mint(self, to: str, amount: str | int | Coin) -> Landed:
        return await self.broadcast(m.Mint(to=to, amount=self.coin(amount)))

    async def create_deployment(
        self,
        groups: Sequence[GroupSpec | dict[str, Any]],
        hash: str | bytes,
        deposit: str | int | Coin = "5000000",
        *,
        dseq: int = 0,
        reclamation_window: int = 0,
    ) -> DeploymentId:
        """``hash`` is the manifest's version hash, 32 bytes or hex. Answers the new id."""
        specs = msgspec.convert(msgspec.to_builtins(list(groups)), list[GroupSpec])
        landed = await self.broadcast(
            m.CreateDeployment(
                dseq=dseq,
                hash=hash.hex() if isinstance(hash, bytes) else hash,
                groups=specs,
                deposit=self.coin(deposit),
                reclamation_window=reclamation_window,
            )
        )
        return DeploymentId(self.address, landed.created[0]["dseq"])

    async def update_deployment(self, dseq: int, hash: str | bytes) -> Landed:
        text = hash.hex() if isinstance(hash, bytes) else hash
        return await self.broadcast(m.UpdateDeployment(dseq=dseq, hash=text))

    async def deposit(self, id: DeploymentId, amount: str | int | Coin) -> Landed:
        return await self.broadcast(m.DepositDeployment(id=id, amount=self.coin(amount)))

    async def close_deployment(self, dseq: int) -> Landed:
        return await self.broadcast(m.CloseDeployment(dseq=dseq))

    async def pause_group(self, id: GroupId) -> Landed:
        return await self.broadcast(m.PauseGroup(dseq=id.dseq, gseq=id.gseq))

    async def start_group(self, id: GroupId) -> Landed:
        return await self.broadcast(m.StartGroup(dseq=id.dseq, gseq=id.gseq))

    async def close_group(self, id: GroupId) -> Landed:
        return await self.broadcast(m.CloseGroup(dseq=id.dseq, gseq=id.gseq))

    async def create_bid(
        self,
        order: OrderId,
        price: str | Coin,
        deposit: str | int | Coin = "500000",
        *,
        reclamation_window: int = 0,
    ) -> Landed:
        return await self.broadcast(
            m.CreateBid(
                owner=order.owner,
                dseq=order.dseq,
                gseq=order.gseq,
                oseq=order.oseq,
                price=self.coin(price),
                deposit=self.coin(deposit),
                reclamation_window=reclamation_window,
            )
        )

    async def close_bid(self, id: LeaseId | OrderId, reason: int = 10002) -> None:
        """Close my bid on an order, and its lease if there is one. Closed already is success."""
        try:
            await self.broadcast(
                m.CloseBid(owner=id.owner, dseq=id.dseq, gseq=id.gseq, oseq=id.oseq, reason=reason)
            )
        except LeaseholdError as error:
            if error.code != "bid_closed":
                raise

    async def create_lease(self, id: LeaseId) -> Landed:
        """Accept a bid."""
        return await self.broadcast(
            m.CreateLease(dseq=id.dseq, gseq=id.gseq, oseq=id.oseq, provider=id.provider)
        )

    async def close_lease(self, id: LeaseId) -> Landed:
        return await self.broadcast(
            m.CloseLease(dseq=id.dseq, gseq=id.gseq, oseq=id.oseq, provider=id.provider)
        )

    async def reclaim_lease(self, id: LeaseId) -> Landed:
        return await self.broadcast(
            m.ReclaimLease(owner=id.owner, dseq=id.dseq, gseq=id.gseq, oseq=id.oseq)
        )

    async def withdraw(self, id: LeaseId) -> Landed:
        return await self.broadcast(
            m.WithdrawLease(owner=id.owner, dseq=id.dseq, gseq=id.gseq, oseq=id.oseq)
        )

    async def set_provider(
        self, host_uri: str, attributes: dict[str, str] | None = None, **info: str
    ) -> None:
        """Register as a provider; says nothing to the ledger when that is the record already."""
        wanted = [Attribute(k, v) for k, v in sorted((attributes or {}).items())]
        try:
            known = await self.get("providers", self.address)
        except LeaseholdError as error:
            if error.kind is not Kind.NOT_FOUND:
                raise
        else:
            same = known["attributes"] == msgspec.to_builtins(wanted)
            if same and known["host_uri"] == host_uri and all(known[k] == info[k] for k in info):
                return
        await self.broadcast(m.SetProvider(host_uri=host_uri, attributes=wanted, **info))

    async def create_certificate(self, pem: str) -> str:
        """Register a client certificate; answers its serial."""
        landed = await self.broadcast(m.CreateCertificate(pem=pem))
        return str(landed.created[0]["serial"])

    async def revoke_certificate(self, serial: str) -> Landed:
        return await self.broadcast(m.RevokeCertificate(serial=serial))

    async def sign_attributes(self, provider: str, attributes: dict[str, str]) -> Landed:
        wanted = [Attribute(k, v) for k, v in sorted(attributes.items())]
        return await self.broadcast(m.SignAttributes(provider=provider, attributes=wanted))

    async def delete_audit(self, provider: str, keys: Sequence[str] = ()) -> Landed:
        return await self.broadcast(m.DeleteAudit(provider=provider, keys=[*keys]))


def _bid_view(item: dict[str, Any]) -> BidView:
    return BidView(
        id=LeaseId.parse(item["id"]),
        state=item["state"],
        denom=item["denom"],
        price=item["price"],
        made=item["made"] / 1e9,
    )


class _Error(msgspec.Struct):
    """A LeaseholdError as it travels."""

    code: str
    message: str
    path: str = ""
    expected: str | None = None
    got: str | None = None
    retry_after: float | None = None
    violations: list[Violation] = []


def _refusal(answer: dict[str, Any]) -> LeaseholdError:
    kind = _KINDS.get(int(answer["code"]), Kind.INVALID)
    try:
        return _error(msgspec.json.decode(answer["log"], type=_Error), kind)
    except msgspec.MsgspecError:
        return LeaseholdError("refused", str(answer["log"]), kind=kind, got=answer["code"])


def rpc_error(error: dict[str, Any]) -> LeaseholdError:
    if "leasehold" in error:
        kind = _KINDS.get(error["leasehold"].get("status"), Kind.INVALID)
        return _error(msgspec.convert(error["leasehold"], _Error), kind)
    return LeaseholdError(
        "rpc_error", f"{error.get('message')}: {error.get('data')}", kind=Kind.MALFORMED
    )


def _error(error: _Error, kind: Kind) -> LeaseholdError:
    return LeaseholdError(
        error.code,
        error.message,
        kind=kind,
        path=error.path,
        expected=error.expected,
        got=error.got,
        retry_after=error.retry_after,
        violations=error.violations,
    )

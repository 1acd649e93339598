"""The rules: what each message changes, and what happens when time passes.

A handler reads the state, refuses with a LeaseholdError, or changes the state and says so in
events. Whoever calls it undoes the changes of a refused one. Nothing here looks at a clock, a
random number or the network: the same messages in the same blocks give the same state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from msgspec.structs import replace

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.market.accounts import is_address
from leasehold.market.ledger import messages as m
from leasehold.market.ledger import money
from leasehold.market.ledger.certificates import read_certificate
from leasehold.market.ledger.chain import Genesis
from leasehold.market.ledger.escrow import Ledger
from leasehold.market.ledger.state import (
    Audit,
    Bid,
    Certificate,
    Deployment,
    Escrow,
    Group,
    Lease,
    Order,
    Provider,
    spec_of,
)
from leasehold.model.resources import Attribute, GroupSpec, check_groups

OWNER, UNSTABLE, DECOMMISSION, UNSPECIFIED, MANIFEST_TIMEOUT = 1, 10000, 10001, 10002, 10003
INSUFFICIENT_FUNDS = 20000
PROVIDER_REASONS = (UNSTABLE, DECOMMISSION, UNSPECIFIED, MANIFEST_TIMEOUT)

_json = msgspec.json.Encoder()


class Machine(Ledger):
    """Executes messages on a state, inside the block begun by :meth:`begin`."""

    def __init__(self, genesis: Genesis) -> None:
        super().__init__(genesis)
        self.authority = genesis.authority
        self._handlers: dict[type, Callable[[str, Any], dict[str, Any] | None]] = {
            m.Send: self._send,
            m.Mint: self._mint,
            m.CreateDeployment: self._create_deployment,
            m.UpdateDeployment: self._update_deployment,
            m.DepositDeployment: self._deposit_deployment,
            m.CloseDeployment: self._close_deployment,
            m.PauseGroup: self._pause_group,
            m.StartGroup: self._start_group,
            m.CloseGroup: self._close_group,
            m.CreateBid: self._create_bid,
            m.CloseBid: self._close_bid,
            m.CreateLease: self._create_lease,
            m.CloseLease: self._close_lease,
            m.ReclaimLease: self._reclaim_lease,
            m.WithdrawLease: self._withdraw_lease,
            m.CreateCertificate: self._create_certificate,
            m.RevokeCertificate: self._revoke_certificate,
            m.SetProvider: self._set_provider,
            m.SignAttributes: self._sign_attributes,
            m.DeleteAudit: self._delete_audit,
        }

    def execute(self, signer: str, messages: list[m.Message]) -> list[dict[str, Any]]:
        """Apply all messages or raise; the caller rolls back. Answers what each created."""
        created = []
        for position, message in enumerate(messages):
            self.emit("message", action=type(message).__struct_config__.tag, sender=signer)
            try:
                created.append(self._handlers[type(message)](signer, message) or {})
            except LeaseholdError as error:
                if len(messages) > 1:
                    error.path = f"messages[{position}].{error.path}".rstrip(".")
                raise
        return created

    # -- money ---------------------------------------------------------------------------------

    def _send(self, signer: str, message: m.Send) -> None:
        denom, units = self.coin(message.amount)
        _address(message.to, "to")
        self.take(signer, denom, units)
        self.give(message.to, denom, units)
        self._transfer(signer, message.to, denom, units)

    def _mint(self, signer: str, message: m.Mint) -> None:
        if signer != self.authority:
            raise LeaseholdError(
                "not_authority",
                "only the ledger's authority may make money",
                kind=Kind.FORBIDDEN,
                expected=self.authority or "nobody",
                got=signer,
            )
        denom, units = self.coin(message.amount)
        _address(message.to, "to")
        self.mint(message.to, denom, units)
        self._transfer("", message.to, denom, units)

    def _transfer(self, sender: str, recipient: str, denom: str, units: int) -> None:
        amount = money.text(units) + denom
        self.emit("transfer", recipient=recipient, sender=sender, amount=amount)

    # -- deployments ---------------------------------------------------------------------------

    def _create_deployment(self, signer: str, message: m.CreateDeployment) -> dict[str, Any]:
        violations = check_groups(message.groups)
        if violations:
            raise LeaseholdError.of(violations)
        denom, deposit = self.coin(message.deposit, "deposit")
        wanted = {unit.price.denom for group in message.groups for unit in group.resources}
        if wanted != {denom}:
            raise LeaseholdError(
                "denom_mismatch",
                "the deposit and all prices use one denomination",
                path="deposit.denom",
                expected=", ".join(sorted(wanted)),
                got=denom,
            )
        for at, spec in enumerate(message.groups):
            max_price(spec, f"groups[{at}]")
        if deposit < self.min_deposit:
            raise _too_little("deposit", self.min_deposit, deposit)
        account = self.state.accounts[signer]
        dseq = message.dseq or account.deployments + 1
        id = f"{signer}/{dseq}"
        if id in self.state.deployments:
            raise LeaseholdError(
                "deployment_exists",
                f"deployment {id} exists; use another number, or 0 for the next free one",
                kind=Kind.CONFLICT,
                path="dseq",
                got=dseq,
            )
        self.state.put(
            "accounts", replace(account, deployments=max(account.deployments, message.dseq, dseq))
        )
        self.take(signer, denom, deposit)
        self.state.put(
            "deployments",
            Deployment(
                id,
                signer,
                dseq,
                "active",
                message.hash,
                len(message.groups),
                self.height,
                message.reclamation_window,
            ),
        )
        self.state.put("escrows", Escrow(id, signer, "open", denom, deposit, self.tick))
        self.emit("akash.deployment.v1.EventDeploymentCreated", id=_wire(id), hash=message.hash)
        for gseq, spec in enumerate(message.groups, 1):
            self._open_order(Group(f"{id}/{gseq}", "open", _json.encode(spec), self.height))
        return {"dseq": dseq}

    def _update_deployment(self, signer: str, message: m.UpdateDeployment) -> None:
        deployment = self._own_deployment(signer, message.dseq)
        if deployment.hash == message.hash:
            return
        self.state.put("deployments", replace(deployment, hash=message.hash))
        self.emit(
            "akash.deployment.v1.EventDeploymentUpdated",
            id=_wire(deployment.id),
            hash=message.hash,
        )

    def _deposit_deployment(self, signer: str, message: m.DepositDeployment) -> None:
        denom, units = self.coin(message.amount)
        escrow = self.state.escrows.get(str(message.id))
        if escrow is None:
            raise _missing("deployment", str(message.id))
        if escrow.state != "open":
            raise _conflict("deployment_closed", f"deployment {message.id} is closed", escrow.state)
        if escrow.denom != denom:
            raise LeaseholdError(
                "denom_mismatch",
                "the escrow is kept in another denomination",
                path="amount.denom",
                expected=escrow.denom,
                got=denom,
            )
        self.take(signer, denom, units)
        self.deposit(escrow, units)

    def _close_deployment(self, signer: str, message: m.CloseDeployment) -> None:
        self.end_deployment(self._own_deployment(signer, message.dseq), OWNER)

    def end_deployment(self, deployment: Deployment, reason: int) -> None:
        """Close everything of a deployment and give the rest of its funds back."""
        broke = reason == INSUFFICIENT_FUNDS
        for group in list(self.state.groups_of(deployment)):
            if group.state in ("open", "paused"):
                self._end_group(group, "insufficient_funds" if broke else "closed", reason)
        self.close_escrow(self.state.escrows[deployment.id], overdrawn=broke)
        self.state.put("deployments", replace(deployment, state="closed", closed=self.height))
        self.emit(
            "akash.deployment.v1.EventDeploymentClosed",
            id=_wire(deployment.id),
            reason=reason,
        )

    # -- groups and orders ---------------------------------------------------------------------

    def _open_order(self, group: Group) -> None:
        group = replace(group, state="open", orders=group.orders + 1)
        self.state.put("groups", group)
        order = Order(f"{group.id}/{group.orders}", "open", self.height)
        self.state.put("orders", order)
        self.emit("akash.market.v1.EventOrderCreated", id=_wire(order.id))

    def _pause_group(self, signer: str, message: m.PauseGroup) -> None:
        group = self._own_group(signer, message.dseq, message.gseq)
        if group.state != "open":
            raise _conflict("group_not_open", f"group {group.id} is {group.state}", group.state)
        self._end_group(group, "paused", OWNER)

    def _start_group(self, signer: str, message: m.StartGroup) -> None:
        group = self._own_group(signer, message.dseq, message.gseq)
        if group.state != "paused":
            raise _conflict("group_not_paused", f"group {group.id} is {group.state}", group.state)
        self.emit("akash.deployment.v1.EventGroupStarted", id=_wire(group.id))
        self._open_order(group)

    def _close_group(self, signer: str, message: m.CloseGroup) -> None:
        group = self._own_group(signer, message.dseq, message.gseq)
        if group.state not in ("open", "paused"):
            raise _conflict("group_closed", f"group {group.id} is {group.state}", group.state)
        self._end_group(group, "closed", OWNER)

    def _end_group(self, group: Group, state: Any, reason: int) -> None:
        """Close the order with its bids and lease, then the group (or pause it)."""
        order = self.state.current_order(group)
        if order.state != "closed":
            for bid in self.state.bids_on(order.id):
                if bid.state == "active":
                    self._end_lease(self.state.leases[bid.id], bid, reason)
                elif bid.state == "open":
                    self._end_bid(bid, "closed", reason)
            self._end_order(order)
        self.state.put("groups", replace(group, state=state))
        verb = "Paused" if state == "paused" else "Closed"
        self.emit(f"akash.deployment.v1.EventGroup{verb}", id=_wire(group.id), reason=reason)

    def _end_order(self, order: Order) -> None:
        self.state.put("orders", replace(order, state="closed", closed=self.height))
        self.emit("akash.market.v1.EventOrderClosed", id=_wire(order.id))

    # -- bids ----------------------------------------------------------------------------------

    def _create_bid(self, signer: str, message: m.CreateBid) -> None:
        order_id = f"{message.owner}/{message.dseq}/{message.gseq}/{message.oseq}"
        order = self.state.orders.get(order_id)
        if order is None:
            raise _missing("order", order_id)
        id = f"{order_id}/{signer}"
        if order.state != "open":
            raise _conflict("order_not_open", f"order {order_id} is {order.state}", order.state)
        if id in self.state.bids:
            raise _conflict("bid_exists", f"{signer} has bid on {order_id} before", id)
        if len(self.state.bids_on(order_id)) >= self.params.max_bids:
            raise _conflict(
                "too_many_bids", f"order {order_id} has all the bids it may have", order.id
            )
        provider = self.state.providers.get(signer)
        if provider is None:
            raise LeaseholdError(
                "provider_unknown",
                f"{signer} is not registered as a provider",
                kind=Kind.FORBIDDEN,
                got=signer,
            )
        group = self.state.groups[order_id.rpartition("/")[0]]
        spec = spec_of(group)
        self._check_requirements(provider, spec)
        denom, price = self.coin(message.price, "price")
        wanted, most = max_price(spec, "group")
        if denom != wanted or price > most:
            raise LeaseholdError(
                "price_too_high",
                "the order does not pay that much",
                path="price",
                expected=f"≤ {money.text(most)} {wanted}",
                got=f"{money.text(price)} {denom}",
            )
        deployment = self.state.deployments[f"{message.owner}/{message.dseq}"]
        if message.reclamation_window < deployment.reclamation_window:
            raise LeaseholdError(
                "reclamation_window_short",
                "the tenant asks for longer notice",
                path="reclamation_window",
                expected=f"≥ {deployment.reclamation_window}",
                got=message.reclamation_window,
            )
        deposit_denom, deposit = self.coin(message.deposit, "deposit")
        if deposit_denom != denom or deposit < self.bid_deposit:
            raise _too_little("deposit", self.bid_deposit, deposit)
        self.take(signer, denom, deposit)
        self.state.put(
            "bids",
            Bid(
                id,
                "open",
                denom,
                price,
                deposit,
                self.height,
                self.time,
                message.reclamation_window if deployment.reclamation_window else 0,
            ),
        )
        self.emit(
            "akash.market.v1.EventBidCreated",
            id=_wire(id),
            price={"denom": denom, "amount": money.text(price)},
        )

    def _check_requirements(self, provider: Provider, spec: GroupSpec) -> None:
        wanted = {(a.key, a.value) for a in spec.requirements.attributes or ()}
        offered = {(a.key, a.value) for a in provider.attributes}
        if not wanted <= offered:
            raise LeaseholdError(
                "attributes_missing",
                "the provider lacks attributes the order requires",
                expected=_attributes(wanted),
                got=_attributes(offered),
            )
        signed = spec.requirements.signed_by

        def vouches(auditor: str) -> bool:
            audit = self.state.audits.get(f"{provider.id}/{auditor}")
            return audit is not None and wanted <= {(a.key, a.value) for a in audit.attributes}

        any_of, all_of = signed.any_of or [], signed.all_of or []
        if not all(map(vouches, all_of)) or (any_of and not any(map(vouches, any_of))):
            raise LeaseholdError(
                "audit_missing",
                "the order requires attributes signed by auditors",
                expected=f"all of {all_of}, any of {any_of}",
            )

    def _close_bid(self, signer: str, message: m.CloseBid) -> None:
        id = f"{message.owner}/{message.dseq}/{message.gseq}/{message.oseq}/{signer}"
        bid = self.state.bids.get(id)
        if bid is None:
            raise _missing("bid", id)
        if bid.state not in ("open", "active"):
            raise _conflict("bid_closed", f"bid {id} is {bid.state}", bid.state)
        if message.reason not in PROVIDER_REASONS:
            raise LeaseholdError(
                "bad_reason",
                "a provider closes for one of its own reasons",
                path="reason",
                expected=", ".join(map(str, PROVIDER_REASONS)),
                got=message.reason,
            )
        if bid.state == "open":
            self._end_bid(bid, "closed", message.reason)
            return
        lease = self.state.leases[id]
        if lease.reclamation_window and not 0 < lease.deadline <= self.time:
            left = (lease.deadline - self.time) / 1e9 if lease.deadline else None
            raise LeaseholdError(
                "reclamation_required",
                f"lease {id} may be closed {lease.reclamation_window} s after notice was given",
                kind=Kind.CONFLICT,
                expected="lease.reclaim, then wait",
                got=lease.state,
                retry_after=left,
            )
        self._end_lease(lease, bid, message.reason)
        group = self.state.groups[id.rsplit("/", 2)[0]]
        self._end_order(self.state.current_order(group))
        self._pause(group, message.reason)

    def _pause(self, group: Group, reason: int) -> None:
        self.state.put("groups", replace(group, state="paused"))
        self.emit("akash.deployment.v1.EventGroupPaused", id=_wire(group.id), reason=reason)

    def _end_bid(self, bid: Bid, state: Any, reason: int) -> None:
        self.give(bid.id.rpartition("/")[2], bid.denom, bid.deposit)
        self.state.put(
            "bids", replace(bid, state=state, deposit=0, reason=reason, closed=self.height)
        )
        self.emit("akash.market.v1.EventBidClosed", id=_wire(bid.id), state=state, reason=reason)

    # -- leases --------------------------------------------------------------------------------

    def _create_lease(self, signer: str, message: m.CreateLease) -> None:
        order_id = f"{signer}/{message.dseq}/{message.gseq}/{message.oseq}"
        id = f"{order_id}/{message.provider}"
        bid = self.state.bids.get(id)
        if bid is None:
            raise _missing("bid", id)
        if bid.state != "open":
            raise _conflict("bid_not_open", f"bid {id} is {bid.state}", bid.state)
        order = self.state.orders[order_id]
        if order.state != "open":
            raise _conflict("order_not_open", f"order {order_id} is {order.state}", order.state)
        escrow = self.settle(self.state.escrows[f"{signer}/{message.dseq}"])
        if escrow.funds < bid.price:
            raise LeaseholdError(
                "insufficient_funds",
                "the deployment cannot pay for one block of this lease; deposit more",
                kind=Kind.CONFLICT,
                expected=f"≥ {money.text(bid.price)} {bid.denom}",
                got=money.text(escrow.funds),
            )
        self.state.put("orders", replace(order, state="active"))
        self.state.put("bids", replace(bid, state="active"))
        lease = Lease(
            id, "active", bid.denom, bid.price, self.height, self.time, bid.reclamation_window
        )
        self.state.put("leases", lease)
        self.open_payment(escrow, lease)
        self.emit(
            "akash.market.v1.EventLeaseCreated",
            id=_wire(id),
            price={"denom": bid.denom, "amount": money.text(bid.price)},
        )
        for other in self.state.bids_on(order_id):
            if other.state == "open":
                self._end_bid(other, "lost", 0)

    def _close_lease(self, signer: str, message: m.CloseLease) -> None:
        group = self._own_group(signer, message.dseq, message.gseq)
        id = f"{group.id}/{message.oseq}/{message.provider}"
        lease = self.state.leases.get(id)
        if lease is None:
            raise _missing("lease", id)
        if lease.state not in ("active", "reclaiming"):
            raise _conflict("lease_closed", f"lease {id} is {lease.state}", lease.state)
        self._end_lease(lease, self.state.bids[id], OWNER)
        self._end_order(self.state.current_order(group))
        self._pause(group, OWNER)

    def _end_lease(self, lease: Lease, bid: Bid, reason: int) -> None:
        state = "insufficient_funds" if reason == INSUFFICIENT_FUNDS else "closed"
        self.close_payment(lease.id, overdrawn=reason == INSUFFICIENT_FUNDS)
        self.state.put("leases", replace(lease, state=state, reason=reason, closed=self.height))
        self.emit("akash.market.v1.EventLeaseClosed", id=_wire(lease.id), reason=reason)
        self._end_bid(bid, "closed", reason)

    def _reclaim_lease(self, signer: str, message: m.ReclaimLease) -> None:
        id = f"{message.owner}/{message.dseq}/{message.gseq}/{message.oseq}/{signer}"
        lease = self.state.leases.get(id)
        if lease is None:
            raise _missing("lease", id)
        if lease.state != "active":
            raise _conflict("lease_not_active", f"lease {id} is {lease.state}", lease.state)
        if not lease.reclamation_window:
            raise _conflict(
                "no_reclamation", f"lease {id} needs no notice; close the bid", lease.state
            )
        deadline = self.time + lease.reclamation_window * 1_000_000_000
        self.state.put("leases", replace(lease, state="reclaiming", deadline=deadline))
        self.emit(
            "akash.market.v1.EventLeaseReclaimStarted",
            id=_wire(id),
            deadline=deadline / 1_000_000_000,
        )

    def _withdraw_lease(self, signer: str, message: m.WithdrawLease) -> dict[str, Any]:
        id = f"{message.owner}/{message.dseq}/{message.gseq}/{message.oseq}/{signer}"
        payment = self.state.payments.get(id)
        if payment is None:
            raise _missing("lease", id)
        if payment.state != "open":
            raise _conflict("lease_closed", f"lease {id} is over and paid out", payment.state)
        units = self.withdraw(payment)
        return {"withdrawn": {"denom": payment.denom, "amount": money.text(units)}}

    # -- certificates, providers, auditors -----------------------------------------------------

    def _create_certificate(self, signer: str, message: m.CreateCertificate) -> dict[str, Any]:
        serial = read_certificate(message.pem, signer)
        id = f"{signer}/{serial}"
        if id in self.state.certificates:
            raise _conflict("certificate_exists", f"certificate {id} was registered before", id)
        self.state.put("certificates", Certificate(id, "valid", message.pem))
        self.emit("akash.cert.v1.EventCertificateCreated", owner=signer, serial=serial)
        return {"serial": serial}

    def _revoke_certificate(self, signer: str, message: m.RevokeCertificate) -> None:
        id = f"{signer}/{message.serial}"
        certificate = self.state.certificates.get(id)
        if certificate is None:
            raise _missing("certificate", id)
        if certificate.state != "valid":
            raise _conflict("certificate_revoked", f"certificate {id} is revoked", "revoked")
        self.state.put("certificates", replace(certificate, state="revoked"))
        self.emit("akash.cert.v1.EventCertificateRevoked", owner=signer, serial=message.serial)

    def _set_provider(self, signer: str, message: m.SetProvider) -> None:
        provider = Provider(
            signer,
            message.host_uri,
            _sorted(message.attributes),
            message.email,
            message.website,
        )
        known = self.state.providers.get(signer)
        if known == provider:
            return
        self.state.put("providers", provider)
        verb = "Updated" if known else "Created"
        self.emit(f"akash.provider.v1.EventProvider{verb}", owner=signer)

    def _sign_attributes(self, signer: str, message: m.SignAttributes) -> None:
        if message.provider not in self.state.providers:
            raise _missing("provider", message.provider)
        id = f"{message.provider}/{signer}"
        known = self.state.audits.get(id)
        merged = {a.key: a for a in (known.attributes if known else [])}
        merged.update((a.key, a) for a in _sorted(message.attributes))
        self.state.put("audits", Audit(id, sorted(merged.values())))
        self.emit(
            "akash.audit.v1.EventTrustedAuditorCreated", owner=message.provider, auditor=signer
        )

    def _delete_audit(self, signer: str, message: m.DeleteAudit) -> None:
        id = f"{message.provider}/{signer}"
        known = self.state.audits.get(id)
        if known is None or not known.attributes:
            raise _missing("audit", id)
        left = [a for a in known.attributes if message.keys and a.key not in message.keys]
        self.state.put("audits", Audit(id, left))
        self.emit(
            "akash.audit.v1.EventTrustedAuditorDeleted", owner=message.provider, auditor=signer
        )

    # -- what is whose -------------------------------------------------------------------------

    def _own_deployment(self, signer: str, dseq: int) -> Deployment:
        deployment = self.state.deployments.get(f"{signer}/{dseq}")
        if deployment is None:
            raise _missing("deployment", f"{signer}/{dseq}")
        if deployment.state != "active":
            raise _conflict(
                "deployment_closed", f"deployment {deployment.id} is closed", deployment.state
            )
        return deployment

    def _own_group(self, signer: str, dseq: int, gseq: int) -> Group:
        deployment = self._own_deployment(signer, dseq)
        group = self.state.groups.get(f"{deployment.id}/{gseq}")
        if group is None:
            raise _missing("group", f"{deployment.id}/{gseq}")
        return group


def max_price(spec: GroupSpec, path: str) -> tuple[str, int]:
    """``(denom, smallest units)`` a group pays at most a charged block: all replicas together."""
    total = 0
    for at, unit in enumerate(spec.resources):
        where = f"{path}.resources[{at}].price.amount"
        total += unit.count * money.parse(unit.price.amount, where)
    denom = spec.resources[0].price.denom
    return money.check_denom(denom, f"{path}.resources[0].price.denom"), total


def _wire(id: str) -> dict[str, Any]:
    """A text id as the originals' typed events write it: big numbers as text."""
    parts = id.split("/")
    wire: dict[str, Any] = {"owner": parts[0], "dseq": parts[1]}
    for name, part in zip(("gseq", "oseq"), parts[2:4], strict=False):
        wire[name] = int(part)
    if len(parts) == 5:
        wire["provider"] = parts[4]
    return wire


def _sorted(attributes: list[Attribute]) -> list[Attribute]:
    keys = [a.key for a in attributes]
    twice = sorted({k for k in keys if keys.count(k) > 1})
    if twice or not all(keys):
        raise LeaseholdError(
            "bad_attributes",
            "attribute keys are unique and not empty",
            path="attributes",
            got=", ".join(twice) or "''",
        )
    return sorted(attributes)


def _attributes(pairs: set[tuple[str, str]]) -> str:
    return ", ".join(f"{k}={v}" for k, v in sorted(pairs)) or "none"


def _address(text: str, path: str) -> None:
    if not is_address(text):
        raise LeaseholdError(
            "bad_address", f"{text[:90]!r} is no account address", path=path, got=text[:90]
        )


def _missing(what: str, id: str) -> LeaseholdError:
    return LeaseholdError(f"{what}_not_found", f"no {what} {id}", kind=Kind.NOT_FOUND, got=id)


def _conflict(code: str, message: str, got: object) -> LeaseholdError:
    return LeaseholdError(code, message, kind=Kind.CONFLICT, got=got)


def _too_little(path: str, least: int, got: int) -> LeaseholdError:
    return LeaseholdError(
        "deposit_too_small",
        "the deposit is too small",
        path=path,
        expected=f"≥ {money.text(least)}",
        got=money.text(got),
    )

"""Offers and what becomes of them: bids on orders, and leases from the first payment to the end."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.market.ledger import messages as m
from leasehold.market.ledger import money
from leasehold.market.ledger.records import Records
from leasehold.market.ledger.state import Bid, Deployment, Group, Lease, Order, Provider, spec_of
from leasehold.market.ledger.words import (
    INSUFFICIENT_FUNDS,
    OWNER,
    PROVIDER_REASONS,
    conflict,
    listed,
    max_price,
    missing,
    too_little,
    wire,
)
from leasehold.model.resources import GroupSpec


class Offers(Records):
    """Handlers; see ``machine``."""

    # -- bids ----------------------------------------------------------------------------------

    def _create_bid(self, signer: str, message: m.CreateBid) -> None:
        order_id = f"{message.owner}/{message.dseq}/{message.gseq}/{message.oseq}"
        order = self.state.orders.get(order_id)
        if order is None:
            raise missing("order", order_id)
        id = f"{order_id}/{signer}"
        if order.state != "open":
            raise conflict("order_not_open", f"order {order_id} is {order.state}", order.state)
        if id in self.state.bids:
            raise conflict("bid_exists", f"{signer} has bid on {order_id} before", id)
        if len(self.state.bids_on(order_id)) >= self.params.max_bids:
            raise conflict(
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
            raise too_little("deposit", self.bid_deposit, deposit)
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
            id=wire(id),
            price={"denom": denom, "amount": money.text(price)},
        )

    def _check_requirements(self, provider: Provider, spec: GroupSpec) -> None:
        wanted = {(a.key, a.value) for a in spec.requirements.attributes or ()}
        offered = {(a.key, a.value) for a in provider.attributes}
        if not wanted <= offered:
            raise LeaseholdError(
                "attributes_missing",
                "the provider lacks attributes the order requires",
                expected=listed(wanted),
                got=listed(offered),
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
            raise missing("bid", id)
        if bid.state not in ("open", "active"):
            raise conflict("bid_closed", f"bid {id} is {bid.state}", bid.state)
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
        self.emit("akash.deployment.v1.EventGroupPaused", id=wire(group.id), reason=reason)

    def _end_bid(self, bid: Bid, state: Any, reason: int) -> None:
        self.give(bid.id.rpartition("/")[2], bid.denom, bid.deposit)
        self.state.put(
            "bids", replace(bid, state=state, deposit=0, reason=reason, closed=self.height)
        )
        self.emit("akash.market.v1.EventBidClosed", id=wire(bid.id), state=state, reason=reason)

    # -- leases --------------------------------------------------------------------------------

    def _create_lease(self, signer: str, message: m.CreateLease) -> None:
        order_id = f"{signer}/{message.dseq}/{message.gseq}/{message.oseq}"
        id = f"{order_id}/{message.provider}"
        bid = self.state.bids.get(id)
        if bid is None:
            raise missing("bid", id)
        if bid.state != "open":
            raise conflict("bid_not_open", f"bid {id} is {bid.state}", bid.state)
        order = self.state.orders[order_id]
        if order.state != "open":
            raise conflict("order_not_open", f"order {order_id} is {order.state}", order.state)
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
            id=wire(id),
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
            raise missing("lease", id)
        if lease.state not in ("active", "reclaiming"):
            raise conflict("lease_closed", f"lease {id} is {lease.state}", lease.state)
        self._end_lease(lease, self.state.bids[id], OWNER)
        self._end_order(self.state.current_order(group))
        self._pause(group, OWNER)

    def _end_lease(self, lease: Lease, bid: Bid, reason: int) -> None:
        state = "insufficient_funds" if reason == INSUFFICIENT_FUNDS else "closed"
        self.close_payment(lease.id, overdrawn=reason == INSUFFICIENT_FUNDS)
        self.state.put("leases", replace(lease, state=state, reason=reason, closed=self.height))
        self.emit("akash.market.v1.EventLeaseClosed", id=wire(lease.id), reason=reason)
        self._end_bid(bid, "closed", reason)

    def _reclaim_lease(self, signer: str, message: m.ReclaimLease) -> None:
        id = f"{message.owner}/{message.dseq}/{message.gseq}/{message.oseq}/{signer}"
        lease = self.state.leases.get(id)
        if lease is None:
            raise missing("lease", id)
        if lease.state != "active":
            raise conflict("lease_not_active", f"lease {id} is {lease.state}", lease.state)
        if not lease.reclamation_window:
            raise conflict(
                "no_reclamation", f"lease {id} needs no notice; close the bid", lease.state
            )
        deadline = self.time + lease.reclamation_window * 1_000_000_000
        self.state.put("leases", replace(lease, state="reclaiming", deadline=deadline))
        self.emit(
            "akash.market.v1.EventLeaseReclaimStarted",
            id=wire(id),
            deadline=deadline / 1_000_000_000,
        )

    def _withdraw_lease(self, signer: str, message: m.WithdrawLease) -> dict[str, Any]:
        id = f"{message.owner}/{message.dseq}/{message.gseq}/{message.oseq}/{signer}"
        payment = self.state.payments.get(id)
        if payment is None:
            raise missing("lease", id)
        if payment.state != "open":
            raise conflict("lease_closed", f"lease {id} is over and paid out", payment.state)
        units = self.withdraw(payment)
        return {"withdrawn": {"denom": payment.denom, "amount": money.text(units)}}

    def _end_order(self, order: Order) -> None:
        self.state.put("orders", replace(order, state="closed", closed=self.height))
        self.emit("akash.market.v1.EventOrderClosed", id=wire(order.id))

    # -- what is whose -------------------------------------------------------------------------

    def _own_deployment(self, signer: str, dseq: int) -> Deployment:
        deployment = self.state.deployments.get(f"{signer}/{dseq}")
        if deployment is None:
            raise missing("deployment", f"{signer}/{dseq}")
        if deployment.state != "active":
            raise conflict(
                "deployment_closed", f"deployment {deployment.id} is closed", deployment.state
            )
        return deployment

    def _own_group(self, signer: str, dseq: int, gseq: int) -> Group:
        deployment = self._own_deployment(signer, dseq)
        group = self.state.groups.get(f"{deployment.id}/{gseq}")
        if group is None:
            raise missing("group", f"{deployment.id}/{gseq}")
        return group

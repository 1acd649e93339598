"""The rules: what each message changes, and what happens when time passes.

A handler reads the state, refuses with a LeaseholdError, or changes the state and says so in
events. Whoever calls it undoes the changes of a refused one. Nothing here looks at a clock, a
random number or the network: the same messages in the same blocks give the same state.

Here are money, deployments and groups; ``offers`` has bids and leases, ``records`` certificates,
providers and auditors, ``escrow`` what is paid while time passes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from msgspec.structs import replace

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.market.ledger import messages as m
from leasehold.market.ledger import money
from leasehold.market.ledger.chain import Genesis
from leasehold.market.ledger.offers import Offers
from leasehold.market.ledger.state import Deployment, Escrow, Group, Order
from leasehold.market.ledger.words import (
    INSUFFICIENT_FUNDS,
    OWNER,
    check_address,
    conflict,
    max_price,
    missing,
    too_little,
    wire,
)
from leasehold.model.resources import check_groups

_json = msgspec.json.Encoder()


class Machine(Offers):
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
        check_address(message.to, "to")
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
        check_address(message.to, "to")
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
            raise too_little("deposit", self.min_deposit, deposit)
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
        self.emit("akash.deployment.v1.EventDeploymentCreated", id=wire(id), hash=message.hash)
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
            id=wire(deployment.id),
            hash=message.hash,
        )

    def _deposit_deployment(self, signer: str, message: m.DepositDeployment) -> None:
        denom, units = self.coin(message.amount)
        escrow = self.state.escrows.get(str(message.id))
        if escrow is None:
            raise missing("deployment", str(message.id))
        if escrow.state != "open":
            raise conflict("deployment_closed", f"deployment {message.id} is closed", escrow.state)
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
            id=wire(deployment.id),
            reason=reason,
        )

    # -- groups and orders ---------------------------------------------------------------------

    def _open_order(self, group: Group) -> None:
        group = replace(group, state="open", orders=group.orders + 1)
        self.state.put("groups", group)
        order = Order(f"{group.id}/{group.orders}", "open", self.height)
        self.state.put("orders", order)
        self.emit("akash.market.v1.EventOrderCreated", id=wire(order.id))

    def _pause_group(self, signer: str, message: m.PauseGroup) -> None:
        group = self._own_group(signer, message.dseq, message.gseq)
        if group.state != "open":
            raise conflict("group_not_open", f"group {group.id} is {group.state}", group.state)
        self._end_group(group, "paused", OWNER)

    def _start_group(self, signer: str, message: m.StartGroup) -> None:
        group = self._own_group(signer, message.dseq, message.gseq)
        if group.state != "paused":
            raise conflict("group_not_paused", f"group {group.id} is {group.state}", group.state)
        self.emit("akash.deployment.v1.EventGroupStarted", id=wire(group.id))
        self._open_order(group)

    def _close_group(self, signer: str, message: m.CloseGroup) -> None:
        group = self._own_group(signer, message.dseq, message.gseq)
        if group.state not in ("open", "paused"):
            raise conflict("group_closed", f"group {group.id} is {group.state}", group.state)
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
        self.emit(f"akash.deployment.v1.EventGroup{verb}", id=wire(group.id), reason=reason)

"""What intake knows of a deployment and of a lease: folds of their events."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from leasehold.events.event import Event
from leasehold.model.events import lease as lease_events
from leasehold.model.events import manifest as manifest_events
from leasehold.model.events import market as market_events


@dataclass(slots=True)
class Kept:
    """An accepted manifest: the newest are kept so that a tenant can go back."""

    hash: str
    manifest: list[dict[str, Any]]
    sender: str
    at: float
    event: str


@dataclass(slots=True)
class DeploymentState:
    """``hash`` and ``height`` are from the newest event that set the version hash."""

    hash: str = ""
    height: int = -1
    closed: bool = False
    kept: list[Kept] = field(default_factory=list)
    """Oldest first."""

    @property
    def newest(self) -> Kept | None:
        return self.kept[-1] if self.kept else None


@dataclass(slots=True)
class LeaseState:
    """``received`` is the hash of the manifest this lease was given last; empty for none."""

    won: market_events.LeaseWon | None = None
    won_at: float = 0.0
    received: str = ""
    received_at: float = 0.0
    hosts: bool = False
    """Whether that manifest asks for host names."""
    closed: bool = False
    reclaim_deadline: float | None = None
    applied: str = ""
    """Hash of the manifest that runs."""
    healthy: str = ""
    failed: lease_events.DeployFailed | None = None
    unhealthy: str = ""
    """Why, while it is unhealthy."""
    uris: list[str] = field(default_factory=list)
    bid_closed: bool = False
    overdue: bool = False
    """No manifest came in time: its bid is being closed and none is accepted any more."""

    def needs_no(self, hash: str) -> bool:
        """Whether the manifest ``hash`` would be no news to this lease."""
        return self.closed or self.too_late or (self.received == hash and self.failed is None)

    @property
    def too_late(self) -> bool:
        """Whether its time for a manifest ran out before one was accepted."""
        return self.overdue and not self.received

    @property
    def phase(self) -> str:
        """How far the newest manifest has come: waiting, overdue, received, applied, healthy,
        unhealthy or failed."""
        if not self.received:
            return "overdue" if self.overdue else "waiting"
        if self.failed is not None and self.failed.hash in ("", self.received):
            return "failed"
        if self.healthy == self.received and not self.unhealthy:
            return "healthy"
        if self.applied == self.received:
            return "unhealthy" if self.unhealthy else "applied"
        return "received"


def fold_deployment(keep: int) -> Any:
    """The fold of a deployment that keeps the newest ``keep`` accepted manifests."""

    def fold(state: DeploymentState, event: Event) -> DeploymentState:
        match event.type:
            case "deployment.created" | "deployment.updated":
                payload = event.payload
                if payload.height >= state.height:
                    state.hash, state.height = payload.hash.lower(), payload.height
            case "deployment.closed":
                state.closed = True
            case "manifest.accepted":
                accepted: manifest_events.ManifestAccepted = event.payload
                newest = state.newest
                if not accepted.manifest and newest is not None:
                    # The same manifest again: only who and when is new.
                    newest.sender, newest.at, newest.event = accepted.sender, event.at, event.id
                    return state
                state.kept.append(
                    Kept(accepted.hash, accepted.manifest, accepted.sender, event.at, event.id)
                )
                del state.kept[:-keep]
        return state

    return fold


def fold_lease(state: LeaseState, event: Event) -> LeaseState:
    match event.type:
        case "lease.won":
            if state.won is None:
                state.won, state.won_at = event.payload, event.at
        case "lease.reclaiming":
            state.reclaim_deadline = event.payload.deadline
        case "lease.closed":
            state.closed = True
        case "manifest.received":
            state.received, state.received_at = event.payload.hash, event.at
            state.hosts = any(
                expose.get("hosts")
                for service in event.payload.group.get("services") or ()
                for expose in service.get("expose") or ()
            )
            state.failed = None
        case "manifest.overdue":
            state.overdue = True
        case "manifest.bid_closed":
            state.bid_closed = True
        case "deploy.running":
            state.applied, state.uris = event.payload.hash, event.payload.uris
            if state.failed and state.failed.hash == event.payload.hash:
                state.failed = None
        case "deploy.healthy":
            state.healthy, state.unhealthy = event.payload.hash, ""
            state.applied = state.applied or event.payload.hash
        case "deploy.unhealthy":
            state.unhealthy = event.payload.reason or "unhealthy"
        case "deploy.failed":
            state.failed = event.payload
    return state

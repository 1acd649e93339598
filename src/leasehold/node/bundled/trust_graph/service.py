"""The service ``trust-graph``: roots, certificate chains and revocations, and what they weigh."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from leasehold.node import trust
from leasehold.node.sdk import Refused, Service

MAX_CHAINS = 50_000
MAX_ROOTS = 100

service = Service()
PATH = os.path.join(service.data, "trust.json")


class State:
    """Everything known, in memory and in one file that is replaced as a whole."""

    def __init__(self) -> None:
        self.roots: dict[str, int] = {}
        self.chains: list[list[trust.Link]] = []
        self.revocations: list[dict[str, Any]] = []
        try:
            with open(PATH) as file:
                raw = json.load(file)
            self.roots = raw["roots"]
            self.chains = raw["chains"]
            self.revocations = raw["revocations"]
        except FileNotFoundError:
            pass

    def save(self) -> None:
        temporary = PATH + ".new"
        with open(temporary, "w") as file:
            json.dump(
                {"roots": self.roots, "chains": self.chains, "revocations": self.revocations}, file
            )
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, PATH)


state = State()


def _administered() -> None:
    """Only the node and its management change what is trusted."""
    if service.context.caller not in (service.context.owner, service.context.host):
        raise Refused("only the host may change what is trusted")


@service.function
def set_root(peer: str, max_chain_len: int) -> None:
    """Trust ``peer`` as a root whose chains have at most ``max_chain_len`` links after it."""
    _administered()
    if not 0 <= int(max_chain_len) < trust.MAX_CHAIN:
        raise Refused(f"max_chain_len is 0 to {trust.MAX_CHAIN - 1}")
    try:
        trust.public_key(peer)
    except trust.BadCertificate as error:
        raise Refused(str(error)) from None
    if peer not in state.roots and len(state.roots) >= MAX_ROOTS:
        raise Refused(f"at most {MAX_ROOTS} roots")
    if state.roots.get(peer) != max_chain_len:
        state.roots[peer] = int(max_chain_len)
        state.save()


@service.function
def remove_root(peer: str) -> None:
    """Stop trusting ``peer`` as a root; its chains weigh nothing from now on."""
    _administered()
    if state.roots.pop(peer, None) is not None:
        state.save()


@service.function
def reset(roots: dict[str, int]) -> None:
    """Forget every root that is not in ``roots``."""
    _administered()
    for peer in set(state.roots) - set(roots):
        state.roots.pop(peer)
        state.save()


@service.function
def insert_cert(chain: list[trust.Link], now_sec: int) -> dict[str, Any]:
    """Add a chain whose root is trusted; the same one again changes nothing."""
    try:
        trust.check_chain(chain, int(now_sec))
    except trust.BadCertificate as error:
        return {"success": False, "error": str(error), "expired": error.expired}
    root = chain[0]["issued_for"]
    if root not in state.roots:
        raise Refused(f"{root} is no trusted root")
    if len(chain) - 1 > state.roots[root]:
        raise Refused(f"chains of {root} have at most {state.roots[root]} links after it")
    if chain not in state.chains:
        subject = chain[-1]["issued_for"]
        # A newer chain over the same peers replaces the older one.
        path = [link["issued_for"] for link in chain]
        state.chains = [c for c in state.chains if [x["issued_for"] for x in c] != path]
        if len(state.chains) >= MAX_CHAINS:
            raise Refused(f"at most {MAX_CHAINS} certificates; {subject} is not added")
        state.chains.append(chain)
        state.save()
    return {}


@service.function
def revoke(revocation: dict[str, Any]) -> None:
    """Take back what an issuer vouched for; signed by that issuer."""
    try:
        trust.check_revocation(revocation)
    except (trust.BadCertificate, KeyError, TypeError) as error:
        raise Refused(f"not a revocation: {error}") from None
    if revocation not in state.revocations:
        state.revocations.append(revocation)
        state.save()


@service.function
def get_weight(peer: str, now_sec: int = 0) -> dict[str, Any]:
    """What ``peer`` weighs now; 0 when nobody vouches for it."""
    now = int(now_sec) or int(time.time())
    found = trust.weights(state.roots, state.chains, state.revocations, now)
    return {"weight": found.get(peer, 0), "peer_id": peer}


@service.function
def get_weights(now_sec: int = 0) -> dict[str, Any]:
    """Every peer with a weight."""
    now = int(now_sec) or int(time.time())
    return {"weights": trust.weights(state.roots, state.chains, state.revocations, now)}


@service.function
def get_all_certs(peer: str) -> dict[str, Any]:
    """The chains that end at ``peer``."""
    return {"certs": [c for c in state.chains if c[-1]["issued_for"] == peer]}


@service.function
def get_roots() -> dict[str, Any]:
    return {"roots": state.roots}


if __name__ == "__main__":
    service.serve()

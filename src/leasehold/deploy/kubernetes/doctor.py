"""What a cluster lacks for running workloads: every check at once, each with what to do."""

from __future__ import annotations

import asyncio

from leasehold.core.errors import LeaseholdError
from leasehold.deploy.doctor import Check
from leasehold.deploy.kubernetes import inventory
from leasehold.deploy.kubernetes.api import Api
from leasehold.deploy.settings import DeploySettings

OLDEST = (1, 27)
"""The first Kubernetes that is supported."""

OBJECTS = ("get", "list", "watch", "create", "patch", "delete")

RIGHTS: dict[tuple[str, str], tuple[str, ...]] = {
    ("", "namespaces"): OBJECTS,
    ("", "services"): OBJECTS,
    ("apps", "deployments"): OBJECTS,
    ("apps", "statefulsets"): OBJECTS,
    ("networking.k8s.io", "ingresses"): OBJECTS,
    ("networking.k8s.io", "networkpolicies"): OBJECTS,
    ("", "secrets"): ("create", "patch", "delete"),
    ("", "pods"): ("get", "list", "watch", "delete"),
    ("", "pods/log"): ("get",),
    ("", "pods/exec"): ("get", "create"),
    ("", "events"): ("list",),
    ("", "nodes"): ("list", "watch"),
    ("storage.k8s.io", "storageclasses"): ("list",),
}
"""By group and resource: what the driver does. The chart's role grants this and no more."""


def doctor(settings: DeploySettings) -> list[Check]:
    """All checks. Changes nothing on the cluster."""
    return asyncio.run(examine(settings))


async def examine(settings: DeploySettings) -> list[Check]:
    """See :func:`doctor`."""
    try:
        api = Api(settings.kubernetes)
    except LeaseholdError as error:
        return [Check("cluster", "error", error.message, f"set {error.path}")]
    async with api:
        try:
            version = await api.version()
            missing = [
                f"{verb} {resource}"
                for (group, resource), verbs in RIGHTS.items()
                for verb in verbs
                if not await api.may(verb, group, resource)
            ]
            nodes = [] if "list nodes" in missing else (await api.list("Node"))[0]
        except LeaseholdError as error:
            return [Check("cluster", "error", error.message, "see deploy.kubernetes.kubeconfig")]
    text = f"Kubernetes {version[0]}.{version[1]} at {api.server}"
    usable = sum(map(inventory.usable, nodes))
    return [
        Check("cluster", "ok", text)
        if version >= OLDEST
        else Check("cluster", "error", text, f"use {OLDEST[0]}.{OLDEST[1]} or later"),
        Check("rights", "ok", "the account may do what the driver does")
        if not missing
        else Check(
            "rights",
            "error",
            f"the account may not {', '.join(missing)}",
            "give it the role of deploy/helm",
        ),
        Check("nodes", "ok", f"{usable} of {len(nodes)} nodes take workloads")
        if usable
        else Check("nodes", "error", "no node takes workloads", "add or uncordon a node"),
    ]

"""Who and what is meant: the ids of the market, as text and as value types.

Texts are paths that grow to the right: ``owner/dseq`` (deployment), ``owner/dseq/gseq`` (group),
``owner/dseq/gseq/oseq`` (order), and with ``/provider`` a bid or a lease.
"""

from __future__ import annotations

from typing import Self

import msgspec

from leasehold.core.errors import Kind, LeaseholdError


class _Id(msgspec.Struct, frozen=True, order=True):
    def __str__(self) -> str:
        return "/".join(str(getattr(self, f)) for f in self.__struct_fields__)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the text form; LeaseholdError ``bad_id`` when it is none."""
        parts = text.split("/")
        fields = cls.__struct_fields__
        shape = "/".join(fields)
        if len(parts) != len(fields) or not all(parts):
            raise _bad_id(cls.__name__, shape, text)
        values: dict[str, object] = {}
        for name, part in zip(fields, parts, strict=True):
            if name.endswith("seq"):
                if not part.isascii() or not part.isdigit() or int(part) >= 1 << 64:
                    raise _bad_id(cls.__name__, shape, text)
                values[name] = int(part)
            else:
                values[name] = part
        return cls(**values)


class DeploymentId(_Id, frozen=True, order=True):
    """What a tenant asked for: owner's address and deployment sequence."""

    owner: str
    dseq: int

    def __str__(self) -> str:
        return f"{self.owner}/{self.dseq}"


class GroupId(_Id, frozen=True, order=True):
    """One placement group of a deployment."""

    owner: str
    dseq: int
    gseq: int

    @property
    def deployment(self) -> DeploymentId:
        return DeploymentId(self.owner, self.dseq)


class OrderId(_Id, frozen=True, order=True):
    """A group put out for bids for the ``oseq``-th time."""

    owner: str
    dseq: int
    gseq: int
    oseq: int

    @property
    def deployment(self) -> DeploymentId:
        return DeploymentId(self.owner, self.dseq)

    @property
    def group(self) -> GroupId:
        return GroupId(self.owner, self.dseq, self.gseq)


class LeaseId(_Id, frozen=True, order=True):
    """An order together with the provider whose bid was accepted."""

    owner: str
    dseq: int
    gseq: int
    oseq: int
    provider: str

    def __str__(self) -> str:
        return f"{self.owner}/{self.dseq}/{self.gseq}/{self.oseq}/{self.provider}"

    @property
    def deployment(self) -> DeploymentId:
        return DeploymentId(self.owner, self.dseq)

    @property
    def group(self) -> GroupId:
        return GroupId(self.owner, self.dseq, self.gseq)

    @property
    def order(self) -> OrderId:
        return OrderId(self.owner, self.dseq, self.gseq, self.oseq)


BidId = LeaseId
"""A bid has the id of the lease it would become."""


def _bad_id(what: str, shape: str, got: str) -> LeaseholdError:
    return LeaseholdError(
        "bad_id",
        f"{got!r} is no {what}; write it as {shape}",
        kind=Kind.MALFORMED,
        expected=shape,
        got=got,
    )

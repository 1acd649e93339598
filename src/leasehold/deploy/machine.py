"""The six states of a deployment and what moves it, as one table.

======================  =========================================================================
``ACTIVE``              a version is being brought up
``PENDING``             the same, and a newer one waits (only the newest is kept)
``COMPLETE``            the last attempt is over, well or badly; the monitor watches what runs
``TEARDOWN_PENDING``    the lease is closed; the attempt in progress is being called off
``TEARDOWN_ACTIVE``     everything of the lease is being removed
``TEARDOWN_COMPLETE``   nothing is left
======================  =========================================================================

A failed attempt is not the end of the deployment: what ran before goes on running, and a newer
version that waited is tried next.
"""

from __future__ import annotations

import enum


class State(enum.Enum):
    ACTIVE = "deploy-active"
    PENDING = "deploy-pending"
    COMPLETE = "deploy-complete"
    TEARDOWN_ACTIVE = "teardown-active"
    TEARDOWN_PENDING = "teardown-pending"
    TEARDOWN_COMPLETE = "teardown-complete"


class Input(enum.Enum):
    UPDATE = "a newer manifest"
    DEPLOYED = "the attempt succeeded"
    FAILED = "the attempt failed"
    CLOSE = "the lease is closed"
    REMOVED = "everything is removed"


class Action(enum.Enum):
    DEPLOY = "bring the newest version up"
    WATCH = "start the monitor"
    CANCEL = "call the attempt off"
    TEARDOWN = "remove everything"


_S, _I, _A = State, Input, Action

TABLE: dict[tuple[State, Input], tuple[State, Action | None]] = {
    (_S.ACTIVE, _I.UPDATE): (_S.PENDING, None),
    (_S.ACTIVE, _I.DEPLOYED): (_S.COMPLETE, _A.WATCH),
    (_S.ACTIVE, _I.FAILED): (_S.COMPLETE, _A.WATCH),
    (_S.ACTIVE, _I.CLOSE): (_S.TEARDOWN_PENDING, _A.CANCEL),
    (_S.PENDING, _I.UPDATE): (_S.PENDING, None),
    (_S.PENDING, _I.DEPLOYED): (_S.ACTIVE, _A.DEPLOY),
    (_S.PENDING, _I.FAILED): (_S.ACTIVE, _A.DEPLOY),
    (_S.PENDING, _I.CLOSE): (_S.TEARDOWN_PENDING, _A.CANCEL),
    (_S.COMPLETE, _I.UPDATE): (_S.ACTIVE, _A.DEPLOY),
    (_S.COMPLETE, _I.CLOSE): (_S.TEARDOWN_ACTIVE, _A.TEARDOWN),
    (_S.TEARDOWN_PENDING, _I.DEPLOYED): (_S.TEARDOWN_ACTIVE, _A.TEARDOWN),
    (_S.TEARDOWN_PENDING, _I.FAILED): (_S.TEARDOWN_ACTIVE, _A.TEARDOWN),
    (_S.TEARDOWN_ACTIVE, _I.REMOVED): (_S.TEARDOWN_COMPLETE, None),
}


def step(state: State, input: Input) -> tuple[State, Action | None]:
    """The next state and what to do; what is not in the table changes nothing."""
    return TABLE.get((state, input), (state, None))

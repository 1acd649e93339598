"""One task as its caller sees it: responses in order, then exactly one outcome.

Responses wait in a bounded buffer of the task's own. A worker that knows credits may be only
``window`` responses ahead of the caller; one that does not is bounded by the buffer, and a caller
that lets it overflow loses this task and nothing else.

A task is tried by one worker at a time. Each *attempt* has its own id on the wire, and a task only
listens to its current attempt, so what a worker believed dead still sends reaches nobody: that is
the fence. When an attempt is lost the task goes to another worker if that cannot be noticed
(nothing was taken by the caller yet) or the caller said repeating is harmless.
"""

from __future__ import annotations

import asyncio
import enum
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Self

import msgspec

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.dispatch import metrics
from leasehold.dispatch.wire import DEFAULT_VERSION, END, REFUSED, Response

if TYPE_CHECKING:
    from leasehold.dispatch.session import Session


class Retry(enum.Enum):
    """May a lost task be given to another worker?"""

    NEVER = "never"
    UNTIL_OUTPUT = "until_output"
    """Yes, as long as the caller took no response of it."""
    IDEMPOTENT = "idempotent"
    """Always; the caller may see the responses of a lost attempt and then those of the next."""


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """What to do, and where. ``timeout`` is in seconds, None for the manager's default.

    ``caller`` names whose queue the task waits in when all workers are busy: callers take turns.
    """

    network: str
    chain_id: str
    type: str
    payload: bytes = b""
    version: str = DEFAULT_VERSION
    timeout: float | None = None
    retry: Retry = Retry.UNTIL_OUTPUT
    caller: str = ""

    @property
    def pool(self) -> tuple[str, str, str]:
        return (self.network, self.chain_id, self.version)


class Attempt:
    """One try of a task on one worker, under its own id."""

    __slots__ = ("given_at", "held", "id", "next_order", "number", "session", "task")

    def __init__(self, id: str, number: int, task: Task, session: Session, at: float) -> None:
        self.id = id
        self.number = number
        self.task = task
        self.session = session
        self.given_at = at
        self.next_order = 0
        self.held: dict[int, Response] | None = None


class Task:
    """Iterate it for the responses; leaving the ``async with`` early cancels the work.

    The iteration ends after the final response; it raises :class:`LeaseholdError` when the task
    failed (``task_failed`` with the worker's own words, ``task_timeout``, ``worker_lost``,
    ``caller_too_slow``, ``responses_missing``, ``manager_stopped``).
    """

    __slots__ = (
        "_buffer",
        "_bytes",
        "_closed",
        "_deadline",
        "_done",
        "_error",
        "_on_end",
        "_owed",
        "_waiter",
        "accepted_at",
        "attempt",
        "attempts",
        "call",
        "id",
        "limit",
        "limit_bytes",
        "taken",
        "timeout",
        "window",
    )

    def __init__(
        self,
        id: str,
        call: Call,
        *,
        timeout: float,
        window: int,
        limit: int,
        limit_bytes: int,
        at: float,
        on_end: Callable[[Task, str], None],
    ) -> None:
        self.id = id
        self.call = call
        self.timeout = timeout
        self.window = window
        self.limit = limit
        self.limit_bytes = limit_bytes
        self.accepted_at = at
        self.attempt: Attempt | None = None
        self.attempts = 0
        self.taken = 0
        self._on_end = on_end
        self._buffer: deque[Response] = deque()
        self._bytes = 0
        self._owed = 0
        self._waiter: asyncio.Future[None] | None = None
        self._done = False
        self._closed = False
        self._error: LeaseholdError | None = None
        loop = asyncio.get_running_loop()
        self._deadline: asyncio.TimerHandle = loop.call_later(timeout, self._expired)

    # the caller's side

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Response:
        while not self._buffer:
            if self._done:
                if self._error is not None and not self._closed:
                    raise self._error
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        response = self._buffer.popleft()
        self._bytes -= len(response.payload)
        self.taken += 1
        attempt = self.attempt
        if attempt is not None:
            self._owed += 1
            if self._owed * 2 >= self.window:
                attempt.session.grant(attempt.id, self._owed)
                self._owed = 0
        return response

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cancel()

    def cancel(self) -> None:
        """Nobody waits any more: the worker is told to stop. Harmless after the end."""
        self._closed = True
        self._buffer.clear()
        self._bytes = 0
        self.finish("cancelled")

    @property
    def done(self) -> bool:
        """True once the outcome is known, though responses may still wait to be taken."""
        return self._done

    @property
    def error(self) -> LeaseholdError | None:
        """Why it failed, once it is done."""
        return self._error

    @property
    def remaining(self) -> float:
        """Seconds until the deadline."""
        return max(0.0, self._deadline.when() - asyncio.get_running_loop().time())

    # the manager's side

    def begin(self, attempt: Attempt) -> None:
        """From now on only ``attempt`` is listened to; what an earlier one left unread is void."""
        self.attempt = attempt
        self.attempts = attempt.number
        self._buffer.clear()
        self._bytes = 0
        self._owed = 0

    def may_retry(self, *, started: bool) -> bool:
        """Whether losing the current attempt can be repaired. ``started=False``: it never ran."""
        retry = self.call.retry
        return (
            not started
            or retry is Retry.IDEMPOTENT
            or (retry is Retry.UNTIL_OUTPUT and self.taken == 0)
        )

    def deliver(self, attempt: Attempt, response: Response) -> None:
        """A response of the current attempt arrived."""
        if response.error:
            failed = _failure(self.call, response)
            if response.payload:
                self._put(response)
            self.finish("failed", failed)
            return
        order = response.order
        if order == attempt.next_order:
            self._accept(attempt, response)
            held = attempt.held
            while held and not self._done:
                following = held.pop(attempt.next_order, None)
                if following is None:
                    break
                self._accept(attempt, following)
            if held and not self._done and len(held) > self.limit:
                self._misordered(attempt)
        elif response.type == END and response.final and order < attempt.next_order:
            self._accept(attempt, response)  # END carries nothing; some number it carelessly
        elif order < attempt.next_order or (attempt.held and order in attempt.held):
            metrics.REJECTED.labels("duplicate_order").inc()
            if response.final:
                self._misordered(attempt)
        else:
            if attempt.held is None:
                attempt.held = {}
            attempt.held[order] = response
            if response.final or len(attempt.held) > self.limit:
                # One stream keeps order, so what is missing when the final is here never comes.
                self._misordered(attempt)

    def _accept(self, attempt: Attempt, response: Response) -> None:
        attempt.next_order += 1
        if not response.final:
            self._put(response)
        elif attempt.held:
            self._misordered(attempt)
        else:
            if response.payload or response.type != END:
                self._put(response)
            if not self._done:
                self.finish("done")

    def _put(self, response: Response) -> None:
        if len(self._buffer) >= self.limit or (
            self._buffer and self._bytes + len(response.payload) > self.limit_bytes
        ):
            self.finish(
                "overflow",
                LeaseholdError(
                    "caller_too_slow",
                    f"{self.limit} responses of this {self.call.type} task were not taken;"
                    " take them faster or ask for less",
                    kind=Kind.TOO_LARGE,
                ),
            )
            return
        self._buffer.append(response)
        self._bytes += len(response.payload)
        self._wake()

    def _misordered(self, attempt: Attempt) -> None:
        metrics.REJECTED.labels("order").inc()
        self.finish(
            "misordered",
            LeaseholdError(
                "responses_missing",
                f"the worker's responses to this {self.call.type} task are not complete:"
                f" number {attempt.next_order} never came",
                kind=Kind.UNAVAILABLE,
                expected=attempt.next_order,
            ),
        )

    def _expired(self) -> None:
        self.finish(
            "timeout",
            LeaseholdError(
                "task_timeout",
                f"{self.call.type} on {self.call.network}/{self.call.chain_id} was not done"
                f" within {self.timeout:g} s",
                kind=Kind.TIMEOUT,
            ),
        )

    def finish(self, outcome: str, error: LeaseholdError | None = None) -> None:
        """Give the task its one outcome; every later call changes nothing."""
        if self._done:
            return
        self._done = True
        self._error = error
        self._deadline.cancel()
        self._on_end(self, outcome)
        self.attempt = None
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def is_refusal(response: Response) -> bool:
    """The worker never started it: give it to another one, whatever the task is."""
    return response.final and response.error_type == REFUSED and bool(response.error)


def _failure(call: Call, response: Response) -> LeaseholdError:
    return LeaseholdError(
        "task_failed",
        f"{call.type} failed on the worker: {response.error}",
        kind=Kind.UNAVAILABLE,
        got=response.error_type or None,
    )

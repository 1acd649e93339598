"""Whatever a worker sends, a caller sees consecutive responses and then exactly one outcome."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from leasehold.core.errors import LeaseholdError
from leasehold.dispatch.task import Attempt, Call, Task
from leasehold.dispatch.wire import END, Response

LIMIT = 16

responses = st.builds(
    Response,
    id=st.just("t"),
    type=st.sampled_from(["Data", END]),
    order=st.integers(0, 12),
    final=st.booleans(),
    payload=st.sampled_from([b"", b"x"]),
    error=st.sampled_from(["", "", "", "broken"]),
)


class Streams:
    """Stands for the session: what was granted to which id."""

    def grant(self, id: str, n: int) -> None:
        assert id == "t" and n > 0


@given(
    st.lists(responses, max_size=40),
    st.lists(st.integers(0, 3), min_size=40, max_size=40),
)
def test_any_sequence(sequence: list[Response], takes: list[int]) -> None:
    async def run() -> None:
        outcomes: list[str] = []
        call = Call(network="n", chain_id="c", type="T")
        task = Task(
            "t", call, timeout=60.0, window=8, limit=LIMIT, limit_bytes=1 << 20, at=0.0,
            on_end=lambda _, outcome: outcomes.append(outcome),
        )  # fmt: skip
        attempt = Attempt("t", 1, task, Streams(), 0.0)  # type: ignore[arg-type]
        task.begin(attempt)
        got: list[Response] = []
        ended = False
        for response, take in zip(sequence, takes, strict=False):
            if not task.done:  # a session drops the rest
                task.deliver(attempt, response)
            assert len(task._buffer) <= LIMIT
            for _ in range(take):
                if task._buffer:
                    got.append(await anext(task))  # noqa: PERF401
        if not task.done:
            assert outcomes == []
            task.finish("stopped", LeaseholdError("stopped", "stopped"))
        try:
            async for response in task:
                got.append(response)  # noqa: PERF401
        except LeaseholdError:
            ended = True
        assert len(outcomes) == 1
        assert ended == (task.error is not None)
        orders = [response.order for response in got if not response.error]
        assert orders == list(range(len(orders)))
        assert sum(response.final for response in got) <= 1
        if outcomes == ["done"]:
            # Complete: everything up to the final was delivered.
            final = attempt.next_order - 1
            assert len(orders) in (final, final + 1)

    asyncio.run(run())

"""The table of the deployment state machine."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from leasehold.deploy.machine import TABLE, Action, Input, State, step

WORKING = {State.ACTIVE, State.PENDING, State.TEARDOWN_PENDING}


@given(st.lists(st.sampled_from(list(Input)), max_size=40))
def test_any_story_keeps_at_most_one_thing_going(inputs: list[Input]) -> None:
    """A model of the world outside: an attempt is answered once, a teardown is answered once."""
    state, attempt, teardown, closed, newest, tried = State.COMPLETE, False, False, False, 0, 0
    for input in inputs:
        if input in (Input.DEPLOYED, Input.FAILED) and not attempt:
            continue
        if input is Input.REMOVED and not teardown:
            continue
        if input is Input.UPDATE:
            newest += 1
        closed = closed or input is Input.CLOSE
        if input in (Input.DEPLOYED, Input.FAILED):
            attempt = False
        if input is Input.REMOVED:
            teardown = False
        state, action = step(state, input)
        if action is Action.DEPLOY:
            assert not attempt
            assert not closed, "nothing is brought up after the close"
            attempt, tried = True, newest
        if action is Action.TEARDOWN:
            assert not attempt
            assert not teardown
            teardown = True
        assert attempt == (state in WORKING)
        assert teardown == (state is State.TEARDOWN_ACTIVE)
        if closed:
            assert state.value.startswith("teardown")
        if state is State.COMPLETE:
            assert tried == newest, "the newest manifest was tried"


def test_the_end_is_the_end() -> None:
    for input in Input:
        assert step(State.TEARDOWN_COMPLETE, input) == (State.TEARDOWN_COMPLETE, None)


def test_every_state_is_reachable_and_left() -> None:
    assert {after for after, _ in TABLE.values()} == set(State)
    assert {before for before, _ in TABLE} == set(State) - {State.TEARDOWN_COMPLETE}

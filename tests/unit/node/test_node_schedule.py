"""Properties of the schedule against a plain reference, over a hundred years."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from leasehold.node.spells.schedule import GRACE, MAX_CATCH_UP, Fire, Schedule
from leasehold.node.spells.trigger import ClockConfig, TriggerConfig

T0 = 1_767_225_600
CENTURY = 3_153_600_000
U32 = 2**32 - 1


@dataclass
class Reference:
    """One clock by the rules, in integers: tick ``k`` is at ``base + k * period``."""

    base: int
    period: int
    end: int
    policy: str
    k: int = 0
    over: bool = False

    def tick(self, k: int) -> int:
        return self.base + k * self.period

    def allowed(self, k: int) -> bool:
        return not self.end or self.tick(k) < self.end or k == 0

    def pop(self, now: int) -> list[int]:
        if self.over or self.tick(self.k) > now:
            return []
        if not self.period:
            self.over = True
            late = now - self.base > GRACE
            return [] if late and self.policy == "none" else [self.base]
        last = (now - self.base) // self.period
        latest = last
        if self.end and self.tick(latest) >= self.end:
            latest = max(self.k, (self.end - self.base - 1) // self.period)
        due = [self.tick(k) for k in range(max(self.k, latest - MAX_CATCH_UP + 1), latest + 1)]
        self.k = last + 1
        self.over = not self.allowed(self.k)
        if self.policy == "all":
            return due
        if self.policy == "none" and now - due[-1] > GRACE:
            return []
        return due[-1:]


seconds = st.one_of(st.integers(0, 200), st.integers(0, 10**6), st.integers(0, CENTURY))
periods = st.one_of(st.just(0), st.integers(1, 50), st.integers(1, 10**6), st.just(CENTURY))
policies = st.sampled_from(["none", "once", "all"])
starts = st.one_of(st.just(1), seconds.map(lambda s: min(T0 + s, U32)))
ends = st.one_of(st.just(0), seconds.map(lambda s: min(T0 + 1 + s, U32)))
clocks = st.tuples(starts, ends, periods, policies)


@settings(max_examples=300, deadline=None)
@given(
    specs=st.lists(clocks, min_size=1, max_size=6),
    steps=st.lists(seconds, min_size=1, max_size=12),
)
def test_fires_what_the_reference_fires(
    specs: list[tuple[int, int, int, str]], steps: list[int]
) -> None:
    schedule, references = Schedule(), {}
    for index, (start, end, period, policy) in enumerate(specs):
        base = max(start, T0)
        end = end and max(end, base)  # An end before the start is refused by validation.
        config = TriggerConfig(clock=ClockConfig(start, end, period), catch_up=policy)  # type: ignore[arg-type]
        armed = schedule.arm(f"s{index}", config, armed_at=T0, now=T0)
        reference = Reference(base, period, end, policy, over=bool(end) and end <= T0)
        assert armed == (not reference.over)
        references[f"s{index}"] = reference
    now = T0
    for step in [0, *steps]:
        now += step
        got = schedule.pop(now)
        expected = [
            Fire(spell, float(tick)) for spell, r in references.items() for tick in r.pop(now)
        ]
        assert sorted(got) == sorted(expected)
        assert [fire.due for fire in got] == sorted(fire.due for fire in got)
        upcoming = [float(r.tick(r.k)) for r in references.values() if not r.over]
        assert schedule.next_due() == min(upcoming, default=None)


@settings(max_examples=200, deadline=None)
@given(period=st.integers(1, 10**7), down=seconds, fired=st.integers(0, 1000), policy=policies)
def test_a_restart_keeps_the_phase(period: int, down: int, fired: int, policy: str) -> None:
    """After any time down, every tick is where it would have been, and none is fired twice."""
    last = T0 + fired * period
    now = last + down
    schedule = Schedule()
    config = TriggerConfig(clock=ClockConfig(1, 0, period), catch_up=policy)  # type: ignore[arg-type]
    schedule.arm("s", config, armed_at=T0, now=now, last=last)
    fires = schedule.pop(now)
    assert all((fire.due - T0) % period == 0 and last < fire.due <= now for fire in fires)
    assert len(fires) <= (MAX_CATCH_UP if policy == "all" else 1)
    upcoming = schedule.next_due()
    assert upcoming is not None
    assert (upcoming - T0) % period == 0
    assert now < upcoming <= now + period


@settings(max_examples=200, deadline=None)
@given(period=st.integers(1, 10**6), ran=st.integers(0, 10**7), back=st.integers(2, 10**8))
def test_a_clock_set_back_does_not_stall(period: int, ran: int, back: int) -> None:
    """The next tick is within one period of the new time, in phase."""
    schedule = Schedule()
    schedule.arm("s", TriggerConfig(clock=ClockConfig(1, 0, period)), armed_at=T0, now=T0)
    schedule.pop(T0 + ran)
    now = T0 + ran - back
    schedule.set_back(now)
    upcoming = schedule.next_due()
    assert upcoming is not None
    assert now < upcoming <= now + period
    assert (upcoming - T0) % period == 0


def test_replaced_clocks_do_not_pile_up() -> None:
    schedule = Schedule()
    config = TriggerConfig(clock=ClockConfig(1, 0, CENTURY))
    for _ in range(10_000):
        schedule.arm("s", config, armed_at=T0, now=T0, last=T0)
    assert len(schedule._heap) < 200
    assert len(schedule) == 1


def test_a_century_of_hourly_ticks_one_by_one() -> None:
    schedule = Schedule()
    schedule.arm("s", TriggerConfig(clock=ClockConfig(1, 0, 86_400)), armed_at=T0, now=T0)
    count = 0
    while (due := schedule.next_due()) is not None and due < T0 + CENTURY:
        assert schedule.pop(due) == [Fire("s", due)]
        assert due == T0 + count * 86_400
        count += 1
    assert count == 36_500

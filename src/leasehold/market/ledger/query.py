"""CometBFT's query language: ``tm.event='Tx' AND tx.height>5 AND transfer.sender='akash1…'``.

Conditions joined by AND over composite keys ``type.attribute``; operators = != is not offered by
CometBFT, so neither here: ``= < <= > >= CONTAINS EXISTS``. A condition holds when any value of its
key satisfies it. Keys may themselves contain dots (typed events do).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from leasehold.core.errors import Kind, LeaseholdError

MAX_CONDITIONS = 32
MAX_LENGTH = 2048

_TOKEN = re.compile(
    r"""\s*(?:
      (?P<string>'[^']*'|"[^"]*") |
      (?P<op><=|>=|<|>|=) |
      (?P<word>[^\s'"<>=]+)
    )""",
    re.VERBOSE,
)
_NUMBER = re.compile(r"^[0-9]+(\.[0-9]+)?")


@dataclass(frozen=True, slots=True)
class Condition:
    key: str
    op: str
    value: str = ""
    number: bool = False

    def holds(self, values: Sequence[str]) -> bool:
        if self.op == "EXISTS":
            return bool(values)
        if self.op == "CONTAINS":
            return any(self.value in value for value in values)
        if not self.number:
            return self.op == "=" and self.value in values
        wanted = float(self.value)
        for value in values:
            match = _NUMBER.match(value)
            if match is None:
                continue
            got = float(match[0])
            if (
                (self.op == "=" and got == wanted)
                or (self.op == "<" and got < wanted)
                or (self.op == "<=" and got <= wanted)
                or (self.op == ">" and got > wanted)
                or (self.op == ">=" and got >= wanted)
            ):
                return True
        return False


@dataclass(frozen=True, slots=True)
class Query:
    """``text`` is as the client wrote it: answers repeat it."""

    text: str
    conditions: tuple[Condition, ...]

    def matches(self, events: Mapping[str, Sequence[str]]) -> bool:
        return all(c.holds(events.get(c.key, ())) for c in self.conditions)

    def equals(self, key: str) -> str | None:
        """The value ``key`` must have, None when the query does not say."""
        for condition in self.conditions:
            if condition.key == key and condition.op == "=":
                return condition.value
        return None

    def bounds(self, key: str) -> tuple[int, int | None]:
        """The least and greatest whole number ``key`` may have."""
        least, most = 0, None
        for condition in self.conditions:
            if condition.key != key or not condition.number:
                continue
            value = int(float(condition.value))
            if condition.op in ("=", ">=", ">"):
                least = max(least, value + (condition.op == ">"))
            if condition.op in ("=", "<=", "<"):
                top = value - (condition.op == "<")
                most = top if most is None else min(most, top)
        return least, most


def parse(text: str) -> Query:
    """Read a query; LeaseholdError ``bad_query`` saying where it went wrong."""
    if len(text) > MAX_LENGTH:
        raise _bad(f"longer than {MAX_LENGTH} characters")
    tokens = _tokens(text)
    conditions: list[Condition] = []
    at = 0
    while at < len(tokens):
        if conditions:
            if tokens[at] != ("word", "AND"):
                raise _bad(f"got {tokens[at][1]!r}, wanted AND")
            at += 1
        condition, at = _condition(tokens, at)
        conditions.append(condition)
    if not conditions:
        raise _bad("it is empty")
    if len(conditions) > MAX_CONDITIONS:
        raise _bad(f"more than {MAX_CONDITIONS} conditions")
    return Query(text, tuple(conditions))


def _tokens(text: str) -> list[tuple[str, str]]:
    tokens, at, text = [], 0, text.rstrip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None or match.lastgroup is None:
            raise _bad(f"cannot read on at {text[at : at + 20]!r}")
        tokens.append((match.lastgroup, match[match.lastgroup]))
        at = match.end()
    return tokens


def _condition(tokens: list[tuple[str, str]], at: int) -> tuple[Condition, int]:
    if at == len(tokens):
        raise _bad("it ends after AND")
    kind, key = tokens[at]
    if kind != "word":
        raise _bad(f"got {key!r}, wanted a key")
    if at + 1 == len(tokens):
        raise _bad(f"after {key!r}: wanted an operator")
    op_kind, op = tokens[at + 1]
    if op_kind == "word" and op == "EXISTS":
        return Condition(key, op), at + 2
    if op_kind != "op" and op != "CONTAINS":
        raise _bad(f"after {key!r}: got {op!r}, wanted one of = < <= > >= CONTAINS EXISTS")
    if at + 2 == len(tokens):
        raise _bad(f"after {op!r}: wanted a value")
    value_kind, value = tokens[at + 2]
    if value_kind == "string":
        if op not in ("=", "CONTAINS"):
            raise _bad(f"{op} compares numbers, not {value}")
        return Condition(key, op, value[1:-1]), at + 3
    if value_kind != "word" or op == "CONTAINS" or not re.fullmatch(r"[0-9]+(\.[0-9]+)?", value):
        raise _bad(f"after {op!r}: got {value!r}, wanted a number or a 'string'")
    return Condition(key, op, value, number=True), at + 3


def _bad(why: str) -> LeaseholdError:
    return LeaseholdError("bad_query", f"failed to parse query: {why}", kind=Kind.MALFORMED)

"""Finding transactions: by height, hash, block, type, account, sender, receiver, memo and time.

All conditions must hold. Lists mean "all of these". A memo is any text: its words must all occur.
Answers are newest first and come with the ranges of heights they could look at, so that "nothing"
and "not indexed" are different answers.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta
from sqlalchemy import ColumnElement, Select, and_, or_, select

from leasehold.core.errors import Kind, LeaseholdError, Violation
from leasehold.index import schema
from leasehold.index.ranges import Range, clipped
from leasehold.index.rows import MAX_TERM, memo_words, microseconds, transaction_of
from leasehold.index.store import Store
from leasehold.model.chain import Transaction

DEFAULT_LIMIT = 100
MAX_LIMIT = 1000
MAX_OFFSET = 100_000

Text = Annotated[str, Meta(max_length=MAX_TERM)]
Texts = Annotated[
    list[Annotated[str, Meta(min_length=1, max_length=MAX_TERM)]], Meta(max_length=32)
]
Height = Annotated[int, Meta(ge=0, le=(1 << 62))]


class Search(msgspec.Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What to find; the keys are the original's. Times are RFC 3339. 0 and empty mean "any"."""

    network: Annotated[str, Meta(min_length=1, max_length=128)]
    chain_ids: Texts = []
    epoch: Text = ""
    height: Height = 0
    after_height: Height = 0
    before_height: Height = 0
    type: Texts = []
    block_hash: Text = ""
    hash: Text = ""
    account: Texts = []
    sender: Texts = []
    receiver: Texts = []
    memo: Annotated[str, Meta(max_length=1000)] = ""
    after_time: Text = ""
    before_time: Text = ""
    limit: Annotated[int, Meta(ge=0, le=MAX_LIMIT)] = 0
    offset: Annotated[int, Meta(ge=0, le=MAX_OFFSET)] = 0
    with_raw: bool = False
    with_raw_log: bool = False


class Found(msgspec.Struct, frozen=True):
    """Transactions, newest first, and what was looked at: chain id to ranges of heights."""

    transactions: list[Transaction]
    covered: dict[str, list[Range]]


def check(search: Search) -> None:
    """Rules between fields; LeaseholdError with every violation."""
    wrong: list[Violation] = []

    def violation(path: str, message: str) -> None:
        wrong.append(Violation("bad_search", message, path=path))

    if search.height and (search.after_height or search.before_height):
        violation("height", "height cannot go with after_height or before_height")
    if search.before_height and search.after_height >= search.before_height:
        violation("before_height", "before_height must be larger than after_height")
    times: dict[str, int] = {}
    for field in ("after_time", "before_time"):
        text = getattr(search, field)
        if text:
            try:
                times[field] = microseconds(text)
            except LeaseholdError as error:
                violation(field, error.message)
    if len(times) == 2 and times["after_time"] >= times["before_time"]:
        violation("before_time", "before_time must be later than after_time")
    if wrong:
        raise LeaseholdError.of(wrong, kind=Kind.MALFORMED)


async def find(store: Store, search: Search) -> Found:
    """Run a search; LeaseholdError when it contradicts itself."""
    check(search)
    chains: dict[int, str] = {}
    covered: dict[str, list[Range]] = {}
    for network, chain_id in await store.chains():
        if network == search.network and (not search.chain_ids or chain_id in search.chain_ids):
            chains[await store.chain(network, chain_id)] = chain_id
            covered[chain_id] = _looked_at(search, await store.coverage(network, chain_id))
    if not chains:
        return Found([], covered)
    async with store.engine.connect() as connection:
        rows = (await connection.execute(statement(search, list(chains)))).all()
    transactions = []
    for row in rows:
        transaction = transaction_of(row)
        transactions.append(
            msgspec.structs.replace(
                transaction,
                raw=transaction.raw if search.with_raw else b"",
                raw_log=transaction.raw_log if search.with_raw_log else b"",
            )
        )
    return Found(transactions, covered)


def _looked_at(search: Search, coverage: list[Range]) -> list[Range]:
    if search.height:
        return clipped(coverage, search.height, search.height)
    last = search.before_height - 1 if search.before_height else 1 << 62
    return clipped(coverage, search.after_height + 1, last)


def _between_times(search: Search, chain: int) -> ColumnElement[bool]:
    """Times as heights, which transactions are ordered by: a chain's time only goes forward."""
    t, b = schema.transactions.c, schema.blocks.c
    conditions = [t.chain == chain]
    if search.after_time:
        first = b.time_us > microseconds(search.after_time)
        found = select(b.height).where(b.chain == chain, first).order_by(b.time_us).limit(1)
        conditions.append(t.height >= found.scalar_subquery())
    if search.before_time:
        last = b.time_us < microseconds(search.before_time)
        found = select(b.height).where(b.chain == chain, last).order_by(b.time_us.desc()).limit(1)
        conditions.append(t.height <= found.scalar_subquery())
    return and_(*conditions)


def statement(search: Search, chains: list[int]) -> Select[Any]:
    """The query of a search that :func:`check` accepted."""
    t = schema.transactions.c
    query = select(schema.transactions).where(t.chain.in_(chains))
    if search.height:
        query = query.where(t.height == search.height)
    if search.after_height:
        query = query.where(t.height > search.after_height)
    if search.before_height:
        query = query.where(t.height < search.before_height)
    if search.hash:
        query = query.where(t.hash == search.hash.upper())
    if search.block_hash or search.epoch:
        b = schema.blocks.c
        query = query.join(schema.blocks, and_(b.chain == t.chain, b.height == t.height))
        if search.block_hash:
            query = query.where(b.hash == search.block_hash.upper())
        if search.epoch:
            query = query.where(b.epoch == search.epoch)
    if search.after_time or search.before_time:
        query = query.where(or_(*(_between_times(search, chain) for chain in chains)))
    for kind, values in (
        (schema.TYPE, search.type),
        (schema.ACCOUNT, search.account),
        (schema.SENDER, search.sender),
        (schema.RECIPIENT, search.receiver),
        (schema.MEMO, sorted(memo_words(search.memo))),
    ):
        for value in values:
            term = schema.terms.alias()
            query = query.join(
                term,
                and_(
                    term.c.chain == t.chain,
                    term.c.kind == kind,
                    term.c.value == value.replace("\0", ""),
                    term.c.height == t.height,
                    term.c.position == t.position,
                ),
            )
    return (
        query.order_by(t.height.desc(), t.position.desc())
        .limit(search.limit or DEFAULT_LIMIT)
        .offset(search.offset)
    )

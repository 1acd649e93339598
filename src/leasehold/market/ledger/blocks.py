"""Making blocks and replaying them: the machine, one block at a time.

Between :meth:`Chain.begin` and :meth:`Chain.finish` transactions are executed one by one; a refused
one leaves no trace. A block without transactions and without events is not made. Replaying a block
runs its transactions again and must come to the same ``app_hash``, or the history was not made by
these rules.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from msgspec.structs import replace

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.market.ledger import hashing
from leasehold.market.ledger.chain import Block, ChainEvent, Genesis, Sealed, TxResult
from leasehold.market.ledger.machine import Machine
from leasehold.market.ledger.messages import Received, receive
from leasehold.market.ledger.state import Account, load_objects
from leasehold.market.ledger.words import INSUFFICIENT_FUNDS

_json = msgspec.json.Encoder()


MAX_DRY = 200
"""Deployments closed by one block for want of funds: 30 ms of work, 300 KiB of events."""


class Chain:
    """The ledger as a sequence of blocks. ``sign`` is the validator's signature."""

    def __init__(self, genesis: Genesis, sign: Callable[[bytes], bytes] | None = None) -> None:
        self.genesis = genesis
        self.machine = Machine(genesis)
        self._sign = sign
        app_hash = self.machine.state.seal(b"")
        self.last = genesis.last or Sealed(
            0, genesis.time, b"", b"", 0, b"", hashing.merkle([]), app_hash
        )
        self.height = genesis.initial_height - 1
        if genesis.state:
            self.load(genesis.state)
        self.executed = 0
        self._txs: list[bytes] = []
        self._results: list[TxResult] = []
        self._events: list[ChainEvent] = []

    def load(self, state: bytes) -> None:
        """Begin with the state of the genesis; before any block."""
        load_objects(self.machine.state, state)
        self.machine.begin(self.height, self.last.time)
        self.machine.watch_all()
        self.genesis = replace(self.genesis, state=b"")

    @property
    def state(self):  # type: ignore[no-untyped-def]
        return self.machine.state

    def begin(self, time: int) -> None:
        """Enter the next block: close what ran out of funds by ``time`` (nanoseconds UTC).

        At most :data:`MAX_DRY` at a time: while more are left (:attr:`behind`), blocks follow that
        take no transactions. Waiting costs a tenant nothing: what cannot be paid is not charged.
        """
        self.machine.begin(self.height + 1, max(time, self.last.time + 1))
        self._txs, self._results = [], []
        for _ in range(MAX_DRY):
            if (escrow := self.machine.pop_dry()) is None:
                break
            deployment = self.machine.state.deployments[escrow.id]
            self.machine.end_deployment(deployment, INSUFFICIENT_FUNDS)
        self._events = self.machine.take_events()

    @property
    def behind(self) -> bool:
        """Whether there are escrows left that ran dry by the time of this block."""
        dry = self.machine.next_dry()
        return dry is not None and dry <= self.machine.tick

    def execute(self, received: Received) -> TxResult:
        """Run a verified transaction, or raise and change nothing."""
        machine, signer, body = self.machine, received.signer, received.body
        self.check(received)
        mark = machine.state.mark()
        account = machine.state.accounts[signer]
        machine.state.put(
            "accounts", replace(account, sequence=account.sequence + 1, key=received.tx.key)
        )
        try:
            created = machine.execute(signer, body.messages)
        except BaseException:
            machine.state.rollback(mark)
            machine.take_events()
            raise
        data = _json.encode(created).decode() if any(created) else ""
        result = TxResult(machine.take_events(), data)
        self.executed += 1
        self._txs.append(received.raw)
        self._results.append(result)
        return result

    def check(self, received: Received, *, early: bool = False) -> None:
        """What makes a transaction unacceptable whatever it asks for.

        ``early``, before its turn, its account may still be opened and its sequence reached.
        """
        body = received.body
        if body.chain_id != self.genesis.chain_id:
            raise LeaseholdError(
                "wrong_chain",
                "this transaction was signed for another ledger",
                path="chain_id",
                expected=self.genesis.chain_id,
                got=body.chain_id,
            )
        account: Account | None = self.machine.state.accounts.get(received.signer)
        if early and (account is None or body.sequence > account.sequence):
            return
        if account is None:
            raise LeaseholdError(
                "account_unknown",
                f"{received.signer} has no account here; somebody must send it money first",
                kind=Kind.NOT_FOUND,
                got=received.signer,
            )
        if body.sequence != account.sequence:
            raise LeaseholdError(
                "wrong_sequence",
                "the transaction was sent before, or one before it is missing",
                kind=Kind.CONFLICT,
                path="sequence",
                expected=account.sequence,
                got=body.sequence,
            )

    def finish(self) -> Block | None:
        """Seal the block; None when nothing happened in it."""
        if not self._txs and not self._events:
            return None
        height, time = self.machine.height, self.machine.time
        app_hash = self.machine.state.seal(self.last.app_hash)
        validator = self.genesis.validator
        hash, parts, total = hashing.name(
            self.genesis.chain_id, validator, height, time, self._txs, self.last
        )
        signature = b""
        if self._sign:
            signature = self._sign(
                hashing.precommit(self.genesis.chain_id, height, time, hash, parts, total)
            )
        results = hashing.results_hash(self._results)
        sealed = Sealed(height, time, hash, parts, total, signature, results, app_hash)
        block = Block(
            height=height,
            time=time,
            txs=self._txs,
            results=self._results,
            events=self._events,
            last=self.last,
            sealed=sealed,
        )
        self.height, self.last = height, sealed
        return block

    def replay(self, block: Block) -> None:
        """Run ``block`` again; LeaseholdError ``ledger_diverged`` when it comes out differently."""
        if block.height != self.height + 1:
            raise _diverged(block.height, self.height + 1, block.height)
        self.begin(block.time)
        for raw in block.txs:
            self.execute(receive(raw, 1 << 30))
        app_hash = self.machine.state.seal(self.last.app_hash)
        if app_hash != block.sealed.app_hash or self.machine.time != block.time:
            raise _diverged(block.height, block.sealed.app_hash.hex(), app_hash.hex())
        self.height, self.last = block.height, block.sealed


def _diverged(height: int, expected: object, got: object) -> LeaseholdError:
    return LeaseholdError(
        "ledger_diverged",
        f"block {height} does not follow from the blocks before it by these rules; "
        "the ledger was written by another version or is damaged",
        kind=Kind.INTERNAL,
        expected=expected,
        got=got,
    )

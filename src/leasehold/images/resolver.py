"""Decides, digest by digest, who fetches from the origin and who from a node.

First the records of holders (the DHT, a hint), then the few nodes that rank highest for the digest
(the authority): they are all asked at once what they know, and seven rules, first match wins, turn
their answers into a decision:

1. somebody knows that the origin said no: so it is for everybody;
2. somebody has it: fetch there;
3. somebody is fetching it and gets on: follow that node;
4. somebody failed at it just now: wait that out, at most ``honor_window`` seconds;
5. nobody answers: ask twice as many;
6. nothing known and discovery is unwell: ask twice as many, once;
7. else the best ranked node that answered is asked to fetch it, and is followed.

What differs from the original, each with a test: a puller that stalls is excluded, so the next rank
takes over; stalls are judged by silence, not by age, where the peer tells it (no host's clock is
compared with another's); an answer that declines, or none, moves on to the next rank; only nodes
that said they have something count as holders; a node never fetches from itself; requests for one
digest share one pass.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from leasehold.core import metrics
from leasehold.core.clock import Clock
from leasehold.core.errors import LeaseholdError
from leasehold.core.logs import get_logger
from leasehold.images.coord.messages import (
    ALREADY_PULLING,
    RECENTLY_FAILED,
    STARTED,
    Intent,
    PleasePullRequest,
    PullResult,
)
from leasehold.images.coord.settings import CoordSettings
from leasehold.images.gate import DirectGate
from leasehold.images.inflight import stall_limit
from leasehold.images.judging import (
    Judge,
    Wanted,
    exhausted,
    known_failure,
    label,
    silence_limit,
    tells,
)
from leasehold.images.membership import View
from leasehold.images.neighbourhood import Answerer, Asker, Lookup, Neighbourhood
from leasehold.images.ports import ContentKind, FailureClass, Holder, Resolution
from leasehold.model.digest import Digest

POLL_SMALL, POLL_LARGE = 0.2, 1.0
"""Seconds between looks for a record while following a node that cannot be streamed from."""

ASK_FIRST, ASK_CAP = 1.0, 5.0
"""Seconds between questions to the followed node itself, growing."""

PATIENCE = 3
"""How much longer nodes that are connected and yet silent are waited for, once, before the next
rank fetches instead."""

HEALTHY, UNHEALTHY = 0.7, 0.3
PROBE_HITS = metrics.counter("p2p_topk_probe_hit_total", "Holders found by asking.")
FALSE_EMPTY = metrics.counter("p2p_dht_false_empty_total", "Held, but the DHT knew nobody.")
EXPANSIONS = metrics.counter("p2p_topk_expansion_total", "Second passes.", ("reason",))
TAKEOVERS = metrics.counter(
    "p2p_designated_puller_takeover_total", "Stalled pullers passed over.", ("digest_kind",)
)
SECONDS = metrics.histogram(
    "p2p_cold_start_duration_seconds",
    "From the question to the decision.",
    ("digest_kind", "outcome"),
    buckets=[0.05 * 2**i for i in range(10)],
)

log = get_logger(__name__)

Spawn = Callable[[Coroutine[Any, Any, None]], object]


class Resolver:
    """``ports.Resolver``. ``node`` is our name, ``zone`` the nodes elected among (empty: all)."""

    def __init__(
        self,
        node: str,
        view: Callable[[], View],
        ask: Asker,
        answer: Answerer,
        lookup: Lookup,
        gate: DirectGate,
        clock: Clock,
        *,
        spawn: Spawn,
        zone: str = "",
        settings: CoordSettings | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.node = node
        self._settings = settings or CoordSettings()
        self._rng = rng or random.Random()
        self._others = Neighbourhood(
            node, view, ask, answer, lookup, clock, self._settings, zone=zone, rng=self._rng
        )
        self._judge = Judge(clock, self._settings.honor_window)
        self._view = view
        self._answer = answer
        self._gate = gate
        self._clock = clock
        self._spawn = spawn
        self._under_way: dict[Digest, asyncio.Future[Resolution]] = {}

    # the port

    async def resolve(
        self,
        digest: Digest,
        kind: ContentKind,
        registry: str,
        repository: str,
        size: int | None,
        authorization: str = "",
    ) -> Resolution:
        """See ``ports.Resolver``; callers that come while one asks share its answer."""
        shared = self._under_way.get(digest)
        if shared is None:
            shared = asyncio.get_running_loop().create_future()
            self._under_way[digest] = shared
            wanted = Wanted(digest, kind, registry, repository, size, authorization)
            try:
                self._spawn(self._decide(wanted, shared))
            except LeaseholdError:
                del self._under_way[digest]
                raise
        return await asyncio.shield(shared)

    async def refresh(self, digest: Digest, size: int | None) -> Sequence[Holder]:
        """Holders known by now, complete ones first. Starts nothing."""
        holders = await self._others.find(digest)
        if holders:
            return holders
        names = self._others.candidates(digest, self._settings.candidates)
        answers = await self._others.query(digest, names, ContentKind.BLOB)
        return self._holders(digest, answers, Wanted(digest, ContentKind.BLOB, "", "", size, ""))

    def direct(
        self, digest: Digest, kind: ContentKind, size: int | None = None
    ) -> AbstractAsyncContextManager[None]:
        return self._gate.passing(digest, kind, size)

    def prefetch(
        self,
        registry: str,
        repository: str,
        children: Sequence[tuple[Digest, ContentKind, int]],
    ) -> None:
        """Have each child's first-ranked node begin, one request a node and kind; best effort."""
        groups: dict[tuple[str, ContentKind], list[tuple[Digest, int]]] = {}
        for digest, kind, size in dict.fromkeys(children):
            first = self._others.candidates(digest, 1)
            if first:
                groups.setdefault((first[0], kind), []).append((digest, size))
        for (node, kind), batch in groups.items():
            for at in range(0, len(batch), self._settings.max_batch):
                part = batch[at : at + self._settings.max_batch]
                try:
                    self._spawn(self._prefetch(node, kind, registry, repository, part))
                except LeaseholdError:
                    return  # shutting down

    def failed(self, digest: Digest, holder: Holder, outcome: str) -> None:
        """A holder let us down; it is left alone for a while."""
        if outcome != "busy":
            log.info("resolver.holder_failed", node=holder.node, digest=digest, outcome=outcome)
        self._others.quarantine.put(digest, holder.node, outcome)

    def member(self, node: str) -> Holder | None:
        found = self._view().members.get(node)
        return found.holder(complete=False) if found is not None and found.transfer else None

    # one decision

    async def _decide(self, wanted: Wanted, outcome: asyncio.Future[Resolution]) -> None:
        began = self._clock.monotonic()
        decided = "error"
        try:
            result = await self._resolve(wanted)
            decided = result.outcome
            if not outcome.done():
                outcome.set_result(result)
        except LeaseholdError as error:
            decided = label(error)
            if not outcome.done():
                outcome.set_exception(error)
                outcome.exception()  # those who asked may have left
        except asyncio.CancelledError:
            outcome.cancel()
            raise
        except Exception as error:  # a bug must not look like a hang, nor end the node
            log.exception("resolver.broke", digest=wanted.digest)
            if not outcome.done():
                outcome.set_exception(exhausted(f"the resolver failed: {error!r}"))
                outcome.exception()
        finally:
            self._under_way.pop(wanted.digest, None)
            SECONDS.labels(wanted.kind.label, decided).observe(self._clock.monotonic() - began)

    async def _resolve(self, wanted: Wanted) -> Resolution:
        digest = wanted.digest
        holders = await self._others.find(digest)
        if holders:
            return Resolution(holders, outcome="dht_hit")
        self._judge.honour(digest)
        settings = self._settings
        found = await self._pass(wanted, settings.candidates)
        if isinstance(found, str):
            found = await self._pass(wanted, settings.candidates * settings.expansion, found)
        if isinstance(found, str):
            raise exhausted("no node holds it or could fetch it")
        return found

    async def _pass(self, wanted: Wanted, count: int, prefix: str = "") -> Resolution | str:
        """The seven rules over the ``count`` best ranked nodes.

        A text asks for the one wider pass and is what its outcomes are prefixed with.
        """
        digest, second = wanted.digest, bool(prefix)
        names = self._others.candidates(digest, count)
        answers = await self._others.query(digest, names, wanted.kind)
        silent = [n for n in names if n not in answers and n != self.node]
        slow = [n for n in silent if self._others.ask.connected(n)]
        if slow and not any(tells(answer) for answer in answers.values()):
            # To pass over the first rank because it is busy would be one more pull from the origin.
            patient = self._settings.query_timeout * PATIENCE
            late = await self._others.query(digest, slow, wanted.kind, patient)
            answers = {n: a for n in names if (a := answers.get(n) or late.get(n)) is not None}

        for answer in answers.values():  # rule 1
            if answer.recently_failed and answer.failure is not None and answer.failure.trusted:
                raise known_failure(digest, answer.failure, self._judge.remaining(answer))

        holders = self._holders(digest, answers, wanted, complete_only=True)
        if holders:  # rule 2
            PROBE_HITS.inc()
            FALSE_EMPTY.inc()
            return Resolution(holders, outcome=prefix + "rule2_cache_hit")

        stalled: set[str] = set()
        for node, answer in answers.items():  # rule 3
            if not answer.in_flight:
                continue
            if self._moves(wanted, node, answer):
                return await self._follow(
                    wanted, node, told=answer.told, outcome=prefix + "rule3_inflight"
                )
            stalled.add(node)
            TAKEOVERS.labels(wanted.kind.label).inc()

        failed = [a for n, a in answers.items() if a.recently_failed and n not in stalled]
        if failed:  # rule 4
            raise self._judge.cool_down(digest, max(self._judge.remaining(a) for a in failed))

        if not answers:  # rule 5
            if not second:
                EXPANSIONS.labels("all_unreachable").inc()
            return "rule5_all_unreachable/"
        health = self._others.health
        if not second and health < HEALTHY:  # rule 6
            EXPANSIONS.labels("unhealthy_health" if health < UNHEALTHY else "degraded_health").inc()
            return "rule6_degraded_expand/"

        # rule 7: by our own ranking, whatever the answers say of theirs
        for rank, node in enumerate(names):
            if node in answers and node not in stalled and not self._others.bad(digest, node):
                if rank:
                    log.info("resolver.passed_over", digest=digest, nodes=names[:rank], to=node)
                found = await self._have_pulled(wanted, node, prefix)
                if found is not None:
                    return found
        raise exhausted("no node that answered would fetch it")

    async def _have_pulled(self, wanted: Wanted, node: str, prefix: str) -> Resolution | None:
        """Ask ``node`` to fetch; None when the next one should be asked."""
        if not wanted.registry or not wanted.repository:
            raise exhausted("it is not known where it comes from")
        try:
            result = await self._please_pull(wanted, node)
        except (LeaseholdError, TimeoutError) as error:
            log.info("resolver.pull_refused", node=node, digest=wanted.digest, error=str(error))
            return await self._begun_in_silence(wanted, node, prefix)
        if result is None:
            return None
        if result.outcome == RECENTLY_FAILED:
            failure = result.failure or FailureClass.TRANSIENT
            if failure.trusted:
                raise known_failure(wanted.digest, failure, self._judge.remaining(result))
            raise self._judge.cool_down(wanted.digest, self._judge.remaining(result))
        if result.outcome == ALREADY_PULLING:
            if result.told and result.silence > silence_limit(wanted.kind):
                TAKEOVERS.labels(wanted.kind.label).inc()
                return None
        elif result.outcome != STARTED:
            return None
        return await self._follow(
            wanted, node, told=result.told, outcome=prefix + "rule7_cold_start"
        )

    async def _begun_in_silence(self, wanted: Wanted, node: str, prefix: str) -> Resolution | None:
        """A busy node may have begun and not found the time to say so: then it is followed."""
        if node == self.node or not self._others.ask.connected(node):
            return None
        patient = self._settings.query_timeout * PATIENCE
        answer = (await self._others.query(wanted.digest, [node], wanted.kind, patient)).get(node)
        if answer is None:
            return None
        if answer.has_cached and (holder := self._others.holder(node)) is not None:
            return Resolution([holder], outcome=prefix + "rule2_cache_hit")
        if answer.in_flight and self._moves(wanted, node, answer):
            return await self._follow(
                wanted, node, told=answer.told, outcome=prefix + "rule3_inflight"
            )
        return None

    async def _please_pull(self, wanted: Wanted, node: str) -> PullResult | None:
        timeout = self._settings.pull_timeout
        if node == self.node:
            async with self._clock.timeout(timeout):
                results = await self._answer.start_local_pull(
                    wanted.registry,
                    wanted.repository,
                    wanted.kind,
                    [(wanted.digest, wanted.size)],
                    wanted.authorization,
                )
        else:
            request = PleasePullRequest(
                (wanted.digest,),
                wanted.registry,
                wanted.repository,
                wanted.kind,
                (wanted.size or 0,),
                wanted.authorization,
            )
            async with self._clock.timeout(timeout):
                results = list((await self._others.ask.please_pull(node, request)).results)
        # By digest, not by place: a node that skips what it cannot read answers with fewer.
        return next((r for r in results if r.digest == wanted.digest), None)

    # following a puller

    async def _follow(self, wanted: Wanted, node: str, *, told: bool, outcome: str) -> Resolution:
        """``node`` fetches it: one of ours is streamed from at once, an original waited for."""
        if node == self.node:
            return Resolution(local=True, outcome=outcome)
        if told:
            holder = self._others.holder(node, complete=False, puller=True)
            if holder is None:
                raise exhausted(f"{node} fetches it but says not where to get it")
            return Resolution([holder], outcome=outcome)
        small = wanted.kind is not ContentKind.BLOB
        deadline = self._clock.monotonic() + stall_limit(wanted.kind, wanted.size)
        pause = ASK_FIRST
        ask_at = self._clock.monotonic() + self._rng.uniform(0.5, 1.0) * pause
        while self._clock.monotonic() < deadline:
            holders = await self._others.find(wanted.digest)
            if holders:
                return Resolution(holders, outcome=outcome)
            if self._clock.monotonic() >= ask_at:
                answers = await self._others.query(wanted.digest, [node], wanted.kind)
                answer = answers.get(node)
                if answer is not None and answer.has_cached:
                    holder = self._others.holder(node)
                    if holder is not None:
                        return Resolution([holder], outcome=outcome)
                pause = min(ASK_CAP, pause * 2)
                ask_at = self._clock.monotonic() + self._rng.uniform(0.5, 1.0) * pause
            await self._clock.sleep(POLL_SMALL if small else POLL_LARGE)
        raise exhausted(f"{node} did not finish fetching it in time")

    # asking

    def _moves(self, wanted: Wanted, node: str, answer: Intent) -> bool:
        """Whether ``node`` fetches it, gets on, and can be fetched from."""
        bad = self._others.bad(wanted.digest, node)
        return not bad and self._judge.moves(wanted, node, answer)

    def _holders(
        self,
        digest: Digest,
        answers: dict[str, Intent],
        wanted: Wanted,
        *,
        complete_only: bool = False,
    ) -> list[Holder]:
        """Who said they have it, then who said they are receiving it."""
        complete, arriving = [], []
        for node, answer in answers.items():
            if node == self.node or self._others.bad(digest, node):
                continue
            if answer.has_cached:
                complete.append(self._others.holder(node))
            elif answer.in_flight and answer.told and self._moves(wanted, node, answer):
                arriving.append(self._others.holder(node, complete=False, puller=True))
        chosen = complete if complete_only else complete + arriving
        return [h for h in chosen if h is not None]

    async def _prefetch(
        self,
        node: str,
        kind: ContentKind,
        registry: str,
        repository: str,
        batch: Sequence[tuple[Digest, int]],
    ) -> None:
        try:
            async with self._clock.timeout(self._settings.pull_timeout):
                if node == self.node:
                    await self._answer.start_local_pull(registry, repository, kind, batch)
                else:
                    digests, sizes = zip(*batch, strict=True)
                    request = PleasePullRequest(digests, registry, repository, kind, sizes)
                    await self._others.ask.please_pull(node, request)
        except (LeaseholdError, TimeoutError) as error:
            log.info("resolver.prefetch_failed", node=node, error=str(error))

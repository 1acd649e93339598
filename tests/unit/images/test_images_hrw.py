"""Rendezvous hashing: the published vector, and what makes it an election."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from leasehold.images import hrw
from leasehold.model.digest import Digest

DIGEST = Digest("sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824")
NODES = [f"node-{c}" for c in "abcde"]
names = st.lists(
    st.text("abcdef-0123", min_size=1, max_size=8), min_size=1, max_size=30, unique=True
)
digests = st.binary(max_size=8).map(Digest.of)


def test_vector_of_the_specification() -> None:
    assert hrw.top(NODES, DIGEST, 5) == [f"node-{c}" for c in "eacdb"]
    starts = [
        hrw.score(n, DIGEST).hex()[:8] for n in ("node-e", "node-a", "node-c", "node-d", "node-b")
    ]
    assert starts == ["ebf67ae6", "e4df0851", "a1a58ac4", "24469991", "09970e2d"]


@given(names, digests, st.integers(0, 40))
def test_top_rank_and_the_remembered_order_agree(nodes: list[str], digest: Digest, k: int) -> None:
    best = hrw.top(nodes, digest, k)
    ranking = hrw.Ranking(nodes)
    assert ranking.top(digest, k) == best
    for place, node in enumerate(best):
        assert hrw.rank(nodes, digest, node) == place == ranking.rank(digest, node)
    assert hrw.rank(nodes, digest, "stranger!") == -1 == ranking.rank(digest, "stranger!")


@given(names, digests)
def test_a_node_that_leaves_changes_nobody_elses_order(nodes: list[str], digest: Digest) -> None:
    order = hrw.top(nodes, digest, len(nodes))
    gone = order[len(order) // 2]
    rest = [n for n in nodes if n != gone]
    assert hrw.top(rest, digest, len(rest)) == [n for n in order if n != gone]


def test_the_memory_of_orders_is_bounded() -> None:
    ranking = hrw.Ranking(NODES)
    for i in range(hrw.MEMO * 2):
        ranking.top(Digest.of(str(i).encode()), 1)
    assert len(ranking._ranks) == hrw.MEMO

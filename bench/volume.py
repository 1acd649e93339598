"""Snapshot and restore of a tree of 100,000 small files with 1 % changed, against restic.

``value`` is the time of an incremental snapshot and of bringing the tree back to it; both sides
keep every byte once and survive a power cut. Restic's repository has its password and its cache.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.harness import median, result
from leasehold.storage.content import ContentStore
from leasehold.storage.restore import restore
from leasehold.storage.shadow import Author, Shadow

ME = Author("bench")


def fill(root: Path, count: int, rng: random.Random) -> None:
    for n in range(count):
        folder = root / f"{n // 100:04}"
        if n % 100 == 0:
            folder.mkdir(parents=True)
        (folder / f"{n}").write_bytes(rng.randbytes(rng.randrange(100, 4000)))


def change(root: Path, count: int, rng: random.Random) -> None:
    for n in rng.sample(range(count), count // 100):
        (root / f"{n // 100:04}" / f"{n}").write_bytes(rng.randbytes(rng.randrange(100, 4000)))


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def stored(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def run(quick: bool) -> dict[str, Any]:
    count, runs = (2_000, 5) if quick else (100_000, 3)  # one run takes longer than 5 s
    rng = random.Random(1)
    binary = shutil.which("restic")
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        tree = base / "tree"
        fill(tree, count, rng)
        shadow = Shadow(base / "shadow.git", ContentStore(base / "content"))
        shadow.create()
        first = timed(lambda: shadow.snapshot(tree, ME, "first"))
        extras: dict[str, Any] = {}
        env = {
            **os.environ,
            "RESTIC_REPOSITORY": str(base / "restic"),
            "RESTIC_PASSWORD": "bench",
            "RESTIC_CACHE_DIR": str(base / "cache"),
        }

        def restic(*words: str) -> None:
            subprocess.run([str(binary), "-q", *words], env=env, check=True)

        if binary is not None:
            restic("init")
            extras["peer_first_s"] = round(timed(lambda: restic("backup", str(tree))), 3)
        else:
            extras["peer_error"] = "no restic here"
        ours: list[float] = []
        theirs: list[float] = []
        snapshots: list[float] = []
        peer_snapshots: list[float] = []
        for n in range(runs):
            change(tree, count, rng)
            taken = timed(lambda n=n: shadow.snapshot(tree, ME, str(n)))
            commit = shadow.history(1)[0].commit
            # Nothing is deleted meanwhile: ext4 passes over inodes freed a moment ago one by one,
            # and whoever restores next would pay for it.
            back = base / f"back{n}"
            brought = timed(lambda commit=commit, back=back: restore(shadow, commit, back))
            snapshots.append(taken)
            ours.append(taken + brought)
            if binary is not None:
                taken = timed(lambda: restic("backup", str(tree)))
                into = str(base / f"r{n}")
                brought = timed(lambda into=into: restic("restore", "latest", "--target", into))
                peer_snapshots.append(taken)
                theirs.append(taken + brought)
        size = stored(base / "content") + stored(base / "shadow.git")
        if binary is not None:
            extras["peer_stored_bytes"] = stored(base / "restic")
            extras["peer_snapshot_s"] = round(median(peer_snapshots), 3)
    return result(
        "volume",
        median(ours),
        f"s, incremental snapshot and full restore of {count} files, 1 % changed",
        peer="restic",
        peer_value=median(theirs) if theirs else None,
        higher_is_better=False,
        aim="faster than restic",
        files=count,
        first_s=round(first, 3),
        snapshot_s=round(median(snapshots), 3),
        stored_bytes=size,
        **extras,
    )

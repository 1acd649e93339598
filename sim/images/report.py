"""The simulator's command: a table of all scenarios, and two pictures of how a fleet converges.

``--quick`` runs 200 nodes with one seed and writes nothing; at full size 10,000 nodes with two
seeds go into ``docs/simulation/`` (``--out`` elsewhere).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from leasehold.core import logs
from sim.images.fleet import SCENARIOS, Report, simulate

OUT = Path("docs/simulation")

STORIES = {
    "herd": "every node asks within half a second",
    "skew": "30 % of the nodes do not know 30 % of the others for 5 s",
    "partition": "two halves that cannot reach one another",
    "puller_death": "the first puller dies half-way",
    "puller_stall": "the first puller stalls half-way and never goes on",
    "liars": "10 % of the nodes say they have it and send something else",
    "dead_dht": "no lookup is answered",
    "empty_dht": "every record is forgotten",
    "refusing": "nobody can connect to 10 % of the nodes",
    "origin_401": "the registry refuses",
    "origin_404": "the registry does not have it",
    "origin_429": "the registry limits",
    "origin_5xx": "the registry fails for 25 s",
}


@dataclass
class Row:
    """The runs of one scenario, together."""

    scenario: str
    runs: list[Report]

    @property
    def pulls(self) -> list[int]:
        return [count for run in self.runs for count in run.origin_pulls]

    def percentile(self, share: float) -> float | None:
        times = sorted(t for run in self.runs for t in run.times)
        return times[min(len(times) - 1, int(share * len(times)))] if times else None

    def cells(self) -> list[str]:
        served = sum(len(run.times) for run in self.runs)
        failed = sum(run.failed for run in self.runs)
        return [
            f"`{self.scenario}`",
            STORIES[self.scenario],
            f"{sum(self.pulls) / len(self.pulls):.2f}",
            str(max(self.pulls)),
            f"{sum(run.intents_mean for run in self.runs) / len(self.runs):.1f}",
            str(max(run.intents_max for run in self.runs)),
            _seconds(self.percentile(0.5)),
            _seconds(self.percentile(0.95)),
            _percent(served, served + failed),
            str(sum(run.mismatches for run in self.runs)),
        ]


HEAD = [
    "scenario", "what happens", "origin pulls a digest", "worst", "intents a node", "most",
    "P50 s", "P95 s", "served", "rank mismatches",
]  # fmt: skip


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    lines = [HEAD, ["---", "---", *["---:"] * (len(HEAD) - 2)], *(row.cells() for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def curves(rows: Sequence[Row], *, width: int = 720, height: int = 320, until: float) -> str:
    """An SVG: the share of requests that are served, over time, a line a scenario."""
    left, top, right, bottom = 48, 16, width - 130, height - 40
    colours = ["#00796b", "#c62828", "#1565c0", "#ef6c00", "#6a1b9a", "#2e7d32", "#5d4037"]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = bottom - share * (bottom - top)
        parts.append(f'<path d="M{left} {y:.1f}H{right}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{share:.0%}</text>')
    for tick in range(6):
        x = left + tick / 5 * (right - left)
        label = f"{until * tick / 5:.3g} s"
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{label}</text>')
    for index, row in enumerate(rows):
        colour = colours[index % len(colours)]
        times = sorted(t for run in row.runs for t in run.times)
        total = len(times) + sum(run.failed for run in row.runs)
        points = [f"{left},{bottom}"]
        for step in range(101):
            at = int(step / 100 * (len(times) - 1))
            x = left + min(1.0, times[at] / until) * (right - left)
            points.append(f"{x:.1f},{bottom - (at + 1) / total * (bottom - top):.1f}")
        line = " ".join(points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        y = top + 12 + 16 * index
        parts.append(f'<text x="{right + 10}" y="{y}" fill="{colour}">{row.scenario}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def growth(sizes: Sequence[int], rows: Sequence[Row]) -> str:
    """Markdown: the herd at several sizes."""
    head = ["nodes", "origin pulls a digest", "intents the first rank gets", "P50 s", "P95 s"]
    lines = [head, ["---:"] * len(head)]
    for size, row in zip(sizes, rows, strict=True):
        lines.append(
            [
                f"{size:,}",
                f"{sum(row.pulls) / len(row.pulls):.2f}",
                str(max(run.intents_max for run in row.runs)),
                _seconds(row.percentile(0.5)),
                _seconds(row.percentile(0.95)),
            ]
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m sim images", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="200 nodes, one seed, no files")
    parser.add_argument("--nodes", type=int, default=0, help="nodes of the fleet")
    parser.add_argument("--seeds", type=int, default=0, help="runs of each scenario")
    parser.add_argument("--digests", type=int, default=2, help="digests every node wants")
    parser.add_argument("--scenario", action="append", choices=list(SCENARIOS), default=None)
    parser.add_argument("--out", type=Path, default=None, help="folder of table and pictures")
    options = parser.parse_args(argv)
    logs.configure("critical")  # what fails on purpose is not worth a line each
    nodes = options.nodes or (200 if options.quick else 10_000)
    seeds = options.seeds or (1 if options.quick else 2)
    rows = []
    for scenario in options.scenario or SCENARIOS:
        runs = [
            simulate(scenario, nodes=nodes, seed=seed + 1, digests=options.digests)
            for seed in range(seeds)
        ]
        rows.append(Row(scenario, runs))
        print(f"  {scenario}: {sum(r.wall for r in runs):.1f} s", file=sys.stderr)
    print(table(rows))
    out = options.out or (None if options.quick or options.scenario else OUT)
    if out is not None:
        write(out, rows, nodes, seeds, options.digests)


def write(out: Path, rows: Sequence[Row], nodes: int, seeds: int, digests: int) -> None:
    """The table and the pictures of a whole run, as pages of the documentation."""
    out.mkdir(parents=True, exist_ok=True)
    sizes = [size for size in (10, 100, 1000) if size < nodes] + [nodes]
    herds = [Row("herd", [simulate("herd", nodes=size, seed=1, digests=digests)]) for size in sizes]
    by_name = {row.scenario: row for row in rows}
    quick = [by_name[n] for n in ("herd", "skew", "liars", "dead_dht", "partition", "puller_death")]
    (out / "images-well.svg").write_text(curves(quick, until=10.0))
    slow = [by_name[n] for n in ("herd", "puller_stall", "origin_5xx")]
    (out / "images-slow.svg").write_text(curves(slow, until=60.0))
    (out / "images.md").write_text(
        PAGE.format(
            nodes=f"{nodes:,}",
            seeds=seeds,
            digests=digests,
            direct=f"{rows[0].runs[0].direct:g}",
            table=table(rows),
            growth=growth(sizes, herds),
        )
    )


PAGE = """\
# A fleet, simulated

Written by `python -m sim images`; do not edit. {nodes} nodes, {digests} digests of 64 MiB each,
{seeds} seeds. The resolver, the coordination server, the pump, the in-flight map, the negative
cache and the gate are the real ones; time, wires, DHT and bytes are simulated: the registry gives
32 MiB/s to a pull, a node 256 MiB/s, a message takes 1 ms. One pull alone takes {direct} s.

{table}

*Intents a node*: questions ("what do you know of this digest?") an average node was asked for one
digest; *most* is what the node asked most got. *Served*: requests that ended with content; where
the registry itself says no, none can. *Rank mismatches* are the answers whose `hrw_rank` was not
what the asker expected: with views that agree there are none, so the counter
`p2p_hrw_rank_mismatch_total` is an alarm for views that do not.

![The share of requests served over time](images-well.svg)

![The same where it takes longer](images-slow.svg)

## Growth

A herd at several sizes, one seed:

{growth}

What this cannot show: congestion between racks, a loaded CPU, disks. `bench cold_start` measures
twenty real processes.
"""


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "–"

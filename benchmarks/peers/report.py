# SPDX-License-Identifier: Apache-2.0
"""From the lines of a run to medians, ratios, the bars that are met or missed, a page and a chart."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from drawing import dots
from pages import number
from roster import BARS, MEMORY, ROUND, START, Bar, Peer, Record
from workloads import WORKLOADS

APART = 0.1
"""An accuracy that differs from the median of all by more is marked: the work may not have been equal."""


@dataclass
class Cell:
    """One peer on one workload: a value for each pass that ended well, and what became of the others."""

    seconds: list[float] = field(default_factory=list)
    startup: list[float] = field(default_factory=list)
    rss: list[float] = field(default_factory=list)
    pss: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    def add(self, record: Record) -> None:
        if record["status"] != "ok":
            self.lost.append(record["status"])
            return
        self.seconds.append(statistics.median(record["seconds"][record["warmup"] :]))
        self.startup.append(record["startup_s"])
        self.rss.append(record["rss_mb"])
        self.pss.append(record["pss_mb"])
        self.accuracy.append(record["accuracy"])

    def median(self, quantity: str) -> float:
        """Of the passes; the quantity is as a bar calls it."""
        values = {ROUND: self.seconds, START: self.startup, MEMORY: self.rss}[quantity]
        return statistics.median(values)


Cells = dict[str, dict[str, Cell]]
"""By workload and peer."""


@dataclass(frozen=True)
class Verdict:
    """A bar, and what was found. ``met`` is None where one of the two could not be measured."""

    bar: Bar
    ours: tuple[str, float] | None
    other: tuple[str, float] | None

    @property
    def ratio(self) -> float | None:
        return None if self.ours is None or self.other is None else self.ours[1] / self.other[1]

    @property
    def met(self) -> bool | None:
        return None if self.ratio is None else self.ratio <= self.bar.most


def cells(records: Sequence[Record]) -> Cells:
    found: Cells = {}
    for record in records:
        if "workload" in record:
            found.setdefault(record["workload"], {}).setdefault(record["peer"], Cell()).add(record)
    order = list(WORKLOADS)
    return {name: found[name] for name in sorted(found, key=order.index)}


def peak(records: Sequence[Record]) -> float | None:
    """GFLOP/s: the most that any pass saw."""
    seen = [max(r["gflops"], r["gflops_one_thread"]) for r in records if r["peer"] == "peak" and r["status"] == "ok"]
    return max(seen, default=None)


def floors(gflops: float | None, cohort: int | None = None) -> dict[str, float]:
    """Seconds per round that the arithmetic alone would take, by workload; of its own cohort unless another one is given."""
    if gflops is None:
        return {}
    worked = {name: w if cohort is None else replace(w, cohort=cohort) for name, w in WORKLOADS.items()}
    return {name: w.flops_per_round() / gflops / 1e9 for name, w in worked.items()}


def best(row: Mapping[str, Cell], peers: Mapping[str, Peer], ours: bool, quantity: str) -> tuple[str, float] | None:
    """The least median among ours or among the others, and whose; memory only of those that run two processes."""
    found = [
        (cell.median(quantity), name)
        for name, cell in row.items()
        if cell.seconds and peers[name].ours == ours and (quantity != MEMORY or peers[name].processes == 2)
    ]
    return min(found)[::-1] if found else None


def verdicts(table: Cells, floor: Mapping[str, float], peers: Mapping[str, Peer]) -> list[Verdict]:
    found = []
    for bar in (bar for bar in BARS if bar.workload in table):
        row = table[bar.workload]
        theirs = best(row, peers, False, bar.quantity)
        if bar.floor:
            theirs = ("the floor", floor[bar.workload]) if bar.workload in floor else None
        found.append(Verdict(bar, best(row, peers, True, bar.quantity), theirs))
    return found


# The page ----------------------------------------------------------------------------------------------------------------


def bars(found: Sequence[Verdict], peers: Mapping[str, Peer]) -> str:
    lines = ["| bar | ours | best peer | ratio | at most | |", "|---|---|---|---|---|---|"]
    for verdict in found:
        shown = []
        for side in (verdict.ours, verdict.other):
            who = "" if side is None else peers[side[0]].title if side[0] in peers else side[0]
            shown.append("not measured" if side is None else f"{_unit(side[1], verdict.bar.quantity)} ({who})")
        ratio = "" if verdict.ratio is None else number(verdict.ratio)
        word = {True: "met", False: "**missed**", None: ""}[verdict.met]
        lines.append(f"| {verdict.bar} | {shown[0]} | {shown[1]} | {ratio} | {verdict.bar.most:g} | {word} |")
    return "\n".join(lines)


def _unit(value: float, quantity: str) -> str:
    return f"{value:.0f} MB" if quantity == MEMORY else f"{number(value)} s"


def rows(table: Cells, floor: Mapping[str, float], peers: Mapping[str, Peer]) -> str:
    lines = [
        "| | | s / round, median (range) | / best peer | / floor | start-up (s) | peak RSS (MB) | peak PSS (MB) | accuracy |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for workload, row in table.items():
        least = best(row, peers, False, ROUND)
        learned = [statistics.median(cell.accuracy) for cell in row.values() if cell.accuracy]
        usual = statistics.median(learned) if learned else 0.0
        measured = sorted((name for name in row if row[name].seconds), key=lambda name: row[name].median(ROUND))
        for name in [*measured, *(name for name in row if not row[name].seconds)]:
            cell, title = row[name], peers[name].title
            if not cell.seconds:
                lines.append(f"| {workload} | {title} | {'; '.join(dict.fromkeys(cell.lost))} | | | | | | |")
                continue
            seconds = cell.median(ROUND)
            spread = f" ({number(min(cell.seconds))} to {number(max(cell.seconds))})" if len(cell.seconds) > 1 else ""
            lost = f"; {len(cell.lost)} of {len(cell.lost) + len(cell.seconds)} passes: {cell.lost[0]}" if cell.lost else ""
            to_best = number(seconds / least[1]) if least else ""
            to_floor = number(seconds / floor[workload]) if workload in floor else ""
            accuracy = statistics.median(cell.accuracy)
            mark = " (differs)" if abs(accuracy - usual) > APART else ""
            memory = f"{statistics.median(cell.rss):.0f} | {statistics.median(cell.pss):.0f}"
            lines.append(
                f"| {workload} | {title} | {number(seconds)}{spread}{lost} | {to_best} | {to_floor} | "
                f"{statistics.median(cell.startup):.1f} | {memory} | {accuracy:.3f}{mark} |"
            )
    return "\n".join(lines)


def settings(records: Sequence[Record], peers: Mapping[str, Peer]) -> str:
    """What each row ran with, and the versions of all."""
    by_peer: dict[str, dict[str, list[str]]] = {}
    versions: dict[str, set[str]] = {}
    for record in records:
        if record["status"] == "ok":
            for name, version in record["versions"].items():
                versions.setdefault(name, set()).add(version)
            if "setting" in record:
                on = by_peer.setdefault(record["peer"], {}).setdefault(record["setting"], [])
                on += [] if record["workload"] in on else [record["workload"]]
    lines = []
    for peer, found in by_peer.items():
        parts = [setting + (f" ({', '.join(where)})" if len(found) > 1 else "") for setting, where in found.items()]
        lines.append(f"- {peers[peer].title}: {'; '.join(parts)}.")
    named = ", ".join(f"{name} {' and '.join(sorted(found))}" for name, found in sorted(versions.items()))
    return "\n".join([*lines, f"- Versions: {named}."])


def page(header: Record, records: Sequence[Record], peers: Mapping[str, Peer]) -> str:
    """The Markdown of a run."""
    table, gflops = cells(records), peak(records)
    floor = floors(gflops, header["plan"].get("cohort"))
    passes = max((r["pass"] for r in records), default=0)
    loads = sorted(r["busy_before"] for r in records)
    busy = f"{statistics.median(loads):.0f}% (median) and {loads[-1]:.0f}% (most)" if loads else "unknown"
    shown = [
        f"`{header['command']}`, {header['date']}, {header['hardware']}; medians of {passes} passes in which all took turns.",
        f"Before a run others took {busy} of the processor's time.",
        ""
        if gflops is None
        else f"The floor is a round's arithmetic at {gflops:.0f} GFLOP/s, the float32 matrix product of this machine.",
    ]
    return "\n".join(
        [
            " ".join(filter(None, shown)),
            "",
            bars(verdicts(table, floor, peers), peers),
            "",
            rows(table, floor, peers),
            "",
            "Start-up is from the start of the process to the end of round 1. RSS is summed over a run's processes, so that a",
            "page which two share counts twice; in PSS once. Accuracy is after the last round, on the same test set.",
            "",
            *(
                f"- {w.name}: {w.title}, B = {w.batch}, E = {w.epochs}, SGD {w.lr:g}; {_rounds(records, w.name)}."
                for w in map(WORKLOADS.__getitem__, table)
            ),
            settings(records, peers),
            "",
        ]
    )


def _rounds(records: Sequence[Record], workload: str) -> str:
    seen: dict[str, Any] = next((r for r in records if r.get("workload") == workload and r["status"] == "ok"), {})
    if not seen:
        return "not measured"
    return f"timed rounds: {len(seen['seconds']) - seen['warmup']}, before them: {seen['warmup']}"


def chart(records: Sequence[Record], peers: Mapping[str, Peer]) -> str:
    """Seconds per round of each row over those of the best peer, as an SVG document."""
    groups: dict[str, dict[str, float]] = {}
    for workload, row in cells(records).items():
        least = best(row, peers, False, ROUND)
        order = sorted(row, key=lambda name: (not peers[name].ours, list(peers).index(name)))
        found = {peers[name].title: row[name].median(ROUND) for name in order if row[name].seconds}
        if least is not None and found:
            groups[workload] = {name: seconds / least[1] for name, seconds in found.items()}
    return dots(groups, "seconds per round / those of the best peer (lower is better)") if groups else ""

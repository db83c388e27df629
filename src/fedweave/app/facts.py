# SPDX-License-Identifier: Apache-2.0
"""What a finished run says about itself: the few numbers that summary, report and comparison share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedweave.app import text
from fedweave.history import Round, Target, bytes_to, crossing, rounds_to

if TYPE_CHECKING:
    from fedweave.simulation import Result

EXIT_CODES = {"rounds": 0, "target": 0, "patience": 0, "time": 0, "diverged": 3, "interrupted": 130}
"""What the command line ends with, by how the run ended."""


def records(result: Result) -> list[Round]:
    """All evaluated and other rounds, the evaluation of the initial model (number 0) first if there is one."""
    return [*([result.start] if result.start is not None else []), *result.history]


def metrics_of(history: Sequence[Round]) -> list[str]:
    """The names of all metrics, in the order in which they first appear; the main ones first."""
    seen = dict.fromkeys(name for r in history for name in r.metrics)
    first = [name for name in ("accuracy", "loss", "clients_accuracy", "clients_loss", "train_loss") if name in seen]
    return [*first, *(name for name in seen if name not in first)]


def main_metric(history: Sequence[Round], target: Target | None) -> str | None:
    """The metric that a run is judged by: the target's, or the first of accuracy, loss and what else there is."""
    if target is not None:
        return target.metric
    names = metrics_of(history)
    return names[0] if names else None


def lower_is_better(metric: str) -> bool:
    """Losses and errors fall, all else rises; as ``Target`` has it."""
    return "loss" in metric or "error" in metric


def best(history: Sequence[Round], metric: str | None) -> tuple[float, int] | None:
    """The best finite value of a metric, and its (first) round."""
    if metric is None:
        return None
    values = [(r.metrics[metric], r.number) for r in history if math.isfinite(r.metrics.get(metric, math.nan))]
    if not values:
        return None
    sign = 1 if lower_is_better(metric) else -1
    return min(values, key=lambda pair: (sign * pair[0], pair[1]))


def last(history: Sequence[Round], metric: str | None) -> tuple[float, int] | None:
    """The value of a metric in the last round that has it, finite or not."""
    for r in reversed(history):
        if metric is not None and metric in r.metrics:
            return r.metrics[metric], r.number
    return None


def seconds_to(history: Sequence[Round], target: Target) -> float | None:
    """Interpolated seconds of training until the target; None if it is not reached."""
    points, total = [], 0.0
    for r in history:
        total += r.seconds
        if target.metric in r.metrics:
            points.append((total, r.metrics[target.metric]))
    return crossing(points, target)


def virtual_to(history: Sequence[Round], target: Target) -> float | None:
    """Interpolated seconds on the clients' clock until the target; None if it is not reached, or they have none."""
    points = [
        (r.virtual_seconds, r.metrics[target.metric])
        for r in history
        if target.metric in r.metrics and r.virtual_seconds is not None
    ]
    return crossing(points, target)


@dataclass(frozen=True)
class Facts:
    """One run in numbers. Bytes and seconds are sums over its rounds; ``best`` and ``final`` are (value, round)."""

    metric: str | None
    target: Target | None
    rounds: int
    rounds_to: float | None
    bytes_to: float | None
    seconds_to: float | None
    best: tuple[float, int] | None
    final: tuple[float, int] | None
    bytes_down: int
    bytes_up: int
    seconds: float
    seconds_evaluating: float
    refused: int
    dropped: int
    virtual: float | None
    virtual_to: float | None
    staleness: float | None

    @classmethod
    def of(cls, result: Result, target: Target | None = None) -> Facts:
        """Of a run, measured against its own target unless another is given."""
        history, target = records(result), target or result.target
        metric = main_metric(history, target)
        return cls(
            metric=metric,
            target=target,
            rounds=len(result.history),
            rounds_to=rounds_to(history, target) if target else None,
            bytes_to=bytes_to(history, target) if target else None,
            seconds_to=seconds_to(history, target) if target else None,
            best=best(history, metric),
            final=last(history, metric),
            bytes_down=sum(r.bytes_down for r in result.history),
            bytes_up=sum(r.bytes_up for r in result.history),
            seconds=math.fsum(r.seconds for r in result.history),
            seconds_evaluating=math.fsum(r.seconds_evaluating for r in history),
            refused=sum(len(r.refused) for r in result.history),
            dropped=sum(len(r.dropped) for r in result.history),
            virtual=history[-1].virtual_seconds if history else None,
            virtual_to=virtual_to(history, target) if target else None,
            staleness=_mean([s for r in result.history for s in r.staleness]),
        )

    @property
    def bytes(self) -> int:
        return self.bytes_down + self.bytes_up


def _mean(values: Sequence[int]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def summary(result: Result) -> dict[str, Any]:
    """The last line of ``--json``: how the run ended, in JSON-ready values."""
    facts = Facts.of(result)

    def finite(value: float | None) -> float | None:
        return value if value is not None and math.isfinite(value) else None

    return {
        "status": result.status,
        "message": result.message,
        "exit_code": EXIT_CODES[result.status],
        "rounds": result.history[-1].number if result.history else 0,
        "target": str(facts.target) if facts.target else None,
        "rounds_to_target": finite(result.rounds_to_target),
        "bytes_to_target": finite(facts.bytes_to),
        "metrics": {
            name: {"final": finite(final[0]) if final else None, "best": top[0] if top else None, "best_round": top and top[1]}
            for name in metrics_of(records(result))
            for final, top in [(last(records(result), name), best(records(result), name))]
        },
        "model_hash": result.model_hash,
        "parameters": result.parameters,
        "bytes_down": facts.bytes_down,
        "bytes_up": facts.bytes_up,
        "seconds": facts.seconds,
        "seconds_evaluating": facts.seconds_evaluating,
        "virtual_seconds": facts.virtual,
        "virtual_seconds_to_target": finite(facts.virtual_to),
        "staleness": facts.staleness,
        "refused": facts.refused,
        "dropped": facts.dropped,
        "folder": str(result.folder) if result.folder is not None else None,
    }


def summary_text(result: Result, report: str | None = None) -> str:
    """The end of a run in a few lines: how it ended, its numbers, where things are, how to repeat it."""
    facts, history = Facts.of(result), records(result)
    rows: list[tuple[str, str]] = []
    if facts.target is not None:
        reached = text.rounds(result.rounds_to_target)
        also = f", {text.size(facts.bytes_to)} exchanged" if facts.bytes_to is not None else ""
        rows.append((f"rounds to {facts.target}", reached + also))
    for name in metrics_of(history)[:6]:
        final, top = last(history, name), best(history, name)
        value = f"{text.number(final[0])} at the end" if final else "-"
        rows.append((name, value + (f", best {text.number(top[0])} at round {top[1]}" if top else "")))
    rows.append(("rounds", f"{result.history[-1].number if result.history else 0:,}"))
    rows.append(("exchanged", f"{text.size(facts.bytes_down)} down, {text.size(facts.bytes_up)} up"))
    spent = f"{text.duration(facts.seconds)} training"
    if facts.seconds_evaluating:
        spent += f", {text.duration(facts.seconds_evaluating)} evaluating"
    rows.append(("time", spent))
    if facts.virtual is not None:
        until = f", {text.duration(facts.virtual_to)} to the target" if facts.virtual_to is not None else ""
        rows.append(("clients' clock", text.duration(facts.virtual) + until))
    if facts.staleness is not None:
        rows.append(("staleness", f"{facts.staleness:.3g} steps of the server on average"))
    rows.append(("model", f"{result.model_hash[:12]} (SHA-256), {result.parameters:,} parameters"))
    if facts.refused:
        rows.append(("refused", f"{facts.refused} updates were not counted; see the report"))
    if facts.dropped:
        rows.append(("dropped", f"{facts.dropped} times a client was not done in time; the rounds went on without it"))
    if result.folder is not None:
        rows.append(("folder", str(result.folder)))
        if report is not None:
            rows.append(("report", report))
        rows.append(("again", f"fedweave run {result.folder}/config.toml"))
        rows.append(("report again", f"fedweave report {result.folder}"))
    return f"{result.message}\n{text.pairs(rows)}"

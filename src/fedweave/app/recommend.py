# SPDX-License-Identifier: Apache-2.0
"""``fedweave recommend``: a short search over algorithms and their key parameter, on the user's own split.

Successive halving (Jamieson, Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization", AISTATS
2016, figure 3), keeping the best third of a rung as in Hyperband (Li, Jamieson, DeSalvo, Rostamizadeh, Talwalkar, JMLR 2018,
with eta = 3): every rung is given the same part of the budget, shared by the candidates that are left, and goes on with the
runs of the rung before.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedweave.algorithms import algorithm
from fedweave.app import text
from fedweave.app.live import View
from fedweave.app.settings import command_of, is_run, unsplit, writable
from fedweave.errors import StoreError, UnknownName, UsageError
from fedweave.policy import cohort_size
from fedweave.store import RunStore

if TYPE_CHECKING:
    from fedweave.config import Config
    from fedweave.data import Split
    from fedweave.simulation import Result

ETA = 3
"""One in so many goes on to the next rung."""

HELD_OUT = 0.2
"""The part of each client's examples that decides, if the configuration holds out none: it is not trained on."""

METRICS = ("clients_accuracy", "clients_loss")

NEVER = 10**9
"""Rounds between evaluations: candidates are measured at the ends of rungs alone."""


@dataclass
class Trial:
    """A candidate: what it is, and what it was worth at the end of each rung that it reached, as (rounds, metric, loss)."""

    label: str
    config: Config
    values: list[tuple[int, float, float]] = field(default_factory=list)
    diverged: bool = False


@dataclass(frozen=True)
class Recommendation:
    """The candidates, best first, and the command of the best; ``left_out`` are those that could not be tried, and why."""

    trials: tuple[Trial, ...]
    metric: str
    command: str
    spent: int
    held_out: int
    measured_on: str
    left_out: tuple[tuple[str, str], ...]


def grid(lr: float) -> list[tuple[str, float]]:
    """The candidates unless others are named, the simplest first: algorithm and local learning rate."""
    around = [("fedavg", lr), ("fedavg", _round(lr / 3)), ("fedavg", _round(lr * 3))]
    proximal = [(f"fedprox(mu={mu})", lr) for mu in (0.001, 0.01, 0.1, 1.0)]
    control = [("scaffold", lr), ("fednova", lr), ("feddyn(alpha=0.01)", lr), ("fedavgm(momentum=0.9)", lr)]
    adaptive = [(f"{name}(server_lr={rate})", lr) for name in ("fedadam", "fedyogi") for rate in (0.01, 0.1)]
    return around + proximal + control + adaptive


def _round(value: float) -> float:
    return float(f"{value:.3g}")


def rungs(candidates: int, budget: int, most: int) -> list[tuple[int, int]]:
    """Of each rung, how many candidates run and up to which round.

    Args:
        most: rounds that no candidate goes beyond.

    Raises:
        UsageError: the budget does not give every candidate a round.
    """
    sizes = [candidates]
    while sizes[-1] // ETA > 1:
        sizes.append(sizes[-1] // ETA)
    if budget < candidates * len(sizes):
        needed = candidates * len(sizes)
        raise UsageError(
            f"budget is {budget}, but {candidates} candidates need {needed} rounds at least; raise it or name fewer."
        )
    plan, until = [], 0
    for size in sizes:
        until = min(until + budget // (size * len(sizes)), most)
        plan.append((size, until))
    return plan


def recommend(
    base: Config,
    candidates: Sequence[str],
    *,
    budget: int,
    metric: str | None,
    out: Path,
    watch: Callable[[str], View],
) -> Recommendation | None:
    """Search, or go on with a search that was ended; None if it was interrupted.

    Raises:
        UsageError: a value cannot be used.
        StoreError: the folder holds another search.
    """
    from fedweave.simulation import split_of

    if metric is not None and metric not in METRICS:
        raise UnknownName("metric", metric, METRICS)
    for name in candidates:
        algorithm(name)
    if base.rounds < 1:
        raise UsageError(f"rounds is {base.rounds}; a candidate needs a round at least.")
    judged = _judged(base)
    split = split_of(judged)
    held = _held_out(split)
    chosen = metric or (METRICS[0] if split.classes is not None else METRICS[1])
    trials, left_out = _trials(judged, candidates, split)
    plan = rungs(len(trials), budget, base.rounds)
    _claim(out, {"config": judged.toml(), "candidates": [t.label for t in trials], "budget": budget, "metric": chosen})
    going, spent = trials, 0
    for size, until in plan:
        going = going[:size]
        for trial in going:
            before = trial.values[-1][0] if trial.values else 0
            if trial.diverged or until == before:
                continue
            result = _trained(trial, out / text.slug(trial.label), until, watch)
            if result.status == "interrupted":
                return None
            spent += until - before
            _note(trial, result, until, chosen)
        going = sorted(going, key=lambda trial: _rank(trial, chosen))
    order = sorted(trials, key=lambda trial: (-len(trial.values), _rank(trial, chosen)))
    best = going[0]
    if best.diverged:
        raise UsageError("Every candidate diverged; choose a smaller --lr.")
    command = command_of(base.model_copy(update={"algorithm": best.config.algorithm, "local": best.config.local}))
    order = [best, *(trial for trial in order if trial is not best)]
    return Recommendation(tuple(order), chosen, command, spent, held, _place(split), tuple(left_out))


def _judged(base: Config) -> Config:
    """The configuration of a candidate, but for its algorithm: measured on examples that it is not trained on."""
    changes: dict[str, Any] = {
        "target": None,
        "patience": None,
        "max_seconds": None,
        "evaluate": "clients",
        "evaluate_every": NEVER,
    }
    if base.split_seed is None and not unsplit(base.partition):
        changes["split_seed"] = base.seed
    if not base.holdout and not unsplit(base.partition):
        changes["holdout"] = HELD_OUT
    return base.model_copy(update=changes)


def _held_out(split: Split) -> int:
    """How many examples decide."""
    if split.test_sizes is None or not split.test_sizes.sum():
        raise UsageError(
            "The saved split has no examples of the clients' own to judge by; "
            "save one made with fw.data.partition(..., holdout=0.2)."
        )
    return int(split.test_sizes.sum())


def _place(split: Split) -> str:
    return "training examples that clients held out" if split.tests_in == "train" else "the clients' own test examples"


def _trials(judged: Config, candidates: Sequence[str], split: Split) -> tuple[list[Trial], list[tuple[str, str]]]:
    pairs = [(name, judged.local.lr) for name in candidates] or grid(judged.local.lr)
    many = {name for name, _ in pairs if [n for n, _ in pairs].count(name) > 1}
    trials, left_out = [], []
    size = cohort_size(judged.cohort, split.clients)
    for name, lr in dict.fromkeys(pairs):
        label = f"{name}, lr={lr:g}" if name in many else name
        local = judged.local.model_copy(update={"lr": lr})
        try:
            algorithm(name).check(local.value(), size)
        except UsageError as error:
            left_out.append((label, str(error)))
            continue
        trials.append(Trial(label, judged.model_copy(update={"algorithm": name, "local": local})))
    if len(trials) < 2:
        because = f" {left_out[0][1]}" if left_out else ""
        raise UsageError(f"recommend needs two candidates, and has {len(trials)}.{because}")
    return trials, left_out


def _claim(out: Path, search: dict[str, Any]) -> None:
    """Make the folder this search's own, or see that it is."""
    writable(out)
    file = out / "search.json"
    if file.exists():
        if json.loads(file.read_text(encoding="utf-8")) != search:
            raise StoreError(f"{out} holds another search; choose another --out, or repeat the command that made it.")
        return
    file.write_text(json.dumps(search, indent=2) + "\n", encoding="utf-8")


def _trained(trial: Trial, folder: Path, until: int, watch: Callable[[str], View]) -> Result:
    """The candidate's run up to a round: read, gone on with, or begun."""
    from fedweave.simulation import load_result, resume, run

    if _begun(folder):
        result = load_result(folder)
        done = len(result.history)
        if result.status == "diverged" or (done >= until and result.history[until - 1].metrics.keys() & set(METRICS)):
            return result
    with watch(f"{trial.label}, to round {until}") as view:
        if _begun(folder):
            return resume(folder, rounds=until, observer=view)
        return run(trial.config.model_copy(update={"rounds": until}), out=folder, observer=view)


def _begun(folder: Path) -> bool:
    """Whether a run was begun there, and not only its folder made."""
    if not is_run(folder):
        return False
    store = RunStore(folder, reading=True)
    try:
        return bool(store.about())
    finally:
        store.close()


def _note(trial: Trial, result: Result, until: int, metric: str) -> None:
    if len(result.history) < until or (result.status == "diverged" and until >= len(result.history)):
        trial.diverged = True
        return
    measured = result.history[until - 1].metrics
    trial.values.append((until, measured.get(metric, math.nan), measured.get("clients_loss", math.nan)))


def _rank(trial: Trial, metric: str) -> tuple[float, float]:
    """The smaller the better; equal ones stay in the order of the grid, the simplest first."""
    if trial.diverged or not trial.values:
        return (math.inf, math.inf)
    _, value, loss = trial.values[-1]
    signed = value if "loss" in metric else -value
    return tuple(v if math.isfinite(v) else math.inf for v in (signed, loss))  # type: ignore[return-value]


def words_of(found: Recommendation) -> str:
    """The table, what it was measured on, and the command of the best."""
    ends = sorted({until for trial in found.trials for until, _, _ in trial.values})
    head = ("candidate", *(f"{found.metric} at round {until}" for until in ends), "")
    rows = []
    for i, trial in enumerate(found.trials):
        at = {until: text.number(value) for until, value, _ in trial.values}
        mark = "best" if i == 0 else "diverged" if trial.diverged else ""
        rows.append((trial.label, *(at.get(until, "-") for until in ends), mark))
    lines = [text.table(head, rows, right=range(1, len(ends) + 1)), ""]
    lines.append(f"{found.spent:,} rounds were trained; {found.held_out:,} {found.measured_on} decided{_doubt(found)}.")
    lines += [f"left out: {label}: {why}" for label, why in found.left_out]
    lines += ["", "The best, on all of the data:", f"  {found.command}"]
    return "\n".join(lines)


def _doubt(found: Recommendation) -> str:
    """By how much candidates may differ by the chance of which examples were held out: two standard errors of an accuracy."""
    value = found.trials[0].values[-1][1]
    if found.metric != METRICS[0] or not math.isfinite(value):
        return ""
    return f", and differences below {2 * math.sqrt(max(value * (1 - value), 1e-9) / found.held_out):.1g} may be chance"


def plain(found: Recommendation) -> list[dict[str, Any]]:
    """A line per candidate, best first, and one that sums up; JSON-ready."""

    def finite(value: float) -> float | None:
        return value if math.isfinite(value) else None

    lines: list[dict[str, Any]] = []
    for place, trial in enumerate(found.trials, 1):
        values = [{"round": until, found.metric: finite(v), "clients_loss": finite(loss)} for until, v, loss in trial.values]
        config = trial.config
        lines.append(
            {
                "candidate": trial.label,
                "place": place,
                "algorithm": config.algorithm,
                "lr": config.local.lr,
                "diverged": trial.diverged,
                "values": values,
            }
        )
    left_out = [{"candidate": label, "why": why} for label, why in found.left_out]
    summary = {
        "metric": found.metric,
        "measured_on": found.measured_on,
        "held_out": found.held_out,
        "rounds_trained": found.spent,
    }
    return [*lines, {"best": found.trials[0].label, "command": found.command, **summary, "left_out": left_out}]

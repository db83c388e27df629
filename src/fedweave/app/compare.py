# SPDX-License-Identifier: Apache-2.0
"""Several ways to train, side by side: the same split and seeds for all, a table and a page with the curves of all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedweave.app import charts, text
from fedweave.app.facts import Facts, last, metrics_of, records
from fedweave.app.live import View
from fedweave.app.page import Page
from fedweave.app.report import partition_section, repeat, split_for
from fedweave.app.settings import configure, is_run, writable
from fedweave.errors import StoreError, UnknownName, UsageError
from fedweave.history import Target
from fedweave.names import normalise
from fedweave.policy import POLICIES

if TYPE_CHECKING:
    from fedweave.config import Config
    from fedweave.simulation import Result

CLIENTS = "clients_accuracy"

HEAD = ("run", "rounds to target", "bytes to target", "best", "final", "training time")


@dataclass
class Entry:
    """One of the things compared: finished runs, or configurations (one per seed) that will be."""

    label: str
    configs: list[Config] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)


def entries(items: Sequence[str], flags: Mapping[str, Any], sets: Sequence[str], seeds: Sequence[int] | None) -> list[Entry]:
    """What each item of the command line means: a run's folder, a configuration file, an algorithm, or a policy.

    Raises:
        UsageError, StoreError: an item is none of them, or cannot be used.
    """
    found: list[Entry] = []
    for item in items:
        path = Path(item)
        if path.is_dir() and (is_run(path) or "/" in item):
            from fedweave.simulation import load_result

            found.append(Entry(path.name or item, results=[load_result(path)]))
            continue
        if item.endswith(".toml"):
            label, base = path.stem, configure(path, flags, sets)
        elif "/" in item and "(" not in item:
            raise StoreError(f"{item} is not the folder of a run; list them with `fedweave runs list`.")
        else:
            try:
                key = "policy" if normalise(item.partition("(")[0]) in POLICIES else "algorithm"
                label, base = item, configure(None, {**flags, key: item}, sets)
            except UnknownName as error:
                if error.name != item.partition("(")[0].strip().lower().replace("_", "-"):
                    raise
                raise UsageError(
                    f"{item!r} is neither a run's folder, nor a .toml file, nor an algorithm or a policy. {error}"
                ) from None
        found.append(Entry(label, [base.model_copy(update={"seed": s}) for s in (seeds or [base.seed])]))
    _distinct(found)
    _measure_clients(found)
    return found


def _measure_clients(found: Sequence[Entry]) -> None:
    """Where one algorithm gives clients models of their own, every client is measured under all of them."""
    from fedweave.algorithms import algorithm

    configs = [config for entry in found for config in entry.configs]
    if any(algorithm(config.algorithm).personalised for config in configs):
        for entry in found:
            both = [c.model_copy(update={"evaluate": "both"}) if c.evaluate == "auto" else c for c in entry.configs]
            entry.configs = both


def _distinct(found: Sequence[Entry]) -> None:
    names = [entry.label for entry in found]
    for i, entry in enumerate(found):
        if names.count(entry.label) > 1 or entry.label in names[:i]:
            entry.label = f"{names[i]} #{names[: i + 1].count(names[i])}"


def train(found: Sequence[Entry], out: Path, watch: Callable[[str], View]) -> bool:
    """Train what is not there yet, each run in a folder of its own under ``out``.

    Returns:
        whether all came to an end; False if one was interrupted.

    Raises:
        StoreError: a folder holds a run of another configuration.
    """
    from fedweave.app.report import write_report
    from fedweave.simulation import load_result, resume, run

    for entry in found:
        for config in entry.configs:
            folder = out / f"{text.slug(entry.label)}-seed{config.seed}"
            # The run's own configuration has its choices filled in; what was asked for is kept beside it to compare with.
            asked = folder.with_name(folder.name + ".toml")
            result = load_result(folder) if is_run(folder) else None
            if result is not None and (not asked.exists() or asked.read_text(encoding="utf-8") != config.toml()):
                raise StoreError(f"{folder} holds a run of another configuration; choose another --out, or remove it.")
            if result is None or result.status == "interrupted":
                config.write(asked)
                with watch(f"{entry.label}, seed {config.seed}") as view:
                    result = run(config, out=folder, observer=view) if result is None else resume(folder, observer=view)
                write_report(result)
            entry.results.append(result)
            if result.status == "interrupted":
                return False
    return True


def common_target(found: Sequence[Entry]) -> Target | None:
    """The target that the runs are measured against: the first that one of them has."""
    return next((r.target for entry in found for r in entry.results if r.target is not None), None)


def warnings_of(found: Sequence[Entry]) -> list[str]:
    """What makes the comparison unfair: one sentence per difference in data, split, model, seeds or target."""
    named = [(entry.label, result) for entry in found for result in entry.results]
    if not named:
        return []
    sentences: list[str] = []

    def differ(what: str, of: Callable[[Result], Any], consequence: str) -> None:
        by_entry = {entry.label: sorted({str(of(r)) for r in entry.results}) for entry in found if entry.results}
        first_label, first = next(iter(by_entry.items()))
        for label, values in by_entry.items():
            if values != first:
                mine, other = text.some(values, 2), text.some(first, 2)
                sentences.append(f"{label} and {first_label} differ in {what} ({mine}; {other}): {consequence}.")
                return

    differ("data", lambda r: r.config.data, "their metrics are not of the same task")
    differ(
        "model",
        lambda r: f"{r.config.model} with {r.parameters:,} parameters",
        "it is not the same task",
    )
    differ("split", _split, "part of the difference may come from who holds what")
    targets = sorted({str(r.target) for _, r in named if r.target is not None})
    if len(targets) > 1:
        sentences.append(
            f"The runs have different targets ({', '.join(targets)}): all are measured against {common_target(found)}."
        )
    return sentences


def _split(result: Result) -> str:
    config = result.config
    seed = config.seed if config.split_seed is None else config.split_seed
    kept = f", holdout {config.holdout:g}" if config.holdout else ""
    return f"{config.partition}, {config.clients or 'its own'} clients, seed {seed}{kept}"


def rows(found: Sequence[Entry]) -> list[tuple[str, ...]]:
    """The table: one row per entry, mean and sample standard deviation over its runs."""
    target = common_target(found)
    lines: list[tuple[str, ...]] = []
    for entry in found:
        facts = [Facts.of(r, target) for r in entry.results]
        reached = [f for f in facts if f.rounds_to is not None]
        part = f" ({len(reached)} of {len(facts)})" if 0 < len(reached) < len(facts) else ""
        if target is None:
            to_rounds = to_bytes = "no target"
        elif not reached:
            most = max((r.history[-1].number for r in entry.results if r.history), default=0)
            to_rounds, to_bytes = f"not in {most:,}", "-"
        else:
            to_rounds = text.spread([f.rounds_to for f in reached if f.rounds_to is not None], "rounds") + part
            to_bytes = text.spread([f.bytes_to for f in reached if f.bytes_to is not None], "size") + part
        label = entry.label if len(facts) == 1 else f"{entry.label} ({len(facts)} seeds)"
        best = text.spread([f.best[0] for f in facts if f.best is not None])
        final = text.spread([f.final[0] for f in facts if f.final is not None])
        line: tuple[str, ...] = (label, to_rounds, to_bytes, best, final, text.spread([f.seconds for f in facts], "duration"))
        if _with_clients(found):
            clients = [value[0] for r in entry.results if (value := last(records(r), CLIENTS)) is not None]
            line = (*line, text.spread(clients))
        if _timed(found):
            late = [f.virtual_to for f in facts if f.virtual_to is not None]
            line = (*line, text.spread(late, "duration") if late else "-")
        lines.append(line)
    return lines


def _with_clients(found: Sequence[Entry]) -> bool:
    """Whether the table has a column for the clients' own accuracy."""
    judged = {Facts.of(r, common_target(found)).metric for entry in found for r in entry.results}
    return CLIENTS not in judged and any(last(records(r), CLIENTS) is not None for entry in found for r in entry.results)


def _timed(found: Sequence[Entry]) -> bool:
    """Whether the table has a column for the time on the clients' clock: if all runs have one, and a target."""
    results = [r for entry in found for r in entry.results]
    return common_target(found) is not None and all(Facts.of(r).virtual is not None for r in results)


def head(found: Sequence[Entry]) -> tuple[str, ...]:
    """The table's head, with the target's and the metric's names in it."""
    target = common_target(found)
    metric = next((f.metric for entry in found for r in entry.results if (f := Facts.of(r, target)).metric), "metric")
    names = {"rounds to target": f"rounds to {target}" if target else "rounds to target"}
    words = [names.get(name, f"{name} {metric}" if name in ("best", "final") else name) for name in HEAD]
    words += [f"final {CLIENTS}"] if _with_clients(found) else []
    return (*words, "clients' time to target") if _timed(found) else tuple(words)


def compare_page(title: str, lead: str, found: Sequence[Entry], notes: Sequence[str] = ()) -> Page:
    """The page: table, curves of all, the splits, the exact command of every run."""
    page = Page(title, lead)
    for note in notes:
        page.banner(note, "warn")
    page.section("Side by side", page.table(head(found), rows(found), right=range(1, 9)), page.note(_small_print(found)))
    curves_section(page, "Curves", found, common_target(found))
    made = [split for entry in found for r in entry.results if (split := split_for(r)) is not None]
    splits = {split.fingerprint: split for split in made}
    for i, split in enumerate(list(splits.values())[:4]):
        partition_section(
            page, [("Who holds what" if len(splits) == 1 else f"Who holds what: split {i + 1} of {len(splits)}", split)]
        )
    commands_section(page, found)
    return page


def _small_print(found: Sequence[Entry]) -> str:
    words = "Rounds and bytes to the target are interpolated between evaluations; bytes count both directions."
    many = any(len(entry.results) > 1 for entry in found)
    return words + (" Over several seeds: mean ± sample standard deviation, one thin curve per seed." if many else "")


def curves_section(page: Page, heading: str, found: Sequence[Entry], target: Target | None) -> None:
    """Curves of all entries, one chart per metric."""
    runs = {entry.label: [records(r) for r in entry.results] for entry in found}
    names = list(dict.fromkeys(m for histories in runs.values() for h in histories for m in metrics_of(h)))
    figures = [f for m in charts.base_metrics(names) if (f := charts.metric_chart(runs, m, target)) is not None]
    if figures:
        page.curves(heading, figures, legend=charts.legend(runs))


def commands_section(page: Page, found: Sequence[Entry]) -> None:
    """The exact command of every run that has a configuration."""
    lines = [repeat(r) for entry in found for r in entry.results]
    page.section("The exact commands", page.pre("\n".join(lines)))


def compare(
    items: Sequence[str],
    *,
    flags: Mapping[str, Any],
    sets: Sequence[str],
    seeds: Sequence[int] | None,
    out: Path,
    watch: Callable[[str], View],
) -> tuple[list[Entry], list[str], Path | None]:
    """Train what is missing and write the page.

    Returns:
        the entries, what makes the comparison unfair, and where the page is; no page if a run was interrupted.
    """
    found = entries(items, flags, sets, seeds)
    writable(out)
    if not train(found, out, watch):
        return found, [], None
    notes = warnings_of(found)
    names = " and ".join(entry.label for entry in found) if len(found) < 4 else f"{len(found)} runs"
    seeded = f"seeds {', '.join(map(str, seeds))}" if seeds else ""
    return found, notes, compare_page(f"{names} compared", seeded, found, notes).write(out / "compare.html")

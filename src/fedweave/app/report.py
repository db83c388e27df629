# SPDX-License-Identifier: Apache-2.0
"""The report of one run: a self-contained HTML page that opens offline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedweave.app import charts, text
from fedweave.app.diagnose import diagnosis_section
from fedweave.app.facts import Facts, best, last, main_metric, metrics_of, records, seconds_to
from fedweave.app.page import Page
from fedweave.app.settings import command_of, unsplit
from fedweave.errors import FedweaveError, StoreError
from fedweave.history import Round, Target, bytes_to, rounds_to

if TYPE_CHECKING:
    from fedweave.config import Config
    from fedweave.data import Split
    from fedweave.simulation import Result


def write_report(result: Result | str | Path, path: str | Path | None = None) -> Path:
    """Write the report of a run, or of the folder that holds one.

    Args:
        path: where to; ``report.html`` in the run's folder unless given.

    Returns:
        where it was written.

    Raises:
        StoreError: the folder holds no run, or the page cannot be written.
    """
    if isinstance(result, (str, Path)):
        from fedweave.simulation import load_result

        result = load_result(result)
    if path is None:
        if result.folder is None:
            raise StoreError("The run has no folder to write its report to; give a path.")
        path = result.folder / "report.html"
    return page_of(result).write(Path(path))


def page_of(result: Result) -> Page:
    """The report as a page that is not written yet."""
    facts, history, config, split = Facts.of(result), records(result), result.config, split_for(result)
    what = f"{config.algorithm} on {split.name if split is not None else config.data}"
    clients = split.clients if split is not None else config.clients
    lead = f"{'Saved' if unsplit(config.partition) else config.partition} split over {clients:,} clients, " if clients else ""
    lead += f"model {config.model} with {result.parameters:,} parameters, cohort {config.cohort}, seed {config.seed}"
    page = Page(what, lead)
    page.banner(result.message, {"diverged": "bad", "interrupted": "warn"}.get(result.status, ""))
    page.tiles(_tiles(result, facts))
    figures = [
        figure
        for metric in charts.base_metrics(metrics_of(history))
        if (figure := charts.metric_chart({what: [history]}, metric, facts.target)) is not None
    ]
    if figures:
        banded = any(charts.PERCENTILE.match(name) for name in metrics_of(history))
        note = "The band spans the 10th to the 90th percentile over clients." if banded else ""
        page.curves("Curves", figures, note)
    if (figure := charts.figures_chart(history)) is not None:
        title = figure["layout"]["title"]["text"]
        page.section("Layers" if title == "width" else "The algorithm", page.figure(figure, title))
    if (rows := target_rows(history, facts.target)) is not None:
        note = "Interpolated between evaluations on the best value so far; bytes and seconds likewise."
        head = ("target", "rounds", "bytes, down and up", "training time")
        page.section("Rounds to target", page.table(head, rows, right=(1, 2, 3)), page.note(note))
    page.section("Metrics", metrics_table(page, history))
    diagnosis_section(page, result, split)
    partition_section(page, [("Who holds what", split)])
    if result.profile is not None:
        whole = sum(result.profile.values()) or 1.0
        spent = [(name, f"{seconds:.3g}", f"{100 * seconds / whole:.1f}") for name, seconds in result.profile.items()]
        note = "By Python's profiler, which charges each call a little. Another number of processes has other shares."
        page.section("Where the time went", page.table(("", "seconds", "%"), spent, right=(1, 2)), page.note(note))
    _refused(page, result.history)
    _dropped(page, result.history)
    _how(page, result, split)
    return page


def split_for(result: Result) -> Split | None:
    """The split of a run, made again if the run was read back; None if its data were in memory or are gone."""
    if result.split is not None:
        return result.split
    from fedweave.simulation import split_of

    try:
        return split_of(_placed(result))
    except FedweaveError:
        return None


def repeat(result: Result) -> str:
    """The exact command that makes the run again, or why there is none."""
    from fedweave.simulation import IN_MEMORY

    config = _placed(result)
    for name in ("data", "model", "loss"):
        if getattr(config, name) == IN_MEMORY:
            return f"# Made from Python with a {name} that no text can name; call fedweave.simulate again."
    return command_of(config)


def _placed(result: Result) -> Config:
    return result.config if result.folder is None else result.config.resolved(result.folder)


def _tiles(result: Result, facts: Facts) -> list[tuple[str, str]]:
    tiles: list[tuple[str, str]] = []
    if facts.target is not None:
        tiles.append((f"rounds to {facts.target}", text.rounds(result.rounds_to_target)))
    if facts.best is not None:
        tiles.append((f"best {facts.metric}, round {facts.best[1]:,}", text.number(facts.best[0])))
    if facts.final is not None:
        tiles.append((f"final {facts.metric}", text.number(facts.final[0])))
    tiles.append(("rounds", f"{result.history[-1].number if result.history else 0:,}"))
    tiles.append(("exchanged, down and up", text.size(facts.bytes)))
    tiles.append(("training time", text.duration(facts.seconds)))
    if facts.virtual is not None:
        tiles.append(("on the clients' clock", text.duration(facts.virtual)))
    return tiles


def target_rows(history: Sequence[Round], target: Target | None) -> list[tuple[str, str, str, str]] | None:
    """Rounds, bytes and seconds to several values of the main metric; None if there is no metric."""
    metric = main_metric(history, target)
    ladder = charts.ladder(history, metric, target) if metric is not None else []
    rows = []
    for step in ladder:
        exchanged, seconds = bytes_to(history, step), seconds_to(history, step)
        mark = " (the run's target)" if target is not None and step == target else ""
        rows.append(
            (
                f"{step}{mark}",
                text.rounds(rounds_to(history, step)),
                "-" if exchanged is None else text.size(exchanged),
                "-" if seconds is None else text.duration(seconds),
            )
        )
    return rows or None


def metrics_table(page: Page, history: Sequence[Round]) -> str:
    """First, best and final value of every metric, as HTML."""
    rows = []
    for name in metrics_of(history):
        first = next(r for r in history if name in r.metrics)
        top, final = best(history, name), last(history, name)
        rows.append(
            (
                name,
                f"{text.number(first.metrics[name])} (round {first.number})",
                f"{text.number(top[0])} (round {top[1]})" if top else "-",
                f"{text.number(final[0])} (round {final[1]})" if final else "-",
            )
        )
    return page.table(("metric", "first", "best", "final"), rows) if rows else "<p>Nothing was measured.</p>"


def partition_section(page: Page, splits: Sequence[tuple[str, Split | None]]) -> None:
    """The pictures of one or several splits, each with its facts."""
    for heading, split in splits:
        if split is None:
            page.section(heading, "<p>The split is not at hand: the run was made of data that only its process held.</p>")
            continue
        try:
            figure = page.figure(charts.partition_chart(split), f"{heading}: clients and labels")
            words = split.describe()
        except FedweaveError as error:
            page.section(heading, f"<p>{page.note(str(error))}</p>")
            continue
        page.section(heading, figure, f"<details><summary>In numbers</summary>{page.pre(words)}</details>")


def _refused(page: Page, history: Sequence[Round]) -> None:
    refused = [(r.number, client, reason) for r in history for client, reason in r.refused]
    if not refused:
        page.section("Refused updates", "<p>None: every update that arrived was counted.</p>")
        return
    rows = [(f"{number:,}", f"{client:,}", reason) for number, client, reason in refused[:50]]
    often = Counter(client for _, client, _ in refused).most_common(3)
    words = f"{len(refused):,} updates were not counted; most often those of client "
    words += ", ".join(f"{client} ({count} times)" for client, count in often) + "."
    more = f"The first 50 of {len(refused):,}." if len(refused) > 50 else ""
    table = page.table(("round", "client", "why"), rows)
    page.section("Refused updates", f"<p>{words}</p>", table, page.note(more))


def _dropped(page: Page, history: Sequence[Round]) -> None:
    """Why rounds went on without clients, and how stale the updates of an asynchronous run were."""
    reasons = Counter(reason for r in history for reason in r.reasons)
    if reasons:
        asked = sum(len(r.cohort) for r in history)
        rows = [(reason, f"{count:,}") for reason, count in reasons.most_common()]
        words = f"{sum(reasons.values()):,} times a round went on without a client; {asked:,} times one was in a cohort."
        page.section("Dropped clients", f"<p>{words}</p>", page.table(("why", "times"), rows, right=(1,)))
    stale = Counter(s for r in history for s in r.staleness)
    if stale:
        total = sum(stale.values())
        shares = [(f"{s:,}", f"{count:,}", f"{count / total:.1%}") for s, count in sorted(stale.items())[:30]]
        note = "Steps that the server took between the model that a client began from and the step that its update was part of."
        page.section("Staleness", page.table(("staleness", "updates", "share"), shares, right=(0, 1, 2)), page.note(note))


def _how(page: Page, result: Result, split: Split | None) -> None:
    page.section("The exact command", page.pre(repeat(result)))
    page.section("The configuration (config.toml)", page.pre(result.config.toml()))
    rows = [("status", result.status), ("model hash (SHA-256)", result.model_hash), ("parameters", f"{result.parameters:,}")]
    if split is not None:
        rows += [
            ("data", split.name),
            ("clients", f"{split.clients:,}"),
            ("training examples", f"{int(split.sizes.sum()):,}"),
            ("split fingerprint (SHA-256)", split.fingerprint),
        ]
    if result.folder is not None:
        rows.append(("folder", str(result.folder)))
    page.section("The run", page.table(("", ""), rows))

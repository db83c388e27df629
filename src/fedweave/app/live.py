# SPDX-License-Identifier: Apache-2.0
"""Watching a run: a live view on a terminal, plain lines in a pipe, JSON lines for machines.

A view is an observer that is also a context manager. It stores what it is told and draws at its own pace, so that rounds of
a millisecond do not pay for being watched.
"""

from __future__ import annotations

import json
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from fedweave.app import text
from fedweave.app.facts import lower_is_better
from fedweave.history import ClientDone, Event, Round, RoundStarted, RunEnded, RunStarted, Target

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

REFRESHES = 4
"""Drawings per second on a terminal."""
PAUSE = 0.5
"""Seconds between plain lines; rounds that are faster are shown at doubling intervals."""


class View:
    """Says nothing: ``--quiet``, and what the others build on."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None

    def __call__(self, event: Event) -> None:
        return None


class JsonLines(View):
    """One JSON object per round on stdout, as ``Round.plain`` has it."""

    def __call__(self, event: Event) -> None:
        if isinstance(event, Round):
            emit(event.plain())


def emit(record: dict[str, Any]) -> None:
    """One object on one line of stdout, at once."""
    sys.stdout.write(json.dumps(record, allow_nan=False) + "\n")
    sys.stdout.flush()


class Progress:
    """Where a run stands, kept from its events; costs a few attribute writes per event."""

    def __init__(self) -> None:
        self.run: RunStarted | None = None
        self.began = time.perf_counter()
        self.round: Round | None = None
        self.metrics: dict[str, float] = {}
        self.best: dict[str, tuple[float, int]] = {}
        self.curves: dict[str, list[float]] = {}
        self.cohort: tuple[int, ...] = ()
        self.training = 0
        self.done = 0
        self.refused = 0
        self.ended: RunEnded | None = None

    def take(self, event: Event) -> None:
        if isinstance(event, ClientDone):
            self.done = event.done
        elif isinstance(event, RoundStarted):
            self.training, self.cohort, self.done = event.number, event.cohort, 0
        elif isinstance(event, Round):
            self._ended(event)
        elif isinstance(event, RunStarted):
            self.run, self.began = event, time.perf_counter()
        else:
            self.ended = event

    def _ended(self, event: Round) -> None:
        self.round = event
        self.refused += len(event.refused)
        self.metrics.update(event.metrics)
        for name, value in event.metrics.items():
            self.curves.setdefault(name, []).append(value)
            top = self.best.get(name)
            if value == value and (top is None or (value < top[0] if lower_is_better(name) else value > top[0])):
                self.best[name] = (value, event.number)

    @property
    def number(self) -> int:
        return self.round.number if self.round is not None else self.run.resumed_at if self.run else 0

    @property
    def target(self) -> Target | None:
        return self.run.target if self.run else None

    @property
    def rate(self) -> float:
        """Rounds per second since the start, or the resumption."""
        done = self.number - (self.run.resumed_at if self.run else 0)
        spent = time.perf_counter() - self.began
        return done / spent if done > 0 and spent > 0 else 0.0

    @property
    def left(self) -> float | None:
        """Seconds to the last round, if no target ends the run before; None if there is none to come."""
        return (self.run.rounds - self.number) / self.rate if self.run and self.rate and self.number < self.run.rounds else None

    def main(self) -> str | None:
        """The metric that is shown in large: the target's, else accuracy or loss."""
        if self.target is not None and self.target.metric in self.curves:
            return self.target.metric
        return next((name for name in ("accuracy", "clients_accuracy", "loss", "clients_loss") if name in self.curves), None)


def headline(run: RunStarted) -> str:
    """One line on what is about to be trained."""
    goal = f" to {run.target}" if run.target else ""
    resumed = f", resumed after round {run.resumed_at}" if run.resumed_at else ""
    return (
        f"{run.algorithm} on {run.data}: {run.clients:,} clients, {run.cohort:,} a round, {run.model} with {run.parameters:,} "
        f"parameters, {run.rounds:,} rounds at most{goal}{resumed}"
    )


def shown(metrics: dict[str, float], most: int = 4) -> str:
    """The first few metrics as text, percentiles left out."""
    first = [name for name in metrics if not name.rpartition("_")[2].startswith("p")]
    order = sorted(first, key=lambda name: ("accuracy" not in name, name == "train_loss", name.startswith("clients")))
    return "  ".join(f"{name} {text.number(metrics[name])}" for name in order[:most])


class Lines(View):
    """A plain line per round, at most two a second, and always the last: for pipes and log files."""

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self.progress = Progress()
        self.printed = 0.0
        self.waiting = False

    def __call__(self, event: Event) -> None:
        self.progress.take(event)
        if isinstance(event, Round):
            now = time.perf_counter()
            doubling = event.number & (event.number - 1) == 0
            if now - self.printed >= PAUSE or doubling:
                self._line(event)
                self.printed = now
            else:
                self.waiting = True
        elif isinstance(event, RunStarted):
            self._say(headline(event))
        elif isinstance(event, RunEnded) and self.waiting and self.progress.round is not None:
            self._line(self.progress.round)

    def _line(self, r: Round) -> None:
        run, left = self.progress.run, self.progress.left
        parts = [f"round {r.number}/{run.rounds}" if run else f"round {r.number}", shown(r.metrics)]
        if r.number:
            parts.append(f"{self.progress.rate:.3g} rounds/s")
        if left:
            parts.append(f"{text.duration(left)} left" + (" at most" if self.progress.target else ""))
        if r.refused:
            parts.append(f"{len(r.refused)} refused")
        if r.dropped:
            parts.append(f"{len(r.dropped)} dropped")
        if r.virtual_seconds:
            parts.append(f"{text.duration(r.virtual_seconds)} on the clients' clock")
        self._say("  ".join(part for part in parts if part))
        self.waiting = False

    def _say(self, line: str) -> None:
        print(self.prefix + line, flush=True)


class LiveView(View):
    """The live view: progress, metrics and who is training, redrawn four times a second by rich's own thread."""

    def __init__(self, console: Console, title: str = "") -> None:
        from rich.live import Live

        self.console, self.title = console, title
        self.progress = Progress()
        self.live = Live(
            console=console, get_renderable=self._draw, refresh_per_second=REFRESHES, transient=False, redirect_stderr=True
        )

    def __enter__(self) -> Self:
        self.live.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.live.__exit__(kind, error, trace)

    def __call__(self, event: Event) -> None:
        self.progress.take(event)

    def _draw(self) -> RenderableType:
        from rich.console import Group
        from rich.markup import escape
        from rich.panel import Panel
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        state, run = self.progress, self.progress.run
        if run is None:
            return Text(self.title or "starting ...", style="dim")
        bar = Table.grid(padding=(0, 2), expand=True)
        bar.add_column(ratio=1)
        bar.add_column(justify="right", no_wrap=True)
        pace = f"{state.number:,}/{run.rounds:,} rounds"
        if state.rate:
            pace += f"  [cyan]{state.rate:.3g}[/] rounds/s"
        if state.ended is None and state.left is not None:
            pace += f"  {text.duration(state.left)} left" + (" at most" if run.target else "")
        finished = state.ended is not None and state.ended.status == "target"
        bar.add_row(
            ProgressBar(total=max(1, run.rounds), completed=run.rounds if finished else state.number), Text.from_markup(pace)
        )
        lines: list[RenderableType] = [Text(headline(run), style="dim"), bar]
        if (name := state.main()) is not None:
            top, goal = state.best.get(name), run.target if run.target and run.target.metric == name else None
            words = f"[bold]{escape(name)}[/] [bold green]{text.number(state.metrics.get(name))}[/]"
            if top is not None:
                words += f"  best {text.number(top[0])} at round {top[1]}"
            words += f"  target {goal.value:g}" if goal else ""
            curve = text.sparkline(state.curves.get(name, []), max(10, min(40, self.console.width - 70)))
            lines.append(Text.from_markup(f"{words}  [green]{curve}[/]"))
        rest = {key: value for key, value in state.metrics.items() if key != name}
        if rest:
            lines.append(Text(shown(rest), style="dim"))
        lines.append(self._who())
        return Panel(Group(*lines), title=escape(self.title) or None, title_align="left", border_style="dim")

    def _who(self) -> RenderableType:
        from rich.text import Text

        state = self.progress
        refused = f"  {state.refused} updates refused" if state.refused else ""
        if state.ended is not None:
            return Text(state.ended.message + refused, style="bold red" if state.ended.status == "diverged" else "bold")
        if not state.cohort:
            return Text("evaluating the initial model", style="dim")
        done = f"{min(state.done, len(state.cohort))} of {len(state.cohort)} done"
        return Text(f"round {state.training}: clients {text.some(state.cohort)} - {done}{refused}")


def console() -> Console:
    """stdout as rich sees it."""
    from rich.console import Console

    return Console()


def view(*, json: bool = False, quiet: bool = False, title: str = "") -> View:
    """The view that fits: JSON lines, nothing, live on a terminal, or plain lines."""
    if json:
        return JsonLines()
    if quiet:
        return View()
    if sys.stdout.isatty():
        screen = console()
        if screen.is_terminal and not screen.is_dumb_terminal:
            return LiveView(screen, title)
    return Lines(f"[{title}] " if title else "")

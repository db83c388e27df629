# SPDX-License-Identifier: Apache-2.0
"""The command line. Help is printed without importing torch: what is heavy is imported inside the commands."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedweave.app import net_commands
from fedweave.app.data_commands import data_app
from fedweave.app.pki_commands import pki_app
from fedweave.app.runs_commands import runs_app
from fedweave.app.settings import FLAGS, with_flags
from fedweave.app.shell import Folder, Guarded, Json, Quiet, Sets, existing, fail
from fedweave.errors import UsageError

if TYPE_CHECKING:
    from fedweave.simulation import Result


app = typer.Typer(
    name="fedweave",
    cls=Guarded,
    help="Train one model over many clients' data, without moving the data.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(runs_app, name="runs")
app.add_typer(data_app, name="data")
app.add_typer(pki_app, name="pki")


def _version(wanted: bool) -> None:
    if wanted:
        from fedweave import __version__

        typer.echo(f"fedweave {__version__}")
        raise typer.Exit()


@app.callback()
def fedweave(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    pass


@app.command()
@with_flags(FLAGS)
def run(
    config: Annotated[
        Path | None, typer.Argument(metavar="[CONFIG.toml]", help="A configuration file.", show_default=False)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder; the next free one under runs/ unless given.")] = None,
    sets: Sets = None,
    profile: Annotated[bool, typer.Option("--profile", help="Say in the report where the time went; in one process.")] = False,
    json: Json = False,
    quiet: Quiet = False,
    *,
    flags: dict[str, Any],
) -> None:
    """Train a model. Flags go over the file, --set over both; without any it is FedAvg on the digits data."""
    from fedweave.app import settings, text

    settings_of_run = settings.configure(config, flags, sets or ())
    stem = f"{_stem(settings_of_run.data)}-{_stem(settings_of_run.algorithm)}"
    folder = settings.new_folder(out, text.slug(stem))

    def train(view: Any) -> Result:
        from fedweave.simulation import run

        return run(settings_of_run, out=folder, profile=profile, observer=view)

    try:
        _watched(train, folder, json=json, quiet=quiet)
    finally:
        # A run that was refused before it began leaves no empty folder behind.
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


@app.command()
def tune(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG.toml", help="A configuration file; the fastest is written into it.")
    ],
    seconds: Annotated[float, typer.Option(help="Time for all that is tried, about.")] = 10.0,
    dry: Annotated[bool, typer.Option("--dry", help="Only print the table.")] = False,
) -> None:
    """Try the engines and numbers of processes on a configuration's own model and data, and write the fastest into it."""
    from fedweave.app import settings, text

    if not seconds > 0:
        raise UsageError(f"--seconds is {seconds}; it must be above 0.")
    settings_of_run = settings.configure(config, {})
    from fedweave.simulation import tune

    timings = tune(settings_of_run, seconds)
    rows = [
        (t.candidate.engine, str(t.candidate.workers), "-" if t.seconds is None else f"{t.seconds:.3g}", t.about)
        for t in timings
    ]
    typer.echo(text.table(("engine", "workers", "s a round", ""), rows, right=(1, 2)))
    best = timings[0]
    if best.seconds is not None and not dry:
        settings.amend(config, {"engine": best.candidate.engine, "workers": best.candidate.workers})
        typer.echo(f'\n{config} now says engine = "{best.candidate.engine}" and workers = {best.candidate.workers}.')


@app.command()
def resume(
    folder: Folder,
    rounds: Annotated[int | None, typer.Option(help="Go on to this round instead of the configured last one.")] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Go on with a run that was interrupted, to the bit as if it had not been; or with --rounds with a finished one."""
    existing(folder)

    def train(view: Any) -> Result:
        from fedweave.simulation import resume

        return resume(folder, rounds=rounds, observer=view)

    _watched(train, folder, json=json, quiet=quiet)


def _watched(train: Callable[[Any], Result], folder: Path, *, json: bool, quiet: bool, again: str = "") -> None:
    """Run ``train`` under the view that fits, write the report, say how it ended, and leave with its exit code.

    Args:
        again: the command that goes on with it.
    """
    from fedweave.app import facts, live

    try:
        with live.view(json=json, quiet=quiet) as view:
            result = train(view)
    except KeyboardInterrupt:
        fail(f"Stopped at once. Go on from the last checkpoint with `{again or f'fedweave resume {folder}'}`.", 130)
    from fedweave.app.report import write_report

    report = write_report(result)
    if json:
        live.emit({**facts.summary(result), "report": str(report)})
    else:
        typer.echo("\n" + facts.summary_text(result, str(report)))
    code = facts.EXIT_CODES[result.status]
    if result.status == "diverged":
        typer.echo(f"Error: {result.message}", err=True)
    if code:
        raise typer.Exit(code)


@app.command()
@with_flags(FLAGS)
def compare(
    items: Annotated[
        list[str],
        typer.Argument(metavar="A B ...", help="Run folders, .toml files, algorithms or policies.", show_default=False),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Where the runs and the page go; rerunning there trains what is missing.")
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Seeds for all, e.g. 0,1,2.")] = None,
    sets: Sets = None,
    json: Json = False,
    quiet: Quiet = False,
    *,
    flags: dict[str, Any],
) -> None:
    """Put runs, configurations and algorithms side by side, with the same split and seeds for all."""
    from fedweave.app import compare as comparison
    from fedweave.app import live, settings, text

    if len(items) < 2:
        raise UsageError(f"compare was given only {items[0]!r}; name at least two runs, .toml files or algorithms.")
    folder = out if out is not None else settings.next_folder("compare")
    try:
        found, notes, page = comparison.compare(
            items,
            flags=flags,
            sets=sets or (),
            seeds=_seeds(seeds),
            out=folder,
            watch=lambda title: live.view(quiet=quiet or json, title=title),
        )
    except KeyboardInterrupt:
        fail(f"Stopped at once. Repeat the command with --out {folder} to go on.", 130)
    finally:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    if page is None:
        fail(f"Interrupted. Repeat the command with --out {folder} to go on.", 130)
    for note in notes:
        typer.echo(f"Warning: {note}", err=True)
    if json:
        from fedweave.app.facts import summary

        for entry in found:
            for result in entry.results:
                live.emit({"label": entry.label, "seed": result.config.seed if result.config else None, **summary(result)})
        live.emit({"page": str(page), "warnings": notes})
        return
    typer.echo("\n" + text.table(comparison.head(found), comparison.rows(found), right=range(1, 7)))
    typer.echo(f"\npage  {page}")


def _seeds(given: str | None) -> list[int] | None:
    if given is None:
        return None
    try:
        seeds = [int(part) for part in given.split(",") if part.strip()]
    except ValueError:
        seeds = []
    if not seeds or min(seeds) < 0 or len(set(seeds)) != len(seeds):
        raise UsageError(f"--seeds is {given!r}; write different whole numbers from 0 up, like 0,1,2.")
    return seeds


def _stem(choice: str) -> str:
    """The name without its arguments, or a path's last part."""
    head = choice.partition("(")[0]
    return Path(head).stem or head


@app.command()
def report(
    folder: Folder,
    out: Annotated[Path | None, typer.Option(help="Where the page goes; DIR/report.html unless given.")] = None,
) -> None:
    """Write the report of a run: one HTML page that opens offline."""
    from fedweave.app.report import write_report

    typer.echo(write_report(existing(folder), out))


@app.command()
def diagnose(folder: Folder, json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False) -> None:
    """Why a run does not converge, or that nothing is wrong: in words, with the numbers behind them and what to try next."""
    from fedweave.app import diagnose as diagnosing
    from fedweave.app import live
    from fedweave.app.report import split_for
    from fedweave.simulation import load_result

    result = load_result(existing(folder))
    found = diagnosing.diagnosis_of(result, split_for(result))
    if json:
        live.emit(diagnosing.plain(found))
    else:
        typer.echo(diagnosing.words_of(found))


@app.command()
@with_flags(FLAGS)
def recommend(
    candidates: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[ALGORITHM ...]", help="What to choose from; a grid of the family unless given.", show_default=False
        ),
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", help="A configuration file that the flags go over.")] = None,
    budget: Annotated[int, typer.Option(help="Rounds to spend, over all that is tried.")] = 300,
    metric: Annotated[
        str | None,
        typer.Option(help="What decides: clients_accuracy or clients_loss, on held-out examples.", show_default=False),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where the runs go; repeating the command there goes on.")] = None,
    sets: Sets = None,
    json: Json = False,
    quiet: Quiet = False,
    *,
    flags: dict[str, Any],
) -> None:
    """Try algorithms and their key parameter on your own split, the better ones for longer; print the command of the best."""
    from fedweave.app import live, settings
    from fedweave.app import recommend as recommending

    base = settings.configure(config, flags, sets or ())
    folder = out if out is not None else settings.next_folder("recommend")
    try:
        found = recommending.recommend(
            base,
            candidates or (),
            budget=budget,
            metric=metric,
            out=folder,
            watch=lambda title: live.view(quiet=quiet or json, title=title),
        )
    except KeyboardInterrupt:
        fail(f"Stopped at once. Repeat the command with --out {folder} to go on.", 130)
    finally:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    if found is None:
        fail(f"Interrupted. Repeat the command with --out {folder} to go on.", 130)
    if json:
        for line in recommending.plain(found):
            live.emit(line)
    else:
        typer.echo("\n" + recommending.words_of(found))


@app.command()
def demo(
    out: Annotated[Path | None, typer.Option(help="Where the runs and the page go; runs/demo unless given.")] = None,
    quiet: Quiet = False,
) -> None:
    """FedAvg and FedSGD on handwritten digits, split evenly and by label: four runs in under 90 seconds, no network."""
    from fedweave.app import demo as show
    from fedweave.app.settings import runs_folder

    try:
        code = show.demo(out if out is not None else runs_folder() / "demo", quiet=quiet)
    except KeyboardInterrupt:
        fail("Stopped at once; start it again with `fedweave demo`.", 130)
    if code:
        raise typer.Exit(code)


@app.command()
def algorithms(name: Annotated[str | None, typer.Argument(help="Explain this one.", show_default=False)] = None) -> None:
    """The algorithms that can be chosen by name; with a NAME, what it does and its parameters."""
    from fedweave.app.catalogue import algorithm_page, algorithm_table

    typer.echo(algorithm_table() if name is None else algorithm_page(name))


@app.command()
def reductions() -> None:
    """The ways in which updates become one, robust ones among them."""
    from fedweave.app.catalogue import reduction_table

    typer.echo(reduction_table())


@app.command()
def attacks() -> None:
    """What bad clients can do, to test robust reductions with."""
    from fedweave.app.catalogue import attack_table

    typer.echo(attack_table())


@app.command()
def models() -> None:
    """The models that can be chosen by name."""
    from fedweave.app.catalogue import model_table

    typer.echo(model_table())


net_commands.register(app)


def main() -> None:
    """Entry point of the ``fedweave`` command."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal or log that cannot show a character gets a question mark, not a traceback.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    app()


if __name__ == "__main__":
    main()

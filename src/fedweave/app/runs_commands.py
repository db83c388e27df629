# SPDX-License-Identifier: Apache-2.0
"""``fedweave runs``: list the runs of a folder, show one."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from fedweave.app.shell import Folder, existing
from fedweave.errors import FedweaveError

runs_app = typer.Typer(help="The runs made so far.", no_args_is_help=True)
HEAD = ("folder", "status", "data", "partition", "algorithm", "model", "rounds", "best", "to target", "when")


@runs_app.command("list")
def list_runs(
    folder: Annotated[
        Path | None, typer.Argument(metavar="[FOLDER]", help="Where to look; runs/ unless given.", show_default=False)
    ] = None,
) -> None:
    """The runs under a folder, the latest last."""
    from fedweave.app import text
    from fedweave.app.settings import is_run, runs_folder
    from fedweave.errors import StoreError

    base = folder if folder is not None else runs_folder()
    if not base.is_dir():
        if folder is not None:
            raise StoreError(f"There is no folder {base}.")
        typer.echo(f"No runs yet in {base}. Make one with `fedweave run`.")
        return
    # Comparisons and the demo keep their runs one folder further down.
    found = [p for pattern in ("*", "*/*") for p in base.glob(pattern) if p.is_dir() and is_run(p)]
    if is_run(base):
        found.append(base)
    if not found:
        typer.echo(f"No runs yet in {base}. Make one with `fedweave run`.")
        return
    found.sort(key=_when)
    typer.echo(text.table(HEAD, [_row(path) for path in found], right=(6, 7, 8)))


def _when(path: Path) -> float:
    files = [file.stat().st_mtime for name in ("rounds.jsonl", "config.toml") if (file := path / name).exists()]
    return max(files, default=path.stat().st_mtime)


def _row(path: Path) -> tuple[str, ...]:
    from fedweave.app import text
    from fedweave.app.facts import Facts
    from fedweave.simulation import load_result

    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(_when(path)))
    try:
        result = load_result(path)
    except FedweaveError:
        return (str(path), "busy or damaged", *["-"] * 7, when)
    facts, config = Facts.of(result), result.config
    names = (config.data, config.partition or "-", config.algorithm, config.model)
    top = f"{facts.metric} {text.number(facts.best[0])}" if facts.best else "-"
    number = str(result.history[-1].number if result.history else 0)
    to = text.rounds(facts.rounds_to) if facts.target else "-"
    return (str(path), result.status, *names, number, top, to, when)


@runs_app.command()
def show(folder: Folder) -> None:
    """One run: its configuration, how it ended, its numbers."""
    from fedweave.app import facts
    from fedweave.app.report import repeat
    from fedweave.simulation import load_result

    result = load_result(existing(folder))
    report = folder / "report.html"
    typer.echo(f"{repeat(result)}\n\n{result.config.toml()}")
    typer.echo(facts.summary_text(result, str(report) if report.exists() else None))

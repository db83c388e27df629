# SPDX-License-Identifier: Apache-2.0
"""``fedweave data``: list the data sets, describe and plot a split."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedweave.app.settings import DATA, SEED, configure, unsplit, with_flags, writable
from fedweave.app.shell import Sets

if TYPE_CHECKING:
    from fedweave.data import Split

data_app = typer.Typer(help="Data sets and how they are split over clients.", no_args_is_help=True)
SPLIT_FLAGS = (*DATA, SEED)


def split_of(flags: dict[str, Any], sets: list[str] | None) -> Split:
    """The split that ``fedweave run`` would train on with the same flags; made without torch."""
    from fedweave.data import load, load_split, partition

    config = configure(None, flags, sets or ())
    if unsplit(config.partition) or config.partition is None:
        return load_split(config.data)
    seed = config.seed if config.split_seed is None else config.split_seed
    return partition(load(config.data), config.partition, clients=config.clients, seed=seed, holdout=config.holdout)


@data_app.command("list")
def list_sets() -> None:
    """The data sets and partitions that can be chosen by name."""
    from fedweave.app.catalogue import data_table

    typer.echo(data_table())


@data_app.command()
@with_flags(SPLIT_FLAGS)
def describe(sets: Sets = None, *, flags: dict[str, Any]) -> None:
    """Sizes, labels per client, what was left out."""
    typer.echo(split_of(flags, sets).describe())


@data_app.command()
@with_flags(SPLIT_FLAGS)
def plot(
    out: Annotated[Path | None, typer.Option(help="Where the page goes; <data>-split.html unless given.")] = None,
    sets: Sets = None,
    *,
    flags: dict[str, Any],
) -> None:
    """Draw who holds what, client by label, as one HTML page that opens offline."""
    from fedweave.app import text
    from fedweave.app.page import Page
    from fedweave.app.report import partition_section

    split = split_of(flags, sets)
    path = out if out is not None else Path(f"{text.slug(split.name)}-split.html")
    writable(path.parent)
    page = Page(f"{split.name} over {split.clients:,} clients", str(flags.get("partition", "")))
    partition_section(page, [("Who holds what", split)])
    typer.echo(page.write(path))

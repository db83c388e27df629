# SPDX-License-Identifier: Apache-2.0
"""What all commands share: how errors end them, and the options and arguments that several of them take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, NoReturn, cast

import typer
from typer.core import TyperGroup

from fedweave.app.settings import is_run
from fedweave.errors import FedweaveError, StoreError

CLICK_USAGE = cast("type[Exception]", typer.BadParameter.__base__)
"""The parser's own error, found through what Typer exports because Typer has moved its parser between versions."""


class Guarded(TyperGroup):
    """Turns every error made on purpose into one sentence on stderr and its exit code; others keep their traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except FedweaveError as error:
            fail(str(error), error.exit_code)
        except CLICK_USAGE as error:
            if type(error).__name__ == "NoArgsIsHelpError":
                raise
            parser: Any = error
            where = parser.ctx.command_path if parser.ctx is not None else "fedweave"
            message = parser.format_message()
            fail(f"{message if message.endswith(('.', '?')) else message + '.'} See {where} --help.")


def fail(sentence: str, code: int = 2) -> NoReturn:
    """Say what is wrong on stderr and end."""
    typer.echo(f"Error: {' '.join(sentence.split())}", err=True)
    raise typer.Exit(code)


def existing(folder: Path) -> Path:
    """The folder, if it holds a run.

    Raises:
        StoreError: it does not.
    """
    if not is_run(folder):
        raise StoreError(f"{folder} is not the folder of a run; list them with `fedweave runs list`.")
    return folder


Sets = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any key of the configuration, e.g. local.momentum=0.9.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object per round on stdout, then one that sums up.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the end.")]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a run.", show_default=False)]

# SPDX-License-Identifier: Apache-2.0
"""The flags that name a run, shared by the commands: what they set in the configuration, and back to the exact command."""

from __future__ import annotations

import functools
import inspect
import os
import shlex
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedweave.errors import StoreError, UnknownName, UsageError

if TYPE_CHECKING:
    from fedweave.config import Config

DEFAULT_CLIENTS = 10
"""How many clients when a partition needs a number and none is given."""

METRICS = ("accuracy", "loss", "train_loss") + tuple(
    f"clients_{name}{part}" for name in ("accuracy", "loss") for part in ("", "_p10", "_p50", "_p90")
)
"""What a run from the command line can measure, and so what a target may be of."""


@dataclass(frozen=True)
class Flag:
    """One option: the key of the configuration that it sets (dotted for those of local training), its type, its help."""

    key: str
    type: Any
    help: str
    panel: str = "What is trained"

    @property
    def name(self) -> str:
        return self.key.rpartition(".")[2]

    @property
    def option(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def spelled(self) -> str:
        """As the parser is told: a switch has a second option that turns it off."""
        return f"{self.option}/--no-{self.option[2:]}" if self.type is bool else self.option


_LOCAL, _RUN, _UNEVEN = "Local training", "Rounds and evaluation", "Slow and bad clients"
DATA = (
    Flag("data", str, "Data set by name, e.g. mnist or 'synthetic(alpha=1, beta=1)', a CSV or Parquet file, or a saved split."),
    Flag(
        "partition", str, "Who holds what: iid, 'shards(per_client=2)', 'dirichlet(alpha=0.3)', ... or none for a saved split."
    ),
    Flag("clients", int, "Number of clients; natural partitions need none."),
)
SEED = Flag("seed", int, "One seed, one result.", _RUN)
FLAGS = (
    *DATA,
    Flag("cohort", str, "Clients per round: a fraction (0.1) or a count (10)."),
    Flag("model", str, "Model by name, or package.module:factory."),
    Flag("algorithm", str, "Algorithm by name, e.g. 'fedsgd(server_lr=0.1)'."),
    Flag("local.lr", float, "Local learning rate.", _LOCAL),
    Flag("local.epochs", float, "Passes over a client's data per round.", _LOCAL),
    Flag("local.steps", int, "Local steps per round, instead of epochs.", _LOCAL),
    Flag("local.batch_size", str, "Examples per local step, or all.", _LOCAL),
    Flag("local.momentum", float, "Momentum of SGD within a round.", _LOCAL),
    Flag("local.weight_decay", float, "Added to the gradient, times the weights.", _LOCAL),
    Flag("local.clip_norm", float, "Largest norm of a step's gradient.", _LOCAL),
    Flag("local.lr_decay", float, "Factor on the learning rate from round to round.", _LOCAL),
    Flag("local.shuffle", str, "New batches every epoch, once a round, or never.", _LOCAL),
    Flag("local.optimizer", str, "sgd or adam.", _LOCAL),
    Flag("rounds", int, "Rounds at most.", _RUN),
    Flag("target", str, "Metric and value to reach, e.g. accuracy=0.97; the run ends there.", _RUN),
    Flag("patience", int, "End after so many evaluations without improvement.", _RUN),
    Flag("max_seconds", float, "End after so many seconds.", _RUN),
    SEED,
    Flag("evaluate_every", int, "Rounds between evaluations; 0 for never.", _RUN),
    Flag("evaluate", str, "What is evaluated: central, clients, both or auto.", _RUN),
    Flag("policy", str, "When a round closes: synchronous, 'deadline(seconds=60)', 'fedbuff(buffer=10)', ...", _UNEVEN),
    Flag("sampling", str, "Which clients are asked: uniform, available, 'power-of-choice(d=20)', ...", _UNEVEN),
    Flag("population", str, "Their devices, e.g. 'population(speed=lognormal(median=100, sigma=1))'.", _UNEVEN),
    Flag("effort", str, "How much of their local work clients do: full, 'stragglers(share=0.5, drop=True)', ...", _UNEVEN),
    Flag("attack", str, "What bad clients send, e.g. 'ipm(epsilon=0.1)'; see fedweave attacks.", _UNEVEN),
    Flag("byzantine", str, "How many clients are bad: a count, or a fraction of all.", _UNEVEN),
    Flag("diagnostics", bool, "Note of each update what fedweave diagnose reads.", _RUN),
    Flag("engine", str, "How the cohort is trained.", _RUN),
    Flag("workers", int, "Processes that train; as many as are worth it unless given.", _RUN),
    Flag("threads", int, "torch threads; chosen from the model unless given.", _RUN),
)


def with_flags(flags: Sequence[Flag]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the flags; it receives those that were used as ``flags``, a dict from key to value."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "flags"]
        shared = [
            inspect.Parameter(
                flag.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[
                    flag.type | None,
                    typer.Option(flag.spelled, help=flag.help, show_default=False, rich_help_panel=flag.panel),
                ],
            )
            for flag in flags
        ]

        @functools.wraps(command)
        def called(**values: Any) -> None:
            given = {flag.key: values.pop(flag.name) for flag in flags}
            command(**values, flags={key: value for key, value in given.items() if value is not None})

        parameters = [*(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own), *shared]
        # Typer reads the signature and the annotations of what it is given, and would follow __wrapped__ past them.
        del called.__wrapped__
        called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        called.__annotations__ = {p.name: p.annotation for p in parameters}
        return called

    return decorate


def configure(path: Path | None, flags: Mapping[str, Any], sets: Sequence[str] = ()) -> Config:
    """The configuration from a file, the flags over it, and ``--set key=value`` over both.

    Raises:
        UsageError: the file cannot be read, a key is unknown, or a value cannot be used.
    """
    from fedweave.config import Config

    values: dict[str, Any] = Config.read(path).model_dump() if path is not None else {}
    _overlay(values, {key: _plain(key, value) for key, value in flags.items()})
    _overlay(values, dict(_assignment(text) for text in sets))
    config = Config.make(values)
    if config.clients is None and needs_clients(config.partition):
        config = config.model_copy(update={"clients": DEFAULT_CLIENTS})
    check(config)
    return config


def check(config: Config) -> None:
    """Refuse what can be refused before any data or model is loaded."""
    from fedweave.algorithms import algorithm
    from fedweave.history import Target

    config.local.value()
    algorithm(config.algorithm)
    if config.target is not None and (metric := Target.of(config.target).metric) not in METRICS:
        raise UnknownName("metric", metric, METRICS)


def needs_clients(partition: str | None) -> bool:
    """Whether a partition is one that a number of clients must be given for.

    Raises:
        UnknownName: there is no partition of that name.
    """
    if unsplit(partition):
        return False
    from fedweave.data.partitioners import partitioner

    assert partition is not None
    return partitioner(partition).needs_clients


def unsplit(partition: str | None) -> bool:
    """Whether the data come split already: ``--partition none``."""
    return partition is None or partition.strip().lower() == "none"


def _plain(key: str, value: Any) -> Any:
    if key == "local.batch_size":
        text = str(value).strip().lower()
        return int(text) if text.lstrip("+-").isdigit() else text
    if key == "local.epochs" and isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _overlay(values: dict[str, Any], changes: Mapping[str, Any]) -> None:
    for new, old in (("local.steps", "local.epochs"), ("local.epochs", "local.steps")):
        # What is said later replaces what was said before; said together, they are refused as a contradiction.
        if new in changes and old not in changes and isinstance(values.get("local"), dict):
            values["local"].pop(old.rpartition(".")[2], None)
    for key, value in changes.items():
        head, dot, leaf = key.partition(".")
        if not dot:
            values[head] = value
            continue
        inner = values.setdefault(head, {})
        if not isinstance(inner, dict):
            raise UsageError(f"--set {key}={value}: {head} has no parts.")
        inner[leaf] = value


def _assignment(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    key, value = key.strip().replace("-", "_"), value.strip()
    if not equals or not key or not value:
        raise UsageError(f"--set is {text!r}; write it like local.momentum=0.9.")
    if value.lower() == "none" and key != "partition":
        return key, None
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key, value


def command_of(config: Config, out: Path | str | None = None) -> str:
    """The exact command that makes this configuration, ready for a shell; ``configure`` reads it back to an equal one."""
    from fedweave.config import Config

    always = {"data", "partition", "clients", "cohort", "model", "algorithm", "rounds", "seed", "local.lr", "local.batch_size"}
    options = {flag.key: flag.option for flag in FLAGS}
    given, plain = _flat(config.model_dump()), _flat(Config.make({}).model_dump())
    words = ["fedweave", "run"]
    for key in [*options, *(key for key in given if key not in options)]:
        value = given[key]
        if value is None and (plain[key] is None or key != "partition"):
            continue
        if value == plain[key] and key not in always:
            continue
        text = "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
        if isinstance(value, bool) and key in options:
            words.append(options[key] if value else f"--no-{options[key][2:]}")
            continue
        words += [options[key], text] if key in options else ["--set", f"{key}={text}"]
    return shlex.join(words + (["--out", str(out)] if out is not None else []))


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update({f"{key}.{leaf}": v for leaf, v in value.items()} if isinstance(value, dict) else {key: value})
    return flat


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run, finished or not."""
    return (folder / "ledger.sqlite3").exists()


def runs_folder() -> Path:
    """Where runs go unless told otherwise: ``FEDWEAVE_RUNS``, or ``runs`` in the working folder."""
    return Path(os.environ.get("FEDWEAVE_RUNS") or "runs")


def next_folder(stem: str) -> Path:
    """``runs/<stem>-<n>`` with the next free number, made here so that two runs never take the same one."""
    base = runs_folder()
    taken = [int(p.name[len(stem) + 1 :]) for p in base.glob(f"{stem}-*") if p.name[len(stem) + 1 :].isdigit()]
    number = max(taken, default=0) + 1
    while True:
        folder = base / f"{stem}-{number}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
        except OSError as error:
            raise _unwritable(folder, error) from None
        else:
            return folder


def writable(folder: Path) -> Path:
    """The folder, made if need be.

    Raises:
        StoreError: it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StoreError(f"Cannot write into {folder}: permission denied. Choose another folder with --out.")
    return folder


def _unwritable(folder: Path, error: OSError) -> StoreError:
    return StoreError(f"Cannot make the folder {folder}: {error.strerror}. Choose another with --out.")


def amend(path: Path, values: Mapping[str, str | int]) -> None:
    """Set keys of a configuration file, and leave all else in it as it is, comments too.

    Raises:
        StoreError: it cannot be written.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    top = next((i for i, line in enumerate(lines) if line.lstrip().startswith("[")), len(lines))
    for key, value in values.items():
        text = f'{key} = "{value}"' if isinstance(value, str) else f"{key} = {value}"
        at = next((i for i in range(top) if lines[i].partition("=")[0].strip() == key), None)
        if at is not None:
            lines[at] = text
            continue
        while top > 0 and not lines[top - 1].strip():
            top -= 1  # below the last key, above the empty lines before a table
        lines.insert(top, text)
        top += 1
    try:
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise StoreError(f"Cannot write {path}: {error.strerror}.") from None


def new_folder(out: Path | None, stem: str) -> Path:
    """The folder of a new run.

    Raises:
        StoreError: it holds a run already, or cannot be written.
    """
    if out is None:
        return next_folder(stem)
    if is_run(out):
        raise StoreError(f"{out} already holds a run. Go on with it by `fedweave resume {out}`, or choose another --out.")
    return writable(out)

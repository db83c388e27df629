# SPDX-License-Identifier: Apache-2.0
"""Recorded devices and sessions: tables with a header, as CSV or Parquet, whose columns are numbers.

Devices, a row each: ``client`` (0 to n - 1, once each; the row's own place without it) and any of ``speed`` (examples per
second), ``up``, ``down`` (bytes per second), ``latency`` (seconds), ``dropout``, ``never_starts``, ``late``, ``garbage``
(probabilities). A column that is not there is ideal: it takes no time, and never fails.

Sessions, a row each, in any order: ``client`` (0 to n - 1), ``online`` and ``offline`` (seconds; online from the first to
before the second).
"""

from __future__ import annotations

import csv
import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedweave.errors import DataError
from fedweave.population.availability import TICKS, Intervals
from fedweave.population.distributions import Floats

IDEAL = {
    "speed": math.inf,
    "up": math.inf,
    "down": math.inf,
    "latency": 0.0,
    "dropout": 0.0,
    "never_starts": 0.0,
    "late": 0.0,
    "garbage": 0.0,
}
"""What a device is where nothing is said of it."""

RATES = ("speed", "up", "down")
RISKS = ("never_starts", "dropout", "late", "garbage")
SESSION = ("client", "online", "offline")


def read_devices(path: Path) -> dict[str, Floats]:
    """The columns of recorded devices, all of ``IDEAL``, in the order of ``client``.

    Raises:
        DataError: the file cannot be read, or a value cannot be used; says in which line and column.
    """
    table = _read(path, ("client", *IDEAL), ())
    columns = table.columns
    for name in columns:
        if name in RATES:
            table.see(name, columns[name] > 0, "it must be above 0")
        elif name == "latency":
            table.see(name, (columns[name] >= 0) & np.isfinite(columns[name]), "it must be a number from 0 up")
        elif name in RISKS:
            table.see(name, (columns[name] >= 0) & (columns[name] <= 1), "it must lie between 0 and 1")
    risks = [columns[name] for name in RISKS if name in columns]
    if risks:
        table.see("", np.sum(risks, axis=0) <= 1 + 1e-9, f"its {', '.join(RISKS)} must not come to more than 1 together")
    order = np.arange(table.rows)
    if "client" in columns:
        numbers = table.whole("client")
        table.see("client", numbers < table.rows, f"with {table.rows:,} rows it must lie between 0 and {table.rows - 1:,}")
        order = np.argsort(numbers, kind="stable")
        again = np.zeros(table.rows, np.bool_)
        again[order[1:]] = numbers[order[1:]] == numbers[order[:-1]]
        table.see("client", ~again, "it has a row already")
    return {name: columns[name][order] if name in columns else np.full(table.rows, ideal) for name, ideal in IDEAL.items()}


def read_sessions(path: Path, period: float | None = None) -> Intervals:
    """Recorded sessions, sorted, those that touch made one.

    Raises:
        DataError: the file cannot be read, or a value cannot be used; says in which line and column.
    """
    table = _read(path, SESSION, SESSION)
    client = table.whole("client")
    latest = 2.0**40 if period is None else period
    for name in SESSION[1:]:
        values = table.columns[name]
        table.see(name, (values >= 0) & (values <= latest), f"it must lie between 0 and {latest:g} seconds")
    begin, end = (np.rint(table.columns[name] * TICKS).astype(np.int64) for name in SESSION[1:])
    table.see("offline", begin < end, "it must come after online, by a thousandth of a second at least")
    order = np.lexsort((begin, client))
    owner, begin, end = client[order], begin[order], end[order]
    same = owner[1:] == owner[:-1]
    over = np.zeros(table.rows, np.bool_)
    over[order[1:]] = same & (begin[1:] < end[:-1])
    table.see("online", ~over, "the client is online already from another row")
    goes_on = same & (begin[1:] == end[:-1])
    starts, ends = np.concatenate([[True], ~goes_on]), np.concatenate([~goes_on, [True]])
    recorded = int(owner[-1]) + 1
    return Intervals(
        owner[starts].astype(np.int32),
        begin[starts],
        end[ends],
        recorded,
        None if period is None else round(period * TICKS),
        np.arange(recorded, dtype=np.int32),
    )


def write(path: Path, columns: Mapping[str, npt.NDArray[Any]]) -> None:
    """Columns as a table, by the file's suffix .csv or .parquet; what is read back is equal to the last bit.

    Raises:
        DataError: it cannot be written.
    """
    try:
        if path.suffix.lower() == ".parquet":
            arrow = _arrow(path)
            arrow.parquet.write_table(arrow.table(dict(columns)), path)
            return
        _suffix(path)
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows(zip(*(values.tolist() for values in columns.values()), strict=True))
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}.") from None


# Reading a table ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Table:
    """Numbers by column, and how to name a row (``line 7`` of a CSV file)."""

    path: Path
    columns: dict[str, Floats]
    rows: int
    place: Callable[[int], str]

    def see(self, column: str, fine: npt.NDArray[np.bool_], remedy: str) -> None:
        """Raise DataError for the first row that is not fine."""
        if not fine.all():
            row = int(np.argmin(fine))
            found = f", column {column}: it is {self.columns[column][row]:.15g}, but" if column else ":"
            raise DataError(f"{self.path}, {self.place(row)}{found} {remedy}.")

    def whole(self, column: str) -> npt.NDArray[np.int64]:
        values = self.columns[column]
        self.see(column, (values >= 0) & (values < 2**31) & (values == np.floor(values)), "it must be a whole number from 0 up")
        return values.astype(np.int64)


def _read(path: Path, known: tuple[str, ...], needed: tuple[str, ...]) -> _Table:
    table = _read_parquet(path, known) if path.suffix.lower() == ".parquet" else _read_csv(path, known)
    for name in needed:
        if name not in table.columns:
            raise DataError(f"{path} has no column {name!r}; it needs {', '.join(needed)}.")
    if not table.rows:
        raise DataError(f"{path} has no rows.")
    for name, values in table.columns.items():
        table.see(name, ~np.isnan(values), "it must be a number")
    return table


def _read_csv(path: Path, known: tuple[str, ...]) -> _Table:
    _suffix(path)
    rows: list[list[str]] = []
    lines: list[int] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            header = [name.strip() for name in next(reader, [])]
            _see_header(path, header, known)
            for row in reader:
                if not row:
                    continue
                if len(row) != len(header):
                    raise DataError(f"{path}, line {reader.line_num}: it has {len(row)} values, but the header {len(header)}.")
                rows.append(row)
                lines.append(reader.line_num)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as CSV: {error}.") from None
    columns = {name: _numbers(path, name, [row[i] for row in rows], lines) for i, name in enumerate(header)}
    return _Table(path, columns, len(rows), lambda row: f"line {lines[row]}")


def _numbers(path: Path, name: str, texts: list[str], lines: list[int]) -> Floats:
    values = np.empty(len(texts))
    for row, text in enumerate(texts):
        try:
            values[row] = float(text)
        except ValueError:
            said = f"it is {text!r}" if text.strip() else "it is empty"
            raise DataError(f"{path}, line {lines[row]}, column {name}: {said}, but it must be a number.") from None
    return values


def _read_parquet(path: Path, known: tuple[str, ...]) -> _Table:
    arrow = _arrow(path)
    try:
        table = arrow.parquet.read_table(path)
    except (OSError, arrow.ArrowException) as error:
        raise DataError(f"{path} cannot be read as Parquet ({' '.join(str(error).split())}).") from None
    _see_header(path, table.column_names, known)
    columns: dict[str, Floats] = {}
    for name in table.column_names:
        kind, column = table.schema.field(name).type, table.column(name)
        if not (arrow.types.is_integer(kind) or arrow.types.is_floating(kind)):
            raise DataError(f"{path}, column {name}: it holds {kind}, but it must hold numbers.")
        columns[name] = column.cast(arrow.float64(), safe=False).to_numpy()
    return _Table(path, columns, table.num_rows, lambda row: f"row {row + 1}")


def _see_header(path: Path, header: list[str], known: tuple[str, ...]) -> None:
    for number, name in enumerate(header, 1):
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise DataError(f"{path}: its column {number} is called {name!r}.{hint} Known: {', '.join(known)}.")
        if header.index(name) != number - 1:
            raise DataError(f"{path}: its columns {header.index(name) + 1} and {number} are both called {name!r}.")


def _suffix(path: Path) -> None:
    if path.suffix.lower() != ".csv":
        raise DataError(f"{path} is neither a .csv nor a .parquet file.")


def _arrow(path: Path) -> Any:
    try:
        import pyarrow as pa
        import pyarrow.parquet
    except ImportError:
        raise DataError(f"{path.name} needs pyarrow: pip install 'fedweave[data]'.") from None
    return pa

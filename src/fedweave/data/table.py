# SPDX-License-Identifier: Apache-2.0
"""A user's CSV or Parquet file as a data set; read by pyarrow, the extra ``[data]``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fedweave.data.dataset import AnyArray, Dataset
from fedweave.data.files import sha256
from fedweave.data.own import from_arrays
from fedweave.errors import DataError, UnknownName, UsageError
from fedweave.randomness import generator

SUFFIXES = (".csv", ".tsv", ".parquet", ".pq")


def read_file(
    path: Path,
    label: str,
    client: str | None = None,
    test: str | float | None = None,
    task: str | None = None,
    drop: tuple[str, ...] | list[str] = (),
) -> Dataset:
    """A data set of a table with a header, a row per example: every column but ``label``, ``client`` and ``drop`` is a feature.

    Args:
        path: a .csv, .tsv or .parquet file.
        label: the column of targets. Whole numbers from 0 up are labels as they are; texts, truth values and other whole
            numbers are numbered in sorted order, which a note says; real numbers are a regression's targets.
        client: the column that says who holds a row; it keeps its name among ``columns`` and is the natural one.
        test: a second file with the same columns, or a fraction of the rows, drawn by a fixed seed; None: no test set.
        task: ``"classification"`` or ``"regression"`` where the label's type would say otherwise.
        drop: columns to leave out.

    Raises:
        DataError: the file cannot be read, or pyarrow is not installed.
        UnknownName: there is no such column.
        UsageError: a feature is no number or is missing somewhere, or an option is out of its range.
    """
    if task not in (None, "classification", "regression"):
        raise UsageError(f"task is {task!r}; it must be 'classification' or 'regression'.")
    if isinstance(test, bool) or not (test is None or isinstance(test, str) or (isinstance(test, float) and 0 < test < 1)):
        raise UsageError(f"test is {test!r}; it must be a file's name or a fraction between 0 and 1.")
    tables = [_read(path)]
    digests = [sha256(path)]
    if isinstance(test, str):
        tables.append(_read(Path(test)))
        digests.append(sha256(Path(test)))
    names = tables[0].column_names
    for column in [label, *([client] if client else []), *drop]:
        if column not in names:
            raise UnknownName(f"column in {path.name}", column, names)
    features = [name for name in names if name not in {label, client, *drop}]
    if not features:
        raise UsageError(f"{path.name} has no columns left to be features.")
    for table in tables[1:]:
        for name in [*features, label]:
            if name not in table.column_names:
                raise UnknownName(f"column in {test}", name, table.column_names)
    xs = [np.column_stack([_feature(table, name) for name in features]) for table in tables]
    ys, note = _labels([_values(table, label) for table in tables], label, task)
    held = [{client: _values(table, client)} if client and client in table.column_names else {} for table in tables]
    notes = (note,) if note else ()
    if isinstance(test, float):
        count = len(xs[0])
        size = round(count * test)
        if not 0 < size < count:
            raise UsageError(f"test is {test}, which of {count} rows is {size}; leave some for both.")
        order = generator(0, "table test").permutation(count)
        parts = np.sort(order[size:]), np.sort(order[:size])
        xs, ys = [xs[0][part] for part in parts], [ys[0][part] for part in parts]
        held = [{name: values[part] for name, values in held[0].items()} for part in parts]
    made = from_arrays(
        xs[0],
        ys[0],
        test=(xs[1], ys[1]) if len(xs) > 1 else None,
        columns=held[0],
        test_columns=held[1] if len(xs) > 1 else None,
        name=path.stem,
    )
    key = f"table {' '.join(digests)} {[label, client, test if isinstance(test, float) else None, task, sorted(drop)]}"
    return replace(made, natural=client, notes=notes, key=key)


def _read(path: Path) -> Any:
    try:
        import pyarrow as pa
        from pyarrow import csv, parquet
    except ImportError:
        raise DataError(f"Reading {path.name} needs pyarrow: pip install 'fedweave[data]'.") from None
    try:
        if path.suffix.lower() in (".parquet", ".pq"):
            return parquet.read_table(path)
        return csv.read_csv(path, parse_options=csv.ParseOptions(delimiter="\t" if path.suffix.lower() == ".tsv" else ","))
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path} cannot be read as a table ({reason}).") from None


def _feature(table: Any, name: str) -> AnyArray:
    values = _values(table, name)
    if values.dtype.kind not in "iufb":
        raise UsageError(f"Column {name!r} holds {table.schema.field(name).type}, not numbers; encode it, or drop=[{name!r}].")
    return values.astype(np.float32)


def _values(table: Any, name: str) -> AnyArray:
    column = table.column(name)
    if column.null_count:
        raise UsageError(
            f"Column {name!r} is empty in {column.null_count:,} rows; fill them, drop those rows, or drop=[{name!r}]."
        )
    values: AnyArray = column.to_numpy()
    return values.astype(str) if values.dtype.kind == "O" else values


def _labels(parts: list[AnyArray], name: str, task: str | None) -> tuple[list[AnyArray], str]:
    whole = np.concatenate(parts)
    if task == "regression" or (task is None and whole.dtype.kind == "f"):
        if whole.dtype.kind not in "iufb":
            raise UsageError(f"The label {name!r} holds {whole.dtype.name}, not numbers, so there is no regression on it.")
        return [part.astype(np.float32) for part in parts], ""
    if whole.dtype.kind in "iu" and whole.size and whole.min() >= 0:
        return parts, ""
    kinds = np.unique(whole)
    told = ", ".join(f"{kind} is {number}" for number, kind in enumerate(kinds[:10].tolist()))
    return [np.searchsorted(kinds, part) for part in parts], f"Labels are numbered: {told}{' ...' if len(kinds) > 10 else ''}."

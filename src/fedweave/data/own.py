# SPDX-License-Identifier: Apache-2.0
"""A user's own data: NumPy arrays, arrays per client, a torch ``Dataset``, a Hugging Face ``Dataset``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fedweave.data.dataset import AnyArray, Dataset
from fedweave.data.split import Split, TestsIn
from fedweave.errors import MismatchError, UnknownName, UsageError

Pair = tuple[Any, Any]


def from_arrays(
    x: Any,
    y: Any,
    *,
    test: Pair | None = None,
    columns: Mapping[str, Any] | None = None,
    test_columns: Mapping[str, Any] | None = None,
    classes: int | None = None,
    name: str = "arrays",
) -> Dataset:
    """A data set of a user's arrays.

    Args:
        x: [N, ...] features. Real numbers become float32; whole numbers are kept (they are tokens: scale pixels first).
        y: [N] whole numbers from 0 up are labels; real numbers are a regression's targets; [N, T] whole numbers are
            targets per place, -100 where there is none.
        test: the same two for the central test set.
        columns, test_columns: a value per example, e.g. who holds it.
        classes: number of labels; by default the largest label + 1.

    Raises:
        MismatchError: lengths or shapes differ.
        UsageError: objects, texts, NaN or infinity among the features; negative labels; no examples.
    """
    x, y = _features("x", x), _targets("y", y)
    _same_length("x", x, "y", y)
    if not len(x):
        raise UsageError("x holds no examples; give at least one.")
    x_test, y_test = None, None
    if test is not None:
        x_test, y_test = _pair("test", test)
        _alike("the test set", x_test, y_test, "the training set", x, y)
    return Dataset(
        name=name,
        x_train=x,
        y_train=y,
        x_test=x_test,
        y_test=y_test,
        classes=_classes(classes, y, y_test),
        columns=_columns(columns, x, "x"),
        test_columns=_columns(test_columns, x_test, "the test set"),
    )


def from_clients(clients: Sequence[Pair], test: Pair | None = None, tests: Sequence[Pair] | None = None) -> Split:
    """A split of a user's own arrays, client by client; arrays as for ``from_arrays``.

    Args:
        clients: (x, y) of each client.
        test: (x, y) of the central test set; by default all of ``tests`` together.
        tests: (x, y) of each client's own test set, in the same order; it may be empty for some.

    Raises:
        MismatchError: lengths or shapes differ.
        UsageError: no clients, an empty client, or values that ``from_arrays`` refuses.
    """
    if isinstance(clients, (str, bytes, Mapping)) or not hasattr(clients, "__iter__"):
        raise UsageError(f"from_clients() takes a list of (x, y), one per client, not {type(clients).__name__}.")
    parts = [_pair(f"client {k}", pair) for k, pair in enumerate(clients)]
    if not parts:
        raise UsageError("from_clients() was given no clients; give at least one (x, y).")
    for k, (x, y) in enumerate(parts):
        if not len(x):
            raise UsageError(f"Client {k} holds no examples; leave it out.")
        _alike(f"client {k}", x, y, "client 0", *parts[0])
    x, y = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    offsets = _offsets(parts)
    owner = np.repeat(np.arange(len(parts), dtype=np.int32), np.diff(offsets))
    x_test, y_test, test_order, test_offsets = None, None, None, None
    private: tuple[AnyArray, AnyArray] | None = None
    test_columns: dict[str, AnyArray] = {}
    if test is not None:
        x_test, y_test = _pair("test", test)
        _alike("the test set", x_test, y_test, "client 0", *parts[0])
    if tests is not None:
        own = [_pair(f"test of client {k}", pair) for k, pair in enumerate(tests)]
        if len(own) != len(parts):
            raise MismatchError(f"There are {len(parts)} clients but {len(own)} tests; give one per client, in the same order.")
        for k, (a, b) in enumerate(own):
            _alike(f"the test of client {k}", a, b, "client 0", *parts[0])
        private = np.concatenate([a for a, _ in own]), np.concatenate([b for _, b in own])
        test_offsets = _offsets(own)
        test_order = np.arange(len(private[0]), dtype=np.int64)
        if test is None:
            (x_test, y_test), private = private, None
            test_columns = {"client": np.repeat(np.arange(len(own), dtype=np.int32), np.diff(test_offsets))}
    data = Dataset(
        name="clients",
        x_train=x,
        y_train=y,
        x_test=x_test,
        y_test=y_test,
        classes=_classes(None, y, y_test, None if private is None else private[1]),
        columns={"client": owner},
        test_columns=test_columns,
        natural="client",
    )
    tests_in: TestsIn = "test" if private is None else "private"
    return Split(data, np.arange(len(x), dtype=np.int64), offsets, test_order, test_offsets, tests_in, private)


def from_torch(dataset: Any, test: Any = None, *, columns: Mapping[str, Any] | None = None, name: str = "torch") -> Dataset:
    """A data set of any map-style torch ``Dataset`` of (x, y), read once into memory; ``columns`` as for ``from_arrays``.

    Raises:
        UsageError: it has no length, or its items are not (x, y) of numbers.
    """
    x, y = _items("dataset", dataset)
    return from_arrays(x, y, test=None if test is None else _items("test", test), columns=columns, name=name)


def _items(what: str, dataset: Any) -> Pair:
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise UsageError(f"{what} is {type(dataset).__name__}, without length or items; give a map-style dataset of (x, y).")
    tensors = getattr(dataset, "tensors", None)
    if isinstance(tensors, tuple) and len(tensors) == 2:
        return _copied(tensors[0]), _copied(tensors[1])
    xs, ys = [], []
    for i in range(len(dataset)):
        item = dataset[i]
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            raise UsageError(f"Item {i} of {what} is {type(item).__name__}, not a pair (x, y).")
        if not hasattr(item[0], "dtype") and hasattr(item[0], "getpixel"):
            raise UsageError(f"Item {i} of {what} is a picture; give the dataset a transform to numbers, such as ToTensor().")
        xs.append(_copied(item[0]))
        ys.append(_copied(item[1]))
    shapes = {x.shape for x in xs}
    if len(shapes) > 1:
        raise MismatchError(
            f"The features in {what} have different shapes: {', '.join(map(str, sorted(shapes)[:3]))}; make them alike."
        )
    return (np.stack(xs), np.stack(ys)) if xs else (np.empty((0, 1), np.float32), np.empty(0, np.int64))


def _copied(value: Any) -> AnyArray:
    """A copy of an array or a tensor; of the latter's values, wherever they are and whatever hangs on them."""
    return np.array(np.asarray(value.detach().cpu() if hasattr(value, "detach") else value))


def from_huggingface(
    dataset: Any,
    *,
    x: str | Sequence[str],
    y: str,
    test: Any = None,
    client: str | None = None,
    columns: Sequence[str] = (),
    name: str = "huggingface",
) -> Dataset:
    """A data set of a Hugging Face ``Dataset``, read once into memory.

    Args:
        dataset: the training rows.
        x: the column of features, or several columns of numbers. Pictures become [N, C, H, W] float32 in [0, 1].
        y: the column of targets.
        test: the test rows, with the same columns.
        client: the column that says who holds a row; it becomes the natural one.
        columns: further columns to keep for partitions.

    Raises:
        UnknownName: there is no such column.
        UsageError: values that are not numbers, or are missing.
    """
    kept = [*([client] if client else []), *columns]
    held = [_hugging(part, x, y, kept) for part in ([dataset] if test is None else [dataset, test])]
    features, targets, named = held[0]
    known = getattr(dataset.features.get(y), "num_classes", None)
    made = from_arrays(
        features,
        targets,
        test=held[1][:2] if test is not None else None,
        columns=named,
        test_columns=held[1][2] if test is not None else None,
        classes=known,
        name=name,
    )
    return replace(made, natural=client)


def _hugging(rows: Any, x: str | Sequence[str], y: str, kept: Sequence[str]) -> tuple[AnyArray, AnyArray, dict[str, AnyArray]]:
    if not hasattr(rows, "column_names") or not hasattr(rows, "features"):
        raise UsageError(f"{type(rows).__name__} is not a Hugging Face Dataset; choose one of its splits first.")
    wanted = [x] if isinstance(x, str) else list(x)
    for column in [*wanted, y, *kept]:
        if column not in rows.column_names:
            raise UnknownName("column", column, rows.column_names)
    parts = [_numbers_of(rows, column) for column in wanted]
    features = parts[0] if isinstance(x, str) else np.column_stack(parts)
    plain = rows.with_format(None)
    return features, _numbers_of(rows, y), {column: np.asarray(plain[column][:]) for column in kept}


def _numbers_of(rows: Any, column: str) -> AnyArray:
    if type(rows.features[column]).__name__ == "Image":
        pictures = [np.asarray(picture) for picture in rows.with_format(None)[column]]
        if len({picture.shape for picture in pictures}) > 1:
            raise MismatchError(f"The pictures in column {column!r} have different sizes; make them alike first.")
        stacked = np.stack(pictures)
        stacked = stacked[:, None] if stacked.ndim == 3 else stacked.transpose(0, 3, 1, 2)
        return np.ascontiguousarray(stacked, np.float32) / np.float32(255)
    try:
        values = np.asarray(rows.with_format(None)[column][:])
    except ValueError:
        raise MismatchError(f"The rows of column {column!r} have different lengths; pad them first.") from None
    if values.dtype.kind not in "iufb":
        raise UsageError(
            f"Column {column!r} holds {values.dtype.name}, not numbers; encode it or leave it out, and fill what is missing."
        )
    return values


def _pair(what: str, pair: Any) -> tuple[AnyArray, AnyArray]:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise UsageError(f"{what} is {type(pair).__name__}; give a pair (x, y).")
    x, y = _features(f"x of {what}", pair[0]), _targets(f"y of {what}", pair[1])
    _same_length(f"x of {what}", x, f"y of {what}", y)
    return x, y


def _features(what: str, values: Any) -> AnyArray:
    array = _numeric(what, values)
    if array.ndim == 0:
        raise UsageError(f"{what} is one number; give an array with an example per row.")
    if array.ndim == 1:
        array = array[:, None]
    if array.dtype.kind == "f":
        finite_only(what, array)
        return np.ascontiguousarray(array, np.float32)
    return np.ascontiguousarray(array, np.float32) if array.dtype.kind == "b" else array


def _targets(what: str, values: Any) -> AnyArray:
    array = _numeric(what, values)
    if array.ndim == 0:
        raise UsageError(f"{what} is one number; give an array with a target per row.")
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.dtype.kind == "f":
        finite_only(what, array)
        return np.ascontiguousarray(array, np.float32)
    array = array.astype(np.int64)
    if array.ndim == 1 and array.size and array.min() < 0:
        raise UsageError(
            f"{what} holds the label {array.min()}; labels are numbered from 0 (numpy.unique(y, return_inverse=True))."
        )
    return array


def _numeric(what: str, values: Any) -> AnyArray:
    try:
        array = np.asarray(values)
    except ValueError:
        raise UsageError(f"{what} has rows of different lengths; make it a full array of numbers.") from None
    if array.dtype.kind not in "iufb":
        raise UsageError(f"{what} holds {array.dtype.name} values, not numbers; make it an array of numbers.")
    return array


def finite_only(what: str, array: AnyArray) -> None:
    """Refuse NaN and infinity.

    Raises:
        UsageError: says how many and where the first is.
    """
    rows = max(1, (1 << 22) // max(1, array[:1].size))
    bad, first = 0, ""
    for start in range(0, len(array), rows):
        wrong = ~np.isfinite(array[start : start + rows])
        if wrong.any():
            bad += int(wrong.sum())
            if not first:
                place = np.argwhere(wrong)[0]
                place[0] += start
                first = f"[{', '.join(map(str, place.tolist()))}]"
    if bad:
        raise UsageError(
            f"{what} holds {bad:,} values that are NaN or infinite, the first at {first}; fill them or drop those rows."
        )


def _same_length(a: str, x: AnyArray, b: str, y: AnyArray) -> None:
    if len(x) != len(y):
        raise MismatchError(f"{a} holds {len(x):,} examples, but {b} holds {len(y):,}; they must be equal.")


def _alike(a: str, x: AnyArray, y: AnyArray, b: str, x0: AnyArray, y0: AnyArray) -> None:
    for what, mine, theirs in (("features", x, x0), ("targets", y, y0)):
        if mine.shape[1:] != theirs.shape[1:]:
            raise MismatchError(f"The {what} of {a} have shape {mine.shape[1:]}, but those of {b} have {theirs.shape[1:]}.")
        if mine.size and theirs.size and (mine.dtype.kind == "f") != (theirs.dtype.kind == "f"):
            raise MismatchError(f"The {what} of {a} are {mine.dtype}, but those of {b} are {theirs.dtype}; make them alike.")


def _columns(columns: Mapping[str, Any] | None, x: AnyArray | None, what: str) -> dict[str, AnyArray]:
    made = {name: np.asarray(values) for name, values in (columns or {}).items()}
    for name, values in made.items():
        if values.dtype.kind == "O":
            raise UsageError(f"Column {name!r} holds objects or missing values; make it an array of numbers or of texts.")
        length = 0 if x is None else len(x)
        if values.shape != (length,):
            raise MismatchError(f"Column {name!r} has shape {values.shape}, but {what} holds {length:,} examples.")
    return made


def _classes(given: int | None, *targets: AnyArray | None) -> int | None:
    known = [y for y in targets if y is not None and y.size]
    if known[0].dtype.kind == "f":
        return None
    found = 1 + max(int(y.max()) for y in known)
    if given is not None and found > given:
        raise MismatchError(f"classes is {given}, but there is a label {found - 1}; labels are numbered from 0.")
    return given or found


def _offsets(parts: Sequence[Pair]) -> AnyArray:
    return np.concatenate([[0], np.cumsum([len(x) for x, _ in parts])]).astype(np.int64)

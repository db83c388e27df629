# SPDX-License-Identifier: Apache-2.0
"""Records of one client each and records of a stack [K, ...], from one to the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedweave.contract import Array, Arrays, Update


def together(records: Sequence[Any], device: torch.device | None = None) -> Any:
    """One record for a stack: [K, ...] of arrays, [K, 1] of numbers, on ``device``; what is the same for all stays as it is.
    None of Nones."""
    first = records[0]
    if first is None or all(record is first for record in records):
        return first
    made = {name: _together([record[name] for record in records], device) for name in first}
    return type(first)(**made)


def _together(values: list[Any], device: torch.device | None) -> Any:
    first = values[0]
    if all(value is first for value in values):
        return first
    if isinstance(first, Tensor):
        return torch.stack(values)
    return first if all(value == first for value in values) else columns(values, device)


def columns(values: Sequence[Any], device: torch.device | None = None) -> Any:
    """[K, 1] of numbers, on ``device``, [K, ...] of arrays, None of Nones."""
    if values[0] is None:
        return None
    if isinstance(values[0], Tensor):
        return torch.stack(list(values))
    return torch.tensor(values, dtype=torch.float64, device=device).unsqueeze(1)


def pick(record: Any, rows: Any) -> Any:
    """The same record for some of the rows; what is the same for all stays as it is.

    A value belongs to the rows if it has two dimensions or more.
    """
    if record is None:
        return None
    where = None if isinstance(rows, slice) else torch.from_numpy(np.ascontiguousarray(rows))

    def picked(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.ndim < 2:
            return value
        return value[rows] if where is None else value.index_select(0, where.to(value.device))

    return record.map(picked)


def split(
    made: tuple[Update, Arrays | None], alone: tuple[Update, Arrays | None], count: int
) -> list[tuple[Update, Arrays | None]]:
    """What each client of a stack sends and keeps; ``alone``, the first one's, shows which values are numbers and which shape
    arrays have."""
    sent, kept = (_split(record, pattern, count) for record, pattern in zip(made, alone, strict=True))
    return list(zip(sent, kept, strict=True))


def _split(record: Any, pattern: Any, count: int) -> list[Any]:
    if pattern is None or record is None:
        return [None] * count
    found = {name: _values(record[name], like, count) for name, like in pattern.items()}
    return [type(pattern)(**{name: values[k] for name, values in found.items()}) for k in range(count)]


def _values(value: Array, like: Array, count: int) -> Sequence[Any]:
    if not isinstance(like, Tensor) or like.ndim == 0:
        if not isinstance(value, Tensor) or value.numel() == 1:
            return [value if not isinstance(value, Tensor) else value.item()] * count
        numbers = value.reshape(count).tolist()
        return [type(like)(number) for number in numbers] if isinstance(like, (int, float)) else numbers
    rows = torch.broadcast_to(value.to(like.dtype), (count, *like.shape))
    return list(rows.unbind(0))


def finite_rows(update: Update, count: int) -> list[bool]:
    """Of each client of a stack: whether all that it sends is certainly finite, and its weight not negative."""
    sound: Tensor | None = None
    for name, value in update.items():
        if not isinstance(value, Tensor) or value.numel() % count:
            return [False] * count
        rows = value.reshape(count, -1)
        # A finite sum has only finite terms.
        fine = torch.isfinite(rows.sum(1)) if name != "weight" else (torch.isfinite(rows) & (rows >= 0)).all(1)
        sound = fine if sound is None else sound & fine
    return [True] * count if sound is None else [bool(row) for row in sound.tolist()]

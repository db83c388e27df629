# SPDX-License-Identifier: Apache-2.0
"""A reduction over updates that lie in files, a block of columns at a time: memory for a few blocks, however long they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from array_api_compat import is_array_api_obj

from fedweave import blocks
from fedweave.reduce import base
from fedweave.reduce.base import Partial, Reduction
from fedweave.values import Array, Update

Step = tuple[str, Any]
"""What was asked: ``empty``, ``add`` an update, ``merge``, ``scaled`` by a factor but for some names; each works on what the
steps before it left on a stack."""


@dataclass(frozen=True)
class Streamed:
    """Any reduction that treats every coordinate for itself, asked only when the result is wanted: for each block of columns
    all that was asked is done anew, in the same order, so that the result is the same to the bit.

    Args:
        reduction: what is done; its ``linear`` says whether it is a mean.
        room: where the result's long arrays are put.
    """

    reduction: Reduction
    room: blocks.Room

    @property
    def linear(self) -> bool:
        return base.linear(self.reduction)

    def empty(self) -> list[Step]:
        return [("empty", None)]

    def add(self, partial: list[Step], update: Update) -> list[Step]:
        partial.append(("add", update))
        return partial

    def merge(self, first: list[Step], second: list[Step]) -> list[Step]:
        first += second
        first.append(("merge", None))
        return first

    def scaled(self, partial: list[Step], factor: float, but: tuple[str, ...] = ()) -> list[Step]:
        partial.append(("scaled", (factor, but)))
        return partial

    def result(self, partial: list[Step]) -> Update | None:
        # Whatever is short, and the first block of what is long, come at once.
        made = self._done(partial, lambda update: update.map(lambda value: _cut(value, 0)))
        if made is None:
            return None
        updates = [given for kind, given in partial if kind == "add"]
        shapes = {name: value.shape for update in updates for name, value in update.items() if is_array_api_obj(value)}
        long: dict[str, Array] = {}
        for name, shape in shapes.items():
            size = max(value.size for update in updates if (value := update.get(name)) is not None)
            if size > blocks.VALUES and name in made:
                long[name] = self._streamed(partial, name, made[name], size).reshape(shape)
        return made.replace(**long)

    def _streamed(self, partial: list[Step], name: str, first: Array, size: int) -> Array:
        sink = self.room.sink(first.dtype)
        sink.write(first)
        for start in range(blocks.VALUES, size, blocks.VALUES):

            def only(update: Update, start: int = start) -> Update:
                here = {name: _cut(update[name], start)} if name in update else {}
                return Update(weight=update.weight, **here)

            made = self._done(partial, only)
            assert made is not None
            sink.write(made[name])
            for kind, given in partial:
                if kind == "add" and name in given:
                    blocks.release(given[name])
        return sink.close()

    def _done(self, partial: list[Step], cut: Callable[[Update], Update]) -> Update | None:
        """What comes of these parts of the updates."""
        stack: list[Partial] = []
        for kind, given in partial:
            match kind:
                case "empty":
                    stack.append(self.reduction.empty())
                case "add":
                    stack.append(self.reduction.add(stack.pop(), cut(given)))
                case "scaled":
                    stack.append(base.scaled(self.reduction, stack.pop(), *given))
                case _:
                    second, first = stack.pop(), stack.pop()
                    stack.append(self.reduction.merge(first, second))
        return self.reduction.result(stack.pop())


def _cut(value: Array, start: int) -> Array:
    if not is_array_api_obj(value) or value.size <= blocks.VALUES:
        return value
    return value.reshape(-1)[start : start + blocks.VALUES]

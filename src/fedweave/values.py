# SPDX-License-Identifier: Apache-2.0
"""The values that move: records of named arrays. A round is a conversation of two of them, an Ask and an Update.

Shapes: ``[P]`` is one client's flat vector of P parameters; a stack of K clients is ``[K, P]``, and its per-client
scalars are ``[K, 1]``, so the same expression serves both by broadcasting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

Array = Any
"""A NumPy array or a torch tensor: whatever follows the Python array API."""


class Arrays(Mapping[str, Array]):
    """Named arrays and scalars. Immutable: ``replace`` makes a changed copy. ``r.name`` and ``r["name"]`` are the same."""

    __slots__ = ("_items",)
    _items: dict[str, Array]

    def __init__(self, **items: Array) -> None:
        object.__setattr__(self, "_items", items)

    def __getattr__(self, name: str) -> Array:
        try:
            return self._items[name]
        except KeyError:
            held = ", ".join(self._items) or "nothing"
            raise AttributeError(f"{type(self).__name__} holds no {name!r}; it holds {held}") from None

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable; use replace({name}=...)")

    def __reduce__(self) -> tuple[Any, ...]:
        """For processes of one's own that exchange records."""
        return _remade, (type(self), self._items)

    def __getitem__(self, name: str) -> Array:
        return self._items[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        def short(value: Array) -> str:
            shape = tuple(getattr(value, "shape", ()))
            return f"{list(shape)}" if shape else repr(value)

        return f"{type(self).__name__}({', '.join(f'{k}={short(v)}' for k, v in self._items.items())})"

    def replace(self, **items: Array) -> Self:
        """A copy with some names set."""
        return type(self)(**{**self._items, **items})

    def map(self, change: Callable[[Array], Array]) -> Self:
        """A copy with ``change`` applied to everything it holds."""
        return type(self)(**{name: change(value) for name, value in self._items.items()})


def _remade(kind: type[Arrays], items: dict[str, Array]) -> Arrays:
    return kind(**items)


class State(Arrays):
    """What the server keeps between rounds: ``weights`` [P] and whatever the algorithm adds (momentum, control variate)."""


class Ask(Arrays):
    """All that a client may know this round: ``weights`` [P] to start from and whatever the algorithm adds."""


class Update(Arrays):
    """What a client sends: named arrays, usually ``delta`` [P] = its weights - the server's, and its ``weight``.

    ``weight`` says how much the client counts (its examples, by default); a reduction turns many updates into one, whose
    ``weight`` is the sum of theirs.
    """

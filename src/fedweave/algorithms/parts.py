# SPDX-License-Identifier: Apache-2.0
"""What personalised algorithms have in common: parts of the vector that stay home, and clients with a model of their own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Self

from array_api_compat import array_namespace

from fedweave.contract import Algorithm, Array, Arrays, Ask, Cohort, State, Update, Work
from fedweave.errors import UsageError
from fedweave.layout import Layout


@dataclass(frozen=True)
class Parts:
    """Which stretches of the flat vector [P] are shared, [S] in all, and which stay home, [H] in all.

    Args:
        pieces: (length, whether it stays home) of each stretch, in order.
    """

    pieces: tuple[tuple[int, bool], ...] = ()

    @classmethod
    def of(cls, layout: Layout, stays: Callable[[str], bool]) -> Parts:
        """By the name of each parameter."""
        pieces: list[tuple[int, bool]] = []
        for slot in layout.parameters:
            home = stays(slot.name)
            before = pieces.pop()[0] if pieces and pieces[-1][1] == home else 0
            pieces.append((before + slot.size, home))
        return cls(tuple(pieces))

    def shared(self, y: Array) -> Array:
        """[..., S] of [..., P]."""
        return self._taken(y, False)

    def home(self, y: Array) -> Array:
        """[..., H] of [..., P]."""
        return self._taken(y, True)

    def joined(self, shared: Array, home: Array) -> Array:
        """[..., P] of [..., S] and [..., H], either of which may be one for a whole stack."""
        xp, lead = array_namespace(shared, home), max(shared.shape[:-1], home.shape[:-1], key=len)
        stretches, at = [], {False: 0, True: 0}
        for length, stays in self.pieces:
            source = home if stays else shared
            stretches.append(xp.broadcast_to(source[..., at[stays] : at[stays] + length], (*lead, length)))
            at[stays] += length
        return xp.concat(stretches, axis=-1)

    def _taken(self, y: Array, wanted: bool) -> Array:
        if not self.pieces:
            raise UsageError("The algorithm does not know the model's layers yet: use what algorithm.bind(layout) returns.")
        stretches, at = [], 0
        for length, home in self.pieces:
            if home == wanted:
                stretches.append(y[..., at : at + length])
            at += length
        return array_namespace(y).concat(stretches, axis=-1) if stretches else y[..., :0]


@dataclass(frozen=True)
class PartlyShared(Algorithm):
    """FedAvg of some layers; each client trains the others for itself and sends nothing of them.

    A client that never took part has the server's layers, which keep their first values where they stay home.
    """

    parts: Parts = field(default=Parts(), init=False, repr=False, compare=False)

    def keeping(self, layout: Layout, stays: Callable[[str], bool], how: str) -> Self:
        """The algorithm with the parameters that stay home; ``how`` names the choice in an error.

        Raises:
            UsageError: nothing would be shared.
        """
        parts = Parts.of(layout, stays)
        if all(home for _, home in parts.pieces):
            raise UsageError(f"{how} keeps every layer of the model home, so nothing would be shared. Choose fewer layers.")
        bound = copy.copy(self)
        object.__setattr__(bound, "parts", parts)
        return bound

    def start(self, ask: Ask, mine: Arrays | None) -> Array:
        return self.personal(ask.weights, mine)

    def report(self, delta: Array, work: Work, ask: Ask, mine: Arrays | None) -> tuple[Update, Arrays | None]:
        home = self.parts.home(self.start(ask, mine)) + self.parts.home(delta)
        return Update(delta=self.parts.shared(delta), weight=self.weight(work)), Arrays(home=home)

    def step(self, state: State, aggregate: Update, cohort: Cohort) -> State:
        shared = self.parts.shared(state.weights) + aggregate.delta
        return state.replace(weights=self.parts.joined(shared, self.parts.home(state.weights)))

    def personal(self, weights: Array, mine: Arrays | None) -> Array:
        return weights if mine is None else self.parts.joined(self.parts.shared(weights), mine.home)


def head_of(layout: Layout, head: int | str) -> Callable[[str], bool]:
    """Whether a parameter belongs to the last ``head`` layers (tensors of one module, ``"5.weight"`` and ``"5.bias"``), or
    to those whose names match a pattern.

    Raises:
        UsageError: none does.
    """
    if isinstance(head, str):
        return matching(layout, head, f"head={head!r}")
    layers = list(dict.fromkeys(layer(slot.name) for slot in layout.parameters))
    return lambda name: layer(name) in layers[-head:]


def matching(layout: Layout, pattern: str, how: str) -> Callable[[str], bool]:
    """Whether a parameter's name matches a pattern; ``how`` names the choice in an error.

    Raises:
        UsageError: none does.
    """
    names = [slot.name for slot in layout.parameters]
    if not any(fnmatchcase(name, pattern) for name in names):
        some = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        raise UsageError(f"{how} matches no parameter of the model, which has {some}. Choose another pattern.")
    return lambda name: fnmatchcase(name, pattern)


def layer(name: str) -> str:
    """The module that a tensor belongs to: ``"5"`` of ``"5.weight"``."""
    return name.rpartition(".")[0]


def is_head(head: object) -> None:
    """See that it is a number of layers or a pattern.

    Raises:
        UsageError: it is neither.
    """
    whole = isinstance(head, int) and not isinstance(head, bool) and head >= 1
    if not whole and not (isinstance(head, str) and head):
        raise UsageError(f"head is {head!r}; give a whole number of layers from 1 up, or a pattern such as 'classifier.*'.")


def no_buffers(algorithm: Algorithm, layout: Layout) -> None:
    """See that a second model can be trained beside the first.

    Raises:
        UsageError: the model has buffers, which would mix the statistics of both.
    """
    if layout.buffers:
        raise UsageError(
            f"{type(algorithm).__name__} cannot train a model with buffers ({layout.buffers[0].name}): a client's own model "
            f"would need statistics of its own. Use GroupNorm or LayerNorm in place of BatchNorm, or the algorithm fedbn."
        )


def idle(work: Work) -> bool:
    """Whether no step was taken, by nobody of a stack."""
    steps = work.steps
    return not (steps if isinstance(steps, int) else bool(array_namespace(steps).any(steps > 0)))

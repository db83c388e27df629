# SPDX-License-Identifier: Apache-2.0
"""What is noted of a client's update where it was made: a few numbers and a sketch, whatever the size of the model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from array_api_compat import array_namespace, is_array_api_obj

from fedweave.contract import Local, Work
from fedweave.diagnosis.sketch import sketched
from fedweave.values import Array, Update

FEW, FIRST, SPARSE = 5, 20, 10
"""Where a usual client takes fewer than ``FEW`` local steps, the rounds up to ``FIRST`` are looked at and then two of every
``SPARSE``."""


@dataclass(frozen=True)
class Seen:
    """One counted client in one round.

    Args:
        client: its number.
        weight: how much its update counts.
        steps, examples: the work it did: local steps taken, examples held.
        loss: mean loss over its local steps.
        norm: Euclidean norm of the change that it sent.
        sketch: of that change [251]; None if what it sent is no change of one vector.
        gradient_norm, gradient_sketch: of the gradient over all of its data at the weights it was sent, where the algorithm
            measures it.
        staleness: server steps between the weights that it started from and those that its update entered.
    """

    client: int
    weight: float
    steps: int
    examples: int
    loss: float
    norm: float = math.nan
    sketch: npt.NDArray[np.float32] | None = None
    gradient_norm: float = math.nan
    gradient_sketch: npt.NDArray[np.float32] | None = None
    staleness: int = 0


def observe(client: int, update: Update, work: Work, loss: float, seed: int, staleness: int = 0) -> Seen:
    """What is noted of an update that was accepted; changes nothing.

    Args:
        update: as it was sent: its ``delta``, or the negative of its ``gradient``, is the change.
        work: what the client did.
        loss: mean loss over its local steps.
        seed: the run's; addresses the signs of the sketch, which all clients share.
    """
    norms, sketches = _measured(_change(update, work), seed)
    gradients, drawn = _measured(work.start_gradient, seed)
    return Seen(
        int(client), float(update.weight), int(work.steps), int(work.examples), float(loss),
        norms[0], sketches[0], gradients[0], drawn[0], staleness,
    )  # fmt: skip


def observe_stack(
    clients: Sequence[int],
    update: Update,
    work: Work,
    losses: Sequence[float],
    seed: int,
    keep: Sequence[bool] | None = None,
) -> tuple[Seen, ...]:
    """The same of a stack of K clients, whose arrays are [K, P] and whose numbers are [K, 1] or one for all.

    Args:
        keep: whose updates were accepted; all unless given.
    """
    many = len(clients)
    norms, sketches = _measured(_change(update, work), seed, many)
    gradients, drawn = _measured(work.start_gradient, seed, many)
    weight, steps, examples = (_column(value, many) for value in (update.weight, work.steps, work.examples))
    return tuple(
        Seen(
            int(clients[k]), float(weight[k]), int(steps[k]), int(examples[k]), float(losses[k]),
            norms[k], sketches[k], gradients[k], drawn[k],
        )
        for k in range(many)
        if keep is None or keep[k]
    )  # fmt: skip


def watched(round: int, local: Local, examples: int) -> bool:
    """Whether a round is observed, by a rule: to look at an update costs about as much as one local step of a small model, so
    where clients take few steps only some rounds are looked at, two neighbouring ones at a time.

    Args:
        examples: of a usual client.
    """
    return round <= FIRST or (round - 1) % SPARSE < 2 or local.steps_for(max(examples, 1)) >= FEW


def _change(update: Update, work: Work) -> Array:
    """The change [..., P] that the update asks for; None if it is none of one vector in the run's own layout."""
    if work.end is not None:
        return None
    found = update.get("delta")
    if found is None and (gradient := update.get("gradient")) is not None:
        found = -gradient
    return found if is_array_api_obj(found) else None


def _measured(vectors: Array, seed: int, many: int = 1) -> tuple[list[float], Sequence[npt.NDArray[np.float32] | None]]:
    """Norm and sketch of each of K rows."""
    if vectors is None:
        return [math.nan] * many, [None] * many
    xp = array_namespace(vectors)
    rows = xp.reshape(vectors, (many, -1))
    norms = xp.linalg.vector_norm(rows, axis=-1)
    return [float(norm) for norm in _host(norms)], list(_host(sketched(rows, seed)).astype(np.float32, copy=False))


def _column(value: Any, many: int) -> list[Any]:
    if not is_array_api_obj(value):
        return [value] * many
    found: list[Any] = np.broadcast_to(_host(value).reshape(-1), (many,)).tolist()
    return found


def _host(array: Array) -> npt.NDArray[Any]:
    return np.asarray(array.detach().cpu() if hasattr(array, "detach") else array)

# SPDX-License-Identifier: Apache-2.0
"""Whether what a client sends over a network may enter the model, said in three steps, each before the next costs anything.

    declared(examples)      when a client joins: how much data it says it has
    misplaced(claim)        before a byte of an update is taken: is it the answer to a task that this client has now?
    fault(update)           when all of it is there: its arrays, their values, its weight

Each returns why not, in words that the client prints and the ledger keeps, or None. A reason ends the update, never the round.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from dataclasses import dataclass

import numpy as np

from fedweave.coordinator import fault as coordinator_fault
from fedweave.net.identifiers import shown
from fedweave.values import Update
from fedweave.wire.headers import Tensor

MOST_EXAMPLES = 2**40
"""No client has more examples: a declaration beyond is a mistake, or an attempt to count for everything."""


@dataclass(frozen=True)
class Claim:
    """What a client says that its update is, as it came; and what the coordinator awaits, whose ``nbytes`` is the most.

    Args:
        client: of a claim, the name in the certificate.
    """

    run: str
    round: int
    task: str
    client: str
    nbytes: int


def declared(examples: object, most: int = MOST_EXAMPLES) -> str | None:
    """Why a client cannot have so many examples; None if it can."""
    if type(examples) is int and 0 < examples <= most:
        return None
    plain = isinstance(examples, float) or (type(examples) is int and abs(examples) < 2**64)
    value = f"{examples:.6g}" if plain else shown(examples)
    return f"it declares {value} examples; it must be a whole number from 1 to {most}"


def misplaced(claim: Claim, awaited: Claim) -> str | None:
    """Why an update is not the answer that is awaited; None if it is."""
    if claim.client != awaited.client:
        return f"it is for a task of {shown(awaited.client)}, not of {shown(claim.client)}"
    if claim.run != awaited.run:
        return f"it is for the run {shown(claim.run)}, not {shown(awaited.run)}"
    if claim.task != awaited.task:
        return f"it is for the task {shown(claim.task)}, not {shown(awaited.task)}, which is the client's now"
    if claim.round != awaited.round:
        return f"it is for round {claim.round}, and round {awaited.round} is awaited"
    if not 0 < claim.nbytes <= awaited.nbytes:
        return f"it has {claim.nbytes} bytes, but an update of this run has at most {awaited.nbytes}"
    return None


def fault(update: Update, arrays: Mapping[str, Tensor], numbers: Set[str], examples: int, cap: float = 1.0) -> str | None:
    """Why what is in an update may not enter the model; None if it may.

    Args:
        arrays: name -> type and shape of each array of the update.
        numbers: names of what is no array; whole numbers and floats are both fine. ``weight`` is one of them, or an array of
            shape ().
        examples: that the client declared.
        cap: the most that ``weight`` may be, as a multiple of ``examples``. 1 is right for all algorithms that count by
            examples or alike; those that weight by losses (QFedAvg) need more.
    """
    wanted = arrays.keys() | numbers
    if missing := sorted(wanted - set(update)):
        return f"it lacks {_some(missing)}"
    if extra := sorted(set(update) - wanted):
        return f"it holds {_some(extra)}, which nobody asked for"
    for name, tensor in arrays.items():
        if reason := _unfit(update[name], tensor):
            return f"its {name} {reason}"
    for name in sorted(numbers):
        value = update[name]
        if type(value) not in (int, float) or (type(value) is int and abs(value) >= 2**63):
            return f"its {name} is no number of 64 bits"
    weight, most = float(update.weight), cap * examples
    if math.isfinite(weight) and not 0 < weight <= most:
        return f"its weight is {weight:.6g}; for the {examples} examples that it declared, up to {most:.6g} is taken"
    # A sum that overflows on the way to the answer is no news.
    with np.errstate(all="ignore"):
        return coordinator_fault(update)


def _unfit(value: object, tensor: Tensor) -> str | None:
    # Compared before anything is computed: NumPy would make (1,) fit (3,), and whole numbers pass for floats.
    if not isinstance(value, np.ndarray):
        return "is no array"
    if value.shape != tensor.shape:
        return f"has shape {list(value.shape)}, not {list(tensor.shape)}"
    if value.dtype != np.dtype(tensor.dtype):
        return f"is of type {value.dtype}, not {tensor.dtype}"
    return None


def _some(names: list[str]) -> str:
    return ", ".join(shown(name) for name in names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")

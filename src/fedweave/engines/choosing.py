# SPDX-License-Identifier: Apache-2.0
"""Which kernel and how many processes, by rules from the model, the shapes, the length of the run and the machine.

Never by a stopwatch: a kernel decides the last bit of a result, so that the same command must choose the same one. How many
processes there are changes no bit. ``calibrating`` measures, when it is asked to, and what it finds is written down.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fedweave.data import Split
from fedweave.engines.stacks import Mapped, Stack
from fedweave.engines.vectorized import width
from fedweave.engines.workers import possible
from fedweave.models import Model
from fedweave.reduce.parallel import cores

LARGE = 2**16
"""Parameters beyond which no stack is worth while."""
TOO_LARGE = "a stack of models this large would not fit the cache"
ALONE = 4
"""Clients of a cohort from which a stack of them is worth its calls."""
CALLS = {"chain": 1e-4, "autograd": 4e-4, "stack": 2e-5}
"""Seconds of a local step that are not arithmetic: of a written-out gradient, of an automatic one, of a client in a stack."""
RATE = 5e10
"""Arithmetic operations a second of one core, on small batches."""
REUSE = 10.0
"""How often a convolution or a recurrent layer uses each of its parameters for one example, as a rule of thumb."""
COMPILING = 20.0
"""Seconds of a core that the first compilation took, with torch 2.13 and g++; each later one 5, one found in the cache 1."""
SAVED = 1e-3
"""Seconds of a core that a compiled step of a mapped stack saves, with a wide margin: 2 ms became 0.15 ms."""
WORTH = 0.02
"""Seconds of a round from which more processes are worth their messages; a run of 10 times as many is worth their start."""


@dataclass(frozen=True)
class Work:
    """What a run asks for: ``cohort`` clients in each of ``rounds``, ``steps`` local steps of ``batch`` examples each."""

    cohort: int
    rounds: int
    steps: float
    batch: float

    @classmethod
    def of(cls, split: Split, cohort: int, rounds: int, epochs: float | None, steps: int | None, batch: int | None) -> Work:
        """Of the median client."""
        examples = float(np.median(split.sizes)) if split.clients else 0.0
        size = examples if batch is None else min(float(batch), examples)
        per_epoch = np.ceil(examples / size) if size else 0.0
        taken = float(steps) if steps is not None else float(epochs or 0) * float(per_epoch)
        return cls(cohort, rounds, taken, size)


@dataclass(frozen=True)
class Choice:
    """A kernel and a number of processes, and why."""

    kernel: str
    workers: int
    why: str


def choose(model: Model, stack: Stack | str, work: Work, kernel: str | None, workers: int | None) -> Choice:
    """What fits the work.

    Args:
        stack: the gradients of many of these models at once, or why there are none.
        kernel, workers: what is given already, or None.
    """
    parameters = model.layout.size
    if kernel is not None:
        why = "as asked for"
    elif isinstance(stack, str):
        kernel, why = "eager", f"one client at a time: {stack}"
    elif parameters > stack.most:
        kernel, why = "eager", f"one client at a time: {TOO_LARGE}"
    elif work.cohort < ALONE:
        kernel, why = "eager", f"one client at a time: a cohort of {work.cohort}"
    elif stack.name == Mapped.name and _pays(model, work):
        kernel, why = "compiled", f"many clients at once: {parameters:,} parameters, and more steps than a compilation takes"
    else:
        kernel, why = "vectorized", f"many clients at once: {parameters:,} parameters, so that a step is mostly calls"
    if workers is None:
        workers = _processes(model, work, kernel)
    return Choice(kernel, workers, why)


def seconds(model: Model, work: Work, kernel: str) -> float:
    """A rough guess of what a round takes one process."""
    calls = CALLS["stack"] if kernel != "eager" else CALLS["autograd" if model.chained is None else "chain"]
    arithmetic = 6.0 * model.layout.size * work.batch * (REUSE if model.heavy else 1.0) / RATE
    return work.cohort * work.steps * (calls + arithmetic)


def _pays(model: Model, work: Work) -> bool:
    """Whether a run is so long that compiled steps save twice what it takes to compile them."""
    stacks = math.ceil(work.cohort / width(model.layout.size, model.flat.itemsize))
    return stacks * work.steps * work.rounds * SAVED > 2 * COMPILING


def _processes(model: Model, work: Work, kernel: str) -> int:
    """As many as there are cores and clients for, if a round is long enough."""
    took = seconds(model, work, kernel)
    if not possible() or took < WORTH or took * work.rounds < 10 * WORTH:
        return 1
    return max(1, min(cores(), work.cohort))

# SPDX-License-Identifier: Apache-2.0
"""An engine put together: the kernel and the crew that a configuration asks for, or that fit the work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from fedweave.attacks import Attack
from fedweave.contract import Algorithm
from fedweave.data import Split
from fedweave.engines.base import Engine, Kept, Kernel
from fedweave.engines.cohorts import Cohorts, client_state
from fedweave.engines.eager import Eager
from fedweave.engines.inline import Inline
from fedweave.engines.measuring import Measure
from fedweave.engines.performing import Performer
from fedweave.engines.stacks import stack
from fedweave.engines.vectorized import Vectorized
from fedweave.local import Trainer
from fedweave.models import Model, tensor

ENGINES = ("auto", "eager", "vectorized")


@dataclass(frozen=True)
class Setup:
    """All that an engine is made from.

    Args:
        model: is overwritten.
        split: the data, and who holds what.
        algorithm: what is done.
        seed: addresses all draws.
        kept: what clients keep between their rounds.
        evaluate: ``"central"``, ``"clients"`` or ``"both"``.
        buffers: ``"mean"``: the clients' buffers enter the model as their parameters do; ``"keep"``: the server's stay.
        attack, byzantine: what bad clients do, and who they are.
        watch: told each client that is done.
        fresh: draws initial weights [P] for a client, where the algorithm's clients begin from their own.
    """

    model: Model
    split: Split
    algorithm: Algorithm
    seed: int
    kept: Kept
    evaluate: str = "central"
    buffers: str = "mean"
    attack: Attack | None = None
    byzantine: Sequence[int] = ()
    watch: Callable[[int], None] | None = None
    fresh: Callable[[int], Tensor] | None = None
    engine: str = "auto"
    workers: int = 1


def build(setup: Setup) -> Engine:
    """The engine."""
    s = setup
    x, y = tensor(s.split.x_train), tensor(s.split.y_train)
    honest = liar = Trainer(s.model, x, y, s.algorithm, s.fresh)
    if s.attack is not None and s.attack.flips_labels:
        liar = Trainer(s.model, x, s.attack.flipped(y, s.split.classes), s.algorithm, s.fresh)
    policy = "home" if s.algorithm.keeps_buffers else s.buffers
    kernel: Kernel = Eager(honest, liar)
    if s.engine == "vectorized":
        made = stack(s.model, x, y)
        if not isinstance(made, str):
            kernel = Vectorized(honest, liar, made, kernel)
    performer = Performer(kernel, s.split, s.seed, policy, s.byzantine, s.attack is not None)
    measure = Measure(
        s.model, s.split, s.algorithm, s.seed, s.evaluate, lambda client: client_state(s.kept, client), policy == "home"
    )
    return Cohorts(kernel.name, Inline(performer), kernel.chunk, measure, s.seed, s.kept, s.attack, s.byzantine, s.watch)

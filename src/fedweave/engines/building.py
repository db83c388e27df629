# SPDX-License-Identifier: Apache-2.0
"""An engine put together: the kernel and the crew that a configuration asks for, or that fit the work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from fedweave.attacks import Attack
from fedweave.contract import Algorithm
from fedweave.data import Split
from fedweave.engines.base import Crew, Engine, Kept, Kernel
from fedweave.engines.choosing import LARGE, TOO_LARGE, Work, choose
from fedweave.engines.cohorts import Cohorts, client_state
from fedweave.engines.eager import Eager
from fedweave.engines.inline import Inline
from fedweave.engines.measuring import Measure
from fedweave.engines.performing import Performer
from fedweave.engines.stacks import Stack, stack
from fedweave.engines.trying import refusal
from fedweave.engines.vectorized import Vectorized
from fedweave.engines.workers import Workers
from fedweave.errors import UnknownName
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
        engine: one of ENGINES.
        workers: processes; None: as many as are worth it.
        work: what the run asks for, from which an engine is chosen.
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
    workers: int | None = 1
    work: Work = field(default_factory=lambda: Work(1, 1, 1.0, 1.0))


def build(setup: Setup) -> Engine:
    """The engine.

    Raises:
        UnknownName, UsageError: there is no such engine, or not with this model or this many processes.
    """
    s = setup
    if s.engine not in ENGINES:
        raise UnknownName("engine", s.engine, ENGINES)
    x, y = tensor(s.split.x_train), tensor(s.split.y_train)
    honest = liar = Trainer(s.model, x, y, s.algorithm, s.fresh)
    if s.attack is not None and s.attack.flips_labels:
        liar = Trainer(s.model, x, s.attack.flipped(y, s.split.classes), s.algorithm, s.fresh)
    policy = "home" if s.algorithm.keeps_buffers else s.buffers
    made = _stack(s, x, y)
    choice = choose(s.model, made, s.work, None if s.engine == "auto" else s.engine, s.workers)
    kernel: Kernel = Eager(honest, liar)
    name = choice.kernel
    if choice.kernel == "vectorized":
        if isinstance(made, str):
            name, choice = "eager", replace(choice, why=f"not vectorized: {made}")
        else:
            kernel = Vectorized(honest, liar, made, kernel)
    performer = Performer(kernel, s.split, s.seed, policy, s.byzantine, s.attack is not None)
    measure = Measure(
        s.model, s.split, s.algorithm, s.seed, s.evaluate, lambda client: client_state(s.kept, client), policy == "home"
    )
    crew: Crew = Inline(performer) if choice.workers == 1 else Workers(performer, s.algorithm, choice.workers)
    return Cohorts(name, choice.why, crew, kernel.chunk, measure, s.seed, s.kept, s.attack, s.byzantine, s.watch)


def _stack(setup: Setup, x: Tensor, y: Tensor) -> Stack | str:
    """The gradients of many models at once, or why there are none."""
    if setup.engine == "eager":
        return "eager was asked for"
    if setup.algorithm.prepares:
        return f"{type(setup.algorithm).__name__} changes how each client trains"
    if setup.engine == "auto" and setup.model.layout.size > LARGE:
        return TOO_LARGE
    return refusal(setup.algorithm, setup.model.flat) or stack(setup.model, x, y)

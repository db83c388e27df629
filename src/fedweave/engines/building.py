# SPDX-License-Identifier: Apache-2.0
"""An engine put together: the kernel and the crew that a configuration asks for, or that fit the work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from fedweave.attacks import Attack
from fedweave.contract import Algorithm
from fedweave.data import Split
from fedweave.engines.base import Crew, Engine, Kept
from fedweave.engines.choosing import LARGE, TOO_LARGE, Work, choose
from fedweave.engines.cluster import RayCrew
from fedweave.engines.cohorts import Cohorts, client_state
from fedweave.engines.inline import Inline
from fedweave.engines.measuring import Measure
from fedweave.engines.recipe import Recipe
from fedweave.engines.stacks import Stack, stack
from fedweave.engines.trying import refusal
from fedweave.engines.workers import Workers
from fedweave.errors import UnknownName
from fedweave.models import Model, tensor

ENGINES = ("auto", "eager", "vectorized", "ray", "measure")
"""``measure`` is for the driver to settle: it tries the others."""


@dataclass(frozen=True)
class Setup:
    """All that an engine is made from.

    Args:
        model: is overwritten.
        make: makes its module again, for processes that have to make their own.
        split: the data, and who holds what.
        algorithm: what is done.
        seed: addresses all draws.
        kept: what clients keep between their rounds.
        evaluate: ``"central"``, ``"clients"`` or ``"both"``.
        buffers: ``"mean"``: the clients' buffers enter the model as their parameters do; ``"keep"``: the server's stay.
        attack, byzantine: what bad clients do, and who they are.
        watch: told each client that is done.
        fresh: draws initial weights [P] for a client, where the algorithm's clients begin from their own.
        engine: one of ``ENGINES``.
        workers: processes that train; None: as fits the engine and the work.
        work: what the run asks for, from which an engine is chosen.
        why: why this engine was asked for.
    """

    model: Model
    make: Callable[[], nn.Module]
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
    workers: int | None = None
    work: Work = field(default_factory=lambda: Work(1, 1, 1.0, 1.0))
    why: str = "as asked for"


def build(setup: Setup) -> Engine:
    """The engine.

    Raises:
        UnknownName, UsageError: there is no such engine, or not with this model or this many processes.
    """
    s = setup
    if s.engine not in ENGINES or s.engine == "measure":
        raise UnknownName("engine", s.engine, ENGINES)
    made = _stack(s)
    choice = choose(s.model, made, s.work, s.engine if s.engine in ("eager", "vectorized") else None, s.workers)
    if s.engine == choice.kernel:
        choice = replace(choice, why=s.why)
    if choice.kernel == "vectorized" and isinstance(made, str):
        choice = replace(choice, kernel="eager", why=f"not vectorized: {made}")
    recipe = Recipe(
        s.make, s.model.loss, s.model.metrics, s.split, s.algorithm, s.seed, s.buffers, s.attack, s.byzantine, s.fresh,
        choice.kernel,
    )  # fmt: skip
    performer = recipe.performer(s.model)
    crew: Crew
    if s.engine == "ray":
        crew = RayCrew(recipe, s.workers)
    elif choice.workers == 1:
        crew = Inline(performer)
    else:
        crew = Workers(performer, s.algorithm, choice.workers)
    home = recipe.policy == "home"
    measure = Measure(s.model, s.split, s.algorithm, s.seed, s.evaluate, lambda client: client_state(s.kept, client), home)
    chunk = performer.kernel.chunk
    return Cohorts(choice.kernel, choice.why, crew, chunk, measure, s.seed, s.kept, s.attack, s.byzantine, s.watch)


def _stack(setup: Setup) -> Stack | str:
    """The gradients of many models at once, or why there are none."""
    if setup.engine == "eager":
        return "eager was asked for"
    if setup.algorithm.prepares:
        return f"{type(setup.algorithm).__name__} changes how each client trains"
    if setup.engine != "vectorized" and setup.model.layout.size > LARGE:
        return TOO_LARGE
    x, y = tensor(setup.split.x_train), tensor(setup.split.y_train)
    return refusal(setup.algorithm, setup.model.flat) or stack(setup.model, x, y)

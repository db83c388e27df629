# SPDX-License-Identifier: Apache-2.0
"""An engine put together: the kernel and the crew that a configuration asks for, or that fit the work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from fedweave.attacks import Attack
from fedweave.contract import Algorithm
from fedweave.data import Split
from fedweave.engines.base import Crew, Engine, Kept
from fedweave.engines.cluster import RayCrew
from fedweave.engines.cohorts import Cohorts, client_state
from fedweave.engines.inline import Inline
from fedweave.engines.measuring import Measure
from fedweave.engines.recipe import Recipe
from fedweave.models import Model

ENGINES = ("auto", "eager", "ray")


@dataclass(frozen=True)
class Setup:
    """All that an engine is made from.

    Args:
        model: is overwritten.
        make: makes its module anew, in whatever process.
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
        workers: processes that train; None: as fits the engine.
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


def build(setup: Setup) -> Engine:
    """The engine."""
    s = setup
    recipe = Recipe(
        s.make, s.model.loss, s.model.metrics, s.split, s.algorithm, s.seed, s.buffers, s.attack, s.byzantine, s.fresh
    )
    performer = recipe.performer(s.model)
    kernel, crew, name = performer.kernel, cast(Crew, Inline(performer)), performer.kernel.name
    if s.engine == "ray":
        crew, name = RayCrew(recipe, s.workers), f"{kernel.name}, on a Ray cluster"
    home = recipe.policy == "home"
    measure = Measure(s.model, s.split, s.algorithm, s.seed, s.evaluate, lambda client: client_state(s.kept, client), home)
    return Cohorts(name, crew, kernel.chunk, measure, s.seed, s.kept, s.attack, s.byzantine, s.watch)

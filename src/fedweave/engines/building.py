# SPDX-License-Identifier: Apache-2.0
"""An engine put together: the kernel and the crew that a configuration asks for, or that fit the work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from fedweave.attacks import Attack
from fedweave.contract import Algorithm, Local
from fedweave.data import Split
from fedweave.engines.base import Crew, Engine, Kept
from fedweave.engines.choosing import LARGE, TOO_LARGE, Choice, Work, choose
from fedweave.engines.cluster import RayCrew
from fedweave.engines.cohorts import Cohorts, client_state
from fedweave.engines.compiled import Compiled, compiled
from fedweave.engines.device import accelerator, placed
from fedweave.engines.inline import Inline
from fedweave.engines.measuring import Measure
from fedweave.engines.performing import Performer
from fedweave.engines.recipe import Recipe
from fedweave.engines.stacks import Stack, stack
from fedweave.engines.trying import refusal
from fedweave.engines.vectorized import width
from fedweave.engines.workers import Workers
from fedweave.errors import UnknownName
from fedweave.local import plain_sgd
from fedweave.models import Model, tensor

ENGINES = ("auto", "eager", "vectorized", "compiled", "cuda", "ray", "measure")
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
        local: how its clients train.
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
    local: Local = field(default_factory=Local)


def build(setup: Setup) -> Engine:
    """The engine.

    Raises:
        UnknownName, UsageError: there is no such engine, or not with this model or this many processes.
    """
    s = setup
    if s.engine not in ENGINES or s.engine == "measure":
        raise UnknownName("engine", s.engine, ENGINES)
    model, choice, recipe, performer = _on_device(s, accelerator()) if s.engine == "cuda" else _here(s)
    crew: Crew
    if s.engine == "ray":
        crew = RayCrew(recipe, s.workers)
    elif choice.workers == 1:
        crew = Inline(performer)
    else:
        crew = Workers(performer, s.algorithm, choice.workers)
    home = recipe.policy == "home"
    measure = Measure(model, s.split, s.algorithm, s.seed, s.evaluate, lambda client: client_state(s.kept, client), home)
    chunk = performer.chunk if choice.kernel == "vectorized" else performer.kernel.chunk
    return Cohorts(choice.kernel, choice.why, crew, chunk, measure, s.seed, s.kept, s.attack, s.byzantine, s.watch)


def _here(s: Setup) -> tuple[Model, Choice, Recipe, Performer]:
    """What trains on this machine's processors."""
    made = _stack(s, s.model)
    choice = choose(s.model, made, s.work, None if s.engine in ("auto", "ray") else s.engine, s.workers)
    if s.engine == choice.kernel:
        choice = replace(choice, why=s.why)
    program: Compiled | str | None = None
    if isinstance(made, str):
        if choice.kernel != "eager":
            choice = replace(choice, kernel="eager", why=f"not {choice.kernel}: {made}")
    elif choice.kernel == "compiled":
        program = "programs are not sent to other machines" if s.engine == "ray" else _compiled(s, made)
        if isinstance(program, str):
            choice = replace(choice, kernel="vectorized", why=f"not compiled: {program}")
    recipe = _recipe(s, choice.kernel)
    return s.model, choice, recipe, recipe.performer(s.model, None if isinstance(program, str) else program)


def _on_device(s: Setup, device: torch.device) -> tuple[Model, Choice, Recipe, Performer]:
    """What trains on a device; the model is there."""
    model = placed(s.model, device)
    made = _stack(s, model)
    kernel, why = ("eager", f"one client at a time: {made}") if isinstance(made, str) else ("vectorized", s.why)
    if s.workers is not None and s.workers > 1:
        why += "; one process, since the device would be shared by all"
    recipe = _recipe(s, kernel)
    performer = recipe.performer(model, None if isinstance(made, str) else made, device)
    return model, Choice(f"cuda ({kernel}, {device})", 1, why), recipe, performer


def _recipe(s: Setup, kernel: str) -> Recipe:
    return Recipe(
        s.make, s.model.loss, s.model.metrics, s.split, s.algorithm, s.seed, s.buffers, s.attack, s.byzantine, s.fresh,
        "eager" if kernel == "eager" else "vectorized",
    )  # fmt: skip


def _compiled(s: Setup, made: Stack) -> Compiled | str:
    """The stack compiled for as many clients as a unit can have, and for their largest batch."""
    model, local, largest = s.model, s.local, int(s.split.sizes.max())
    clients = min(width(model.layout.size, model.flat.itemsize), s.work.cohort)
    batch = largest if local.batch_size is None else min(local.batch_size, largest)
    if clients < 2 or batch < 1:
        return f"a stack of {clients} has nothing to gain"
    kind = type(s.algorithm)
    hooked = kind.correct is not Algorithm.correct or kind.direction is not Algorithm.direction
    x, y = tensor(s.split.x_train), tensor(s.split.y_train)
    return compiled(made, model, x, y, clients, batch, plain_sgd(local) and not hooked)


def _stack(setup: Setup, model: Model) -> Stack | str:
    """The gradients of many models at once, or why there are none."""
    if setup.engine == "eager":
        return "eager was asked for"
    if setup.algorithm.prepares:
        return f"{type(setup.algorithm).__name__} changes how each client trains"
    if setup.engine in ("auto", "ray") and model.layout.size > LARGE:
        return TOO_LARGE
    x, y = (tensor(a[:4]).to(model.flat.device) for a in (setup.split.x_train, setup.split.y_train))
    return refusal(setup.algorithm, setup.model.flat) or stack(model, x, y)

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
from fedweave.engines.base import Crew, Engine, Kept, Kernel
from fedweave.engines.choosing import LARGE, TOO_LARGE, Work, choose
from fedweave.engines.cluster import RayCrew
from fedweave.engines.cohorts import Cohorts, client_state
from fedweave.engines.compiled import Compiled, compiled
from fedweave.engines.device import ROOM, OnDevice, accelerator, placed, resident
from fedweave.engines.eager import Eager
from fedweave.engines.inline import Inline
from fedweave.engines.measuring import Measure
from fedweave.engines.performing import Performer
from fedweave.engines.recipe import Recipe
from fedweave.engines.stacks import Stack, stack
from fedweave.engines.trying import refusal
from fedweave.engines.vectorized import Vectorized, width
from fedweave.engines.workers import Workers
from fedweave.errors import UnknownName
from fedweave.local import Trainer, plain_sgd
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
    x, y = tensor(s.split.x_train), tensor(s.split.y_train)
    crew: Crew
    policy, model = "home" if s.algorithm.keeps_buffers else s.buffers, s.model
    if s.engine == "ray":
        name, why, kernel, crew = _on_ray(s, x, y)
    else:
        if s.engine == "cuda":
            name, why, kernel, model = _on_device(s, x, y, accelerator())
            workers = 1
        else:
            name, why, kernel, workers = _here(s, x, y)
        performer = Performer(kernel, s.split, s.seed, policy, s.byzantine, s.attack is not None)
        crew = Inline(performer) if workers == 1 else Workers(performer, s.algorithm, workers)
    measure = Measure(
        model, s.split, s.algorithm, s.seed, s.evaluate, lambda client: client_state(s.kept, client), policy == "home"
    )
    return Cohorts(name, why, crew, kernel.chunk, measure, s.seed, s.kept, s.attack, s.byzantine, s.watch)


def _on_ray(s: Setup, x: Tensor, y: Tensor) -> tuple[str, str, Kernel, Crew]:
    """The kernel for a cluster's processes, its name and why it is this one, and who has it."""
    made = _stack(s, s.model, x, y)
    choice = choose(s.model, made, s.work, None, 1)
    name = "eager" if choice.kernel == "eager" or isinstance(made, str) else "vectorized"
    recipe = Recipe(
        s.make, s.model.loss, s.model.metrics, s.split, s.algorithm, s.seed, s.buffers, s.attack, s.byzantine, s.fresh, name
    )
    return name, choice.why, recipe.performer(s.model).kernel, RayCrew(recipe, s.workers)


def _here(s: Setup, x: Tensor, y: Tensor) -> tuple[str, str, Kernel, int]:
    """The kernel for this machine's processors, its name, why it is this one, and for how many processes."""
    honest, liar = _trainers(s, s.model, x, y)
    eager, made = Eager(honest, liar), _stack(s, s.model, x, y)
    choice = choose(s.model, made, s.work, None if s.engine == "auto" else s.engine, s.workers)
    if s.engine == choice.kernel:
        choice = replace(choice, why=s.why)
    if choice.kernel == "eager":
        return "eager", choice.why, eager, choice.workers
    if isinstance(made, str):
        return "eager", f"not {choice.kernel}: {made}", eager, choice.workers
    if choice.kernel == "vectorized":
        return "vectorized", choice.why, Vectorized(honest, liar, made, eager), choice.workers
    program = _compiled(s, honest, made, x, y)
    if isinstance(program, str):
        return "vectorized", f"not compiled: {program}", Vectorized(honest, liar, made, eager), choice.workers
    return "compiled", choice.why, Vectorized(honest, liar, program, eager), choice.workers


def _on_device(s: Setup, x: Tensor, y: Tensor, device: torch.device) -> tuple[str, str, Kernel, Model]:
    """The kernel on a device, its name and why it is this one, and the model there."""
    model, x, y = placed(s.model, device), resident(x, device), resident(y, device)
    honest, liar = _trainers(s, model, x, y)
    eager, made = Eager(honest, liar), _stack(s, model, x, y)
    kernel: Kernel = eager if isinstance(made, str) else Vectorized(honest, liar, made, eager, ROOM)
    why = f"one client at a time: {made}" if isinstance(made, str) else "as asked for"
    if s.workers is not None and s.workers > 1:
        why += "; one process, since the device would be shared by all"
    return f"cuda ({'eager' if isinstance(made, str) else 'vectorized'}, {device})", why, OnDevice(kernel, device), model


def _trainers(s: Setup, model: Model, x: Tensor, y: Tensor) -> tuple[Trainer, Trainer]:
    """On the data as they are, and on those that bad clients have."""
    honest = Trainer(model, x, y, s.algorithm, s.fresh)
    if s.attack is None or not s.attack.flips_labels:
        return honest, honest
    return honest, Trainer(model, x, s.attack.flipped(y, s.split.classes), s.algorithm, s.fresh)


def _compiled(s: Setup, trainer: Trainer, made: Stack, x: Tensor, y: Tensor) -> Compiled | str:
    """The stack compiled for as many clients as a unit can have, and for their largest batch."""
    model, local, largest = s.model, s.local, int(s.split.sizes.max())
    clients = min(width(model.layout.size, model.flat.itemsize), s.work.cohort)
    batch = largest if local.batch_size is None else min(local.batch_size, largest)
    if clients < 2 or batch < 1:
        return f"a stack of {clients} has nothing to gain"
    plain = not (trainer.corrects or trainer.directs) and plain_sgd(local)
    return compiled(made, model, x, y, clients, batch, plain)


def _stack(setup: Setup, model: Model, x: Tensor, y: Tensor) -> Stack | str:
    """The gradients of many models at once, or why there are none."""
    if setup.engine == "eager":
        return "eager was asked for"
    if setup.algorithm.prepares:
        return f"{type(setup.algorithm).__name__} changes how each client trains"
    if setup.engine in ("auto", "ray") and model.layout.size > LARGE:
        return TOO_LARGE
    return refusal(setup.algorithm, setup.model.flat) or stack(model, x, y)

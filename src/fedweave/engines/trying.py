# SPDX-License-Identifier: Apache-2.0
"""Whether an algorithm's hooks give a stack of clients what they give each of them: tried, not trusted."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fedweave.contract import Algorithm, Arrays, Cohort, Progress, Update, Work
from fedweave.engines.rows import columns, split, together

EXAMPLES, STEPS, LOSSES = (3, 8), (2, 5), (1.5, 0.5)


def refusal(algorithm: Algorithm, weights: Tensor) -> str | None:
    """Why an algorithm's clients cannot be a stack; None if they can.

    Args:
        weights: of the model, [P].
    """
    name = type(algorithm).__name__
    try:
        same = _agree(algorithm, weights)
    except Exception as error:  # whatever a hook of one's own raises when it is given a matrix
        return f"{name}'s hooks do not take a stack of clients ({type(error).__name__}: {str(error).splitlines()[0]})"
    return None if same else f"{name}'s hooks give a stack of clients other values than each of them"


def _agree(algorithm: Algorithm, weights: Tensor) -> bool:
    draw = torch.Generator().manual_seed(0)

    def drawn(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=draw, dtype=like.dtype)

    state = algorithm.init(weights.clone())
    if algorithm.surveys:
        state = algorithm.surveyed(state, Update(gradient=drawn(weights), weight=1.0), Cohort(2, 2, 2, 1))
    ask = algorithm.ask(state, 0)
    kept: list[Any] = [None, None]
    for _ in range(2):
        mine = together(kept)
        start = algorithm.start(ask, mine)
        starts = torch.broadcast_to(start, (2, start.shape[-1]))
        y, moved = starts + drawn(starts), drawn(starts)
        directions = algorithm.direction(y, torch.sin, ask, mine, Progress(0, 3, 2))
        works = [_work(algorithm, k, drawn(weights)) for k in range(2)]
        if algorithm.surveys:
            alone = [algorithm.survey(works[k], ask, kept[k]) for k in range(2)]
            if not _same(split(algorithm.survey(_stacked(algorithm, works), ask, mine), alone[0], 2), alone):
                return False
        alone = [algorithm.report(moved[k], works[k], ask, kept[k]) for k in range(2)]
        stacked = split(algorithm.report(moved, _stacked(algorithm, works), ask, mine), alone[0], 2)
        for k in range(2):
            begun = torch.equal(starts[k], algorithm.start(ask, kept[k]))
            towards = algorithm.direction(y[k], torch.sin, ask, kept[k], Progress(0, 3, 2))
            if not begun or not torch.allclose(directions[k], towards, 1e-4, 1e-5):
                return False
        if not _same(stacked, alone):
            return False
        kept = [record for _, record in alone]
    return True


def _work(algorithm: Algorithm, k: int, gradient: Tensor) -> Work:
    measured: dict[str, Any] = {"start_loss": LOSSES[k], "start_gradient": gradient, "class_counts": gradient.abs()}
    asked = {name: measured[name] for name in algorithm.needs}
    if algorithm.surveys:
        asked["start_gradient"] = gradient
    return Work(examples=EXAMPLES[k], steps=STEPS[k], lr=0.1, **asked)


def _stacked(algorithm: Algorithm, works: list[Work]) -> Work:
    names = {"examples", "steps", *algorithm.needs} | ({"start_gradient"} if algorithm.surveys else set())
    return Work(lr=0.1, **{name: columns([getattr(work, name) for work in works]) for name in names})


def _same(found: list[tuple[Update, Arrays | None]], alone: list[tuple[Update, Arrays | None]]) -> bool:
    return all(_close(a, b) for one, other in zip(found, alone, strict=True) for a, b in zip(one, other, strict=True))


def _close(a: Any, b: Any) -> bool:
    if a is None or b is None:
        return a is b
    return list(a) == list(b) and all(
        torch.allclose(torch.as_tensor(a[name]).double(), torch.as_tensor(b[name]).double(), 1e-4, 1e-5) for name in b
    )

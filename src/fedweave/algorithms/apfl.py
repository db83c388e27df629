# SPDX-License-Identifier: Apache-2.0
"""APFL: Deng, Kamani, Mahdavi, "Adaptive Personalized Federated Learning", 2020,
arXiv:2003.13461, Algorithm 1.

    paper                                           here
    w^(t)                                           ask.weights
    w_i <- w_i - eta grad f_i(w_i)                  y[..., :P]
    v_i <- v_i - eta alpha_i grad f_i(vbar_i)       y[..., P : 2P], kept as mine.v; that is the gradient of f_i(vbar_i) by v_i
    vbar_i = alpha_i v_i + (1 - alpha_i) w_i        mixed
    alpha_i <- alpha_i - eta <v_i - w_i, grad f_i(vbar_i)>, in [0, 1], at a round's first step
                                                    y[..., 2P:], kept as mine.alpha
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from array_api_compat import array_namespace

from fedweave.algorithms.parts import idle, no_buffers
from fedweave.contract import Algorithm, Array, Arrays, Ask, Gradient, Local, Progress, Update, Work, within
from fedweave.errors import UsageError
from fedweave.layout import Layout


@dataclass(frozen=True)
class APFL(Algorithm):
    """FedAvg, and each client uses a mixture of the global model and one of its own, in a proportion that it learns.

    Unequal work: the global model suffers from it as FedAvg's does; a client's own model depends on nobody else's work.

    Args:
        alpha: the share of the client's own model in the mixture, in [0, 1]; where it begins, if it is adaptive.
        adaptive: whether each client learns its own alpha, by one gradient step a round.
    """

    alpha: float = 0.5
    adaptive: bool = True
    paper: ClassVar[str] = "Deng et al., 2020, arXiv:2003.13461"
    pointwise: ClassVar[bool] = True
    assumes_sgd: ClassVar[str] = "alpha takes one plain gradient step a round"

    def __post_init__(self) -> None:
        super().__post_init__()
        within("alpha", self.alpha, 0, 1)
        if not isinstance(self.adaptive, bool):
            raise UsageError(f"adaptive is {self.adaptive!r}; it must be True or False.")

    def bind(self, layout: Layout) -> APFL:
        no_buffers(self, layout)
        return self

    def check(self, local: Local, cohort: int) -> None:
        super().check(local, cohort)
        if local.weight_decay:
            raise UsageError(f"APFL cannot be used with weight_decay={local.weight_decay}: it would shrink alpha. Set it to 0.")

    def start(self, ask: Ask, mine: Arrays | None) -> Array:
        xp, (v, alpha) = array_namespace(ask.weights), self._own(ask.weights, mine)
        return xp.concat([xp.broadcast_to(ask.weights, v.shape), v, alpha], axis=-1)

    def direction(self, y: Array, gradient: Gradient, ask: Ask, mine: Arrays | None, progress: Progress) -> Array:
        xp, size = array_namespace(y), ask.weights.shape[-1]
        w, v, alpha = y[..., :size], y[..., size : 2 * size], xp.clip(y[..., 2 * size :], 0.0, 1.0)
        slope_w, slope = gradient(w), gradient(mixed(alpha, v, w))
        slope_alpha = xp.zeros_like(alpha)
        if self.adaptive and progress.done == 0:
            slope_alpha = xp.sum((v - w) * slope, axis=-1, keepdims=True)
        return xp.concat([slope_w, alpha * slope, slope_alpha], axis=-1)

    def report(self, delta: Array, work: Work, ask: Ask, mine: Arrays | None) -> tuple[Update, Arrays | None]:
        size = ask.weights.shape[-1]
        update = Update(delta=delta[..., :size], weight=self.weight(work))
        if mine is None and idle(work):
            return update, None
        v, alpha = self._own(ask.weights, mine)
        alpha = array_namespace(alpha).clip(alpha + delta[..., 2 * size :], 0.0, 1.0)
        return update, Arrays(v=v + delta[..., size : 2 * size], alpha=alpha)

    def personal(self, weights: Array, mine: Arrays | None) -> Array:
        return weights if mine is None else mixed(mine.alpha, mine.v, weights)

    def _own(self, weights: Array, mine: Arrays | None) -> tuple[Array, Array]:
        if mine is not None:
            return mine.v, mine.alpha
        return weights, array_namespace(weights).full_like(weights[..., :1], self.alpha)


def mixed(alpha: Array, v: Array, w: Array) -> Array:
    """The mixture [..., P] of two models [..., P]; alpha [..., 1]."""
    return alpha * v + (1 - alpha) * w

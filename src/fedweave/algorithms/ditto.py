# SPDX-License-Identifier: Apache-2.0
"""Ditto: Li, Hu, Beirami, Smith, "Ditto: Fair and Robust Federated Learning Through Personalization", ICML 2021,
arXiv:2012.04221, Algorithm 1.

    paper                                                   here
    w^t                                                     ask.weights
    w_k, the client's copy of it, stepped as in FedAvg      y[..., :P]
    v_k, the client's own model                             y[..., P:], kept as mine.v
    v_k <- v_k - eta (grad F_k(v_k) + lambda (v_k - w^t))   direction, on the same batches
    lambda                                                  lam
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from array_api_compat import array_namespace

from fedweave.algorithms.parts import idle, no_buffers
from fedweave.contract import Algorithm, Array, Arrays, Ask, Gradient, Progress, Update, Work, within
from fedweave.layout import Layout


@dataclass(frozen=True)
class Ditto(Algorithm):
    """FedAvg, and beside it each client trains a model of its own that is held near the global one.

    Unequal work: the global model suffers from it as FedAvg's does; a client's own model depends on nobody else's work, and
    one that brings little stays where it was.

    Args:
        lam: how strongly a client's own model is held near the global one, from 0 (purely local training) up; lr * lam should
            stay below 1.
    """

    lam: float = 0.1
    paper: ClassVar[str] = "Li et al., ICML 2021, arXiv:2012.04221"
    pointwise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        within("lam", self.lam, 0)

    def bind(self, layout: Layout) -> Ditto:
        no_buffers(self, layout)
        return self

    def start(self, ask: Ask, mine: Arrays | None) -> Array:
        v, xp = self.personal(ask.weights, mine), array_namespace(ask.weights)
        return xp.concat([xp.broadcast_to(ask.weights, v.shape), v], axis=-1)

    def direction(self, y: Array, gradient: Gradient, ask: Ask, mine: Arrays | None, progress: Progress) -> Array:
        size = ask.weights.shape[-1]
        w, v = y[..., :size], y[..., size:]
        return array_namespace(y).concat([gradient(w), gradient(v) + self.lam * (v - ask.weights)], axis=-1)

    def report(self, delta: Array, work: Work, ask: Ask, mine: Arrays | None) -> tuple[Update, Arrays | None]:
        size = ask.weights.shape[-1]
        update = Update(delta=delta[..., :size], weight=self.weight(work))
        if mine is None and idle(work):
            return update, None
        return update, Arrays(v=self.personal(ask.weights, mine) + delta[..., size:])

    def personal(self, weights: Array, mine: Arrays | None) -> Array:
        return weights if mine is None else mine.v

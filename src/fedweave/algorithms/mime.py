# SPDX-License-Identifier: Apache-2.0
"""Mime and MimeLite: Karimireddy, Jaggi, Kale, Mohri, Reddi, Stich, Suresh, "Breaking the centralized barrier for cross-device
federated learning", NeurIPS 2021, arXiv:2008.03606, Algorithm 1, with SGD with momentum as the base optimiser.

    paper                                         here
    x, y_i                                        state.weights = ask.weights, y
    s = m, frozen while clients train             ask.momentum
    beta                                          momentum
    U(g, m) = V(g, m) = (1 - beta) g + beta m     the base optimiser's step, and how its state is renewed
    c = mean of grad f_i(x)                       mean gradient over the cohort's data, weighted by examples
    y_i <- y_i - eta U(g_i, m)                    direction, correct
      Mime:     g_i = grad f_i(y_i; batch) - grad f_i(x; batch) + c
      MimeLite: g_i = grad f_i(y_i; batch)
    m <- V(c, m)                                  Mime: surveyed; MimeLite: step
    x <- mean of y_i                              step (server_lr = 1)

Mime knows c before clients train, so it renews m there and then and sends only that: U(a + c, m) = (1 - beta) a + V(c, m).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedweave.contract import Algorithm, Array, Arrays, Ask, Cohort, Gradient, Progress, State, Update, Work, within


@dataclass(frozen=True)
class _Mimicry(Algorithm):
    """What both share: the server's momentum, and that clients hold it fixed."""

    server_lr: float = 1.0
    momentum: float = 0.9
    paper: ClassVar[str] = "Karimireddy et al., NeurIPS 2021, arXiv:2008.03606"
    pointwise: ClassVar[bool] = True
    assumes_rounds: ClassVar[str] = "its momentum is renewed by the mean gradient of a cohort at one model"
    assumes_sgd: ClassVar[str] = "clients step with the server's momentum, held fixed during the round, and with nothing else"

    def __post_init__(self) -> None:
        super().__post_init__()
        within("server_lr", self.server_lr, 0)
        within("momentum", self.momentum, 0, 1, below=True)

    def init(self, weights: Array) -> State:
        return State(weights=weights, momentum=0 * weights)

    def ask(self, state: State, client: int) -> Ask:
        return Ask(weights=state.weights, momentum=state.momentum)

    def renewed(self, state: State, gradient: Array) -> State:
        return state.replace(momentum=(1 - self.momentum) * gradient + self.momentum * state.momentum)

    def step(self, state: State, aggregate: Update, cohort: Cohort) -> State:
        return state.replace(weights=state.weights + self.server_lr * aggregate.delta)


@dataclass(frozen=True)
class Mime(_Mimicry):
    """Clients step as the server would: with its momentum, and their batch's gradient corrected to that of all of the cohort.

    Unequal work: the optimum is right, for there every corrected step is zero; who takes more steps only moves the model more
    on the way. A round has two conversations, and a local step two gradients.

    Args:
        server_lr: learning rate of the server, from 0 up.
        momentum: of the server's optimiser, in [0, 1); 0 for plain steps.
    """

    surveys: ClassVar[bool] = True
    pointwise: ClassVar[bool] = True

    def surveyed(self, state: State, aggregate: Update, cohort: Cohort) -> State:
        return self.renewed(state, aggregate.gradient)

    def direction(self, y: Array, gradient: Gradient, ask: Ask, mine: Arrays | None, progress: Progress) -> Array:
        return (1 - self.momentum) * (gradient(y) - gradient(ask.weights)) + ask.momentum


@dataclass(frozen=True)
class MimeLite(_Mimicry):
    """Clients step with the server's momentum, which they hold fixed and which follows their full gradients.

    Unequal work: the steps' own gradients are not corrected, so a client that takes more steps pulls the model towards its own
    optimum, as in FedAvg; the momentum does not see the steps.

    Args:
        server_lr: learning rate of the server, from 0 up.
        momentum: of the server's optimiser, in [0, 1); with 0 it is FedAvg.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"start_gradient"})
    pointwise: ClassVar[bool] = True

    def correct(self, grad: Array, y: Array, ask: Ask, mine: Arrays | None) -> Array:
        return (1 - self.momentum) * grad + self.momentum * ask.momentum

    def report(self, delta: Array, work: Work, ask: Ask, mine: Arrays | None) -> tuple[Update, Arrays | None]:
        return Update(delta=delta, gradient=work.start_gradient, weight=self.weight(work)), mine

    def step(self, state: State, aggregate: Update, cohort: Cohort) -> State:
        return super().step(self.renewed(state, aggregate.gradient), aggregate, cohort)

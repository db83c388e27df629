# SPDX-License-Identifier: Apache-2.0
"""FedProx: Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, "Federated Optimization in Heterogeneous Networks", MLSys 2020,
arXiv:1812.06127, Algorithm 2, and the heuristic for mu of its figure 3.

    paper                                                here
    w^t, w                                               ask.weights, y
    h_k(w; w^t) = F_k(w) + mu/2 |w - w^t|^2              correct: the gradient of the proximal term is mu (y - ask.weights)
    w_k^{t+1}, a gamma_k-inexact minimiser of h_k        where the client's own number of local steps ends
    w^{t+1} = mean of w_k^{t+1}                          as in FedAvg, weighted by examples as in the paper's experiments
    adaptive: mu + 0.1 when the loss rises,              state.mu; the loss is the cohort's mean before local training
              mu - 0.1 when it fell 5 rounds in a row
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from fedweave.contract import Algorithm, Array, Arrays, Ask, Cohort, State, Update, Work, within
from fedweave.errors import UsageError

STEP, PATIENCE = 0.1, 5


@dataclass(frozen=True)
class FedProx(Algorithm):
    """FedAvg whose clients are held near the weights they were sent, by a penalty on the squared distance.

    Unequal work: a client that stops early sends what it has, and that counts in full; the penalty keeps those that take many
    steps from drifting away, so they differ less. What bias is left FedNova(mu) removes.

    Args:
        mu: how strongly clients are held, from 0 (FedAvg) up; lr * mu should stay below 1. The first value if adaptive.
        adaptive: raise mu by 0.1 when the cohort's loss rises, lower it by 0.1 (to 0 at least) when it fell 5 times in a row.
    """

    mu: float = 0.01
    adaptive: bool = False
    paper: ClassVar[str] = "Li et al., MLSys 2020, arXiv:1812.06127"
    pointwise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        within("mu", self.mu, 0)
        if not isinstance(self.adaptive, bool):
            raise UsageError(f"adaptive is {self.adaptive!r}; it must be True or False.")

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset({"start_loss"} if self.adaptive else ())

    @property
    def corrects(self) -> bool:
        return self.mu > 0 or self.adaptive

    def init(self, weights: Array) -> State:
        state = State(weights=weights)
        return state.replace(mu=float(self.mu), loss=math.inf, falls=0) if self.adaptive else state

    def ask(self, state: State, client: int) -> Ask:
        return Ask(weights=state.weights, mu=state.get("mu", self.mu))

    def correct(self, grad: Array, y: Array, ask: Ask, mine: Arrays | None) -> Array:
        return grad + ask.mu * (y - ask.weights)

    def report(self, delta: Array, work: Work, ask: Ask, mine: Arrays | None) -> tuple[Update, Arrays | None]:
        update = Update(delta=delta, weight=self.weight(work))
        return (update.replace(loss=work.start_loss) if self.adaptive else update), mine

    def step(self, state: State, aggregate: Update, cohort: Cohort) -> State:
        state = state.replace(weights=state.weights + aggregate.delta)
        if not self.adaptive:
            return state
        mu, loss, before = state.mu, float(aggregate.loss), state.loss
        # There is nothing to compare the first loss with.
        falls = state.falls + 1 if loss < before < math.inf else 0
        if loss > before:
            mu += STEP
        elif falls == PATIENCE:
            mu, falls = max(mu - STEP, 0.0), 0
        return state.replace(mu=mu, loss=loss, falls=falls)

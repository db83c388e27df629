# SPDX-License-Identifier: Apache-2.0
"""FedDyn: Acar, Zhao, Matas Navarro, Mattina, Whatmough, Saligrama, "Federated Learning Based on Dynamic Regularization",
ICLR 2021, arXiv:2111.04263, Algorithm 1.

    paper                                             here
    theta^{t-1}                                       state.weights = ask.weights
    theta_k^t - theta^{t-1}                           delta
    grad L_k(theta_k^{t-1})                           mine.gradient, 0 at first
    argmin L_k(theta) - <grad L_k, theta>             local steps along its gradient, correct
           + alpha/2 ||theta - theta^{t-1}||^2
    grad L_k <- grad L_k - alpha (theta_k - theta)    report: the first-order condition of that minimum
    h <- h - alpha/m sum_{P_t} (theta_k - theta)      step; m = total, the weight of all clients (see there)
    theta <- 1/|P_t| sum theta_k - h/alpha            step
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from fedweave.contract import Algorithm, Array, Arrays, Ask, Cohort, State, Update, Work, within


@dataclass(frozen=True)
class FedDyn(Algorithm):
    """Each client's loss is bent at every round so that its own optimum moves to that of all clients.

    Unequal work: a client that stops early solves its problem less well and remembers a gradient that is off by the rest; the
    optimum is the same, for where it is reached nobody moves. Without a step nothing changes.

    Args:
        alpha: strength of the regularisation, above 0; 0.001 to 0.1 are usual.
    """

    alpha: float = 0.01
    weighting: Literal["examples", "uniform"] = field(default="uniform", kw_only=True)
    paper: ClassVar[str] = "Acar et al., ICLR 2021, arXiv:2111.04263"
    pointwise: ClassVar[bool] = True
    assumes_mean: ClassVar[str] = "its h must stay the mean of the gradients that clients remember"
    assumes_rounds: ClassVar[str] = "its h adds up what clients changed of one and the same model"
    departs: ClassVar[Mapping[str, str]] = {"only_the_cohort_counts": "h is the mean over all clients, asked or not"}

    def __post_init__(self) -> None:
        super().__post_init__()
        within("alpha", self.alpha, 0, above=True)

    def init(self, weights: Array) -> State:
        return State(weights=weights, h=0 * weights, answers=0.0, held=0.0, total=0.0)

    def correct(self, grad: Array, y: Array, ask: Ask, mine: Arrays | None) -> Array:
        return grad - (0 if mine is None else mine.gradient) + self.alpha * (y - ask.weights)

    def report(self, delta: Array, work: Work, ask: Ask, mine: Arrays | None) -> tuple[Update, Arrays | None]:
        gradient = (0 if mine is None else mine.gradient) - self.alpha * delta
        return Update(delta=delta, weight=self.weight(work)), Arrays(gradient=gradient)

    def step(self, state: State, aggregate: Update, cohort: Cohort) -> State:
        # m, unless clients have no examples or count by them: then the weight of all, judged by those that answered so far.
        answers, held = state.answers + cohort.size, state.held + aggregate.weight
        total = cohort.population * held / answers
        h = state.total / total * state.h - self.alpha * aggregate.weight / total * aggregate.delta
        weights = state.weights + aggregate.delta - h / self.alpha
        return state.replace(weights=weights, h=h, answers=answers, held=held, total=total)

# SPDX-License-Identifier: Apache-2.0
"""FedAvg: McMahan, Moore, Ramage, Hampson, Aguera y Arcas, "Communication-Efficient Learning of Deep Networks from
Decentralized Data", AISTATS 2017, arXiv:1602.05629, Algorithm 1 (FederatedAveraging).

    paper                     here
    w_t                       state.weights
    w^k_{t+1} - w_t           delta
    n_k                       work.examples, the update's weight unless weighting="uniform"
    m_t = sum_{S_t} n_k       aggregate.weight (the erratum: the clients of the cohort, not all)
    E, B, eta                 Local(epochs, batch_size, lr)
    C                         cohort=
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedweave.contract import Algorithm, Array, Arrays, Ask, Cohort, State, Update, Work


@dataclass(frozen=True)
class FedAvg(Algorithm):
    """Clients train; the server adds the mean of their changes, weighted by their examples.

    Unequal work: a client that takes more steps moves the mean further than its weight says, and where clients' data differ
    that biases the point FedAvg converges to (FedNova is the cure).
    """

    paper: ClassVar[str] = "McMahan et al., AISTATS 2017, arXiv:1602.05629"
    pointwise: ClassVar[bool] = True

    def report(self, delta: Array, work: Work, ask: Ask, mine: Arrays | None) -> tuple[Update, Arrays | None]:
        return Update(delta=delta, weight=self.weight(work)), mine

    def step(self, state: State, aggregate: Update, cohort: Cohort) -> State:
        return state.replace(weights=state.weights + aggregate.delta)

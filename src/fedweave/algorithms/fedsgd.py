# SPDX-License-Identifier: Apache-2.0
"""FedSGD: McMahan, Moore, Ramage, Hampson, Aguera y Arcas, "Communication-Efficient Learning of Deep Networks from
Decentralized Data", AISTATS 2017, arXiv:1602.05629, section 2 (FederatedSGD); after Chen et al., 2016 (large-batch
synchronous SGD).

    paper                              here
    w_t                                state.weights
    g_k = grad F_k(w_t)                work.start_gradient, over all of the client's data
    n_k                                work.examples, the update's weight
    eta                                server_lr
    w_{t+1} = w_t - eta sum n_k/n g_k  step
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedweave.contract import Algorithm, Array, Arrays, Ask, Cohort, State, Update, Work, within


@dataclass(frozen=True)
class FedSGD(Algorithm):
    """Clients send the gradient of their whole data; the server takes one step. The local learning rate is not used.

    Unequal work: there is none, every client computes one gradient however many epochs it was asked for.
    """

    server_lr: float = 1.0
    paper: ClassVar[str] = "McMahan et al., AISTATS 2017, arXiv:1602.05629"
    pointwise: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"start_gradient"})
    trains: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        within("server_lr", self.server_lr, 0)

    def report(self, delta: Array, work: Work, ask: Ask, mine: Arrays | None) -> tuple[Update, Arrays | None]:
        return Update(gradient=work.start_gradient, weight=self.weight(work)), mine

    def step(self, state: State, aggregate: Update, cohort: Cohort) -> State:
        return state.replace(weights=state.weights - self.server_lr * aggregate.gradient)

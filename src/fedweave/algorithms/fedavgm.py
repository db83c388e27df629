# SPDX-License-Identifier: Apache-2.0
"""FedAvgM: Hsu, Qi, Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification",
2019, arXiv:1909.06335; the form without Nesterov's look-ahead is that of Reddi et al., ICLR 2021.

    paper                  here
    w                      state.weights
    -dw, the mean change   aggregate.delta
    v <- beta v + dw       state.velocity; beta is momentum
    w <- w - v             step, times server_lr
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedweave.contract import Algorithm, Array, Cohort, State, Update, within


@dataclass(frozen=True)
class FedAvgM(Algorithm):
    """FedAvg whose server goes on in the direction of earlier rounds, by heavy-ball momentum.

    Unequal work: as in FedAvg, a client that takes more steps moves the mean further than its weight says; momentum neither
    adds to that bias nor removes it.

    Args:
        server_lr: learning rate of the server, from 0 up; in the long run a change counts server_lr / (1 - momentum) times.
        momentum: in [0, 1); with 0 and server_lr 1 it is FedAvg.
    """

    server_lr: float = 1.0
    momentum: float = 0.9
    paper: ClassVar[str] = "Hsu et al., 2019, arXiv:1909.06335"
    pointwise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        within("server_lr", self.server_lr, 0)
        within("momentum", self.momentum, 0, 1, below=True)

    def init(self, weights: Array) -> State:
        return State(weights=weights, velocity=0 * weights)

    def step(self, state: State, aggregate: Update, cohort: Cohort) -> State:
        velocity = self.momentum * state.velocity + aggregate.delta
        return state.replace(weights=state.weights + self.server_lr * velocity, velocity=velocity)

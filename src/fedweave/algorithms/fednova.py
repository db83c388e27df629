# SPDX-License-Identifier: Apache-2.0
"""FedNova: Wang, Liu, Liang, Joshi, Poor, "Tackling the Objective Inconsistency Problem in Heterogeneous Federated
Optimization", NeurIPS 2020, arXiv:2007.07481; also its authors' code, for tau_eff of the proximal solver.

    paper                                                      here
    tau_i, eta, rho                                            work.steps, work.lr, work.momentum
    |a_i|_1, the weight of all of a client's gradients         travelled: how far it gets, in units of eta, if every gradient
                                                               is 1; the sum of a_i for any solver that is linear in them
    x_i - x = -eta G_i a_i                                     delta
    eta d_i = eta G_i a_i / |a_i|_1                            -delta of the update
    p_i                                                        weight / aggregate.weight
    tau_eff = sum p_i |a_i|_1 (proximal solver: sum p_i tau_i) aggregate.effective
    x <- x - tau_eff sum p_i eta d_i                           step (server_lr = 1)
    slow (server) momentum                                     momentum
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from array_api_compat import array_namespace, is_array_api_obj

from fedweave.contract import Algorithm, Array, Arrays, Ask, Cohort, Local, State, Update, Work, within
from fedweave.errors import UsageError


def travelled(steps: Any, lr: Any, momentum: float, mu: float) -> Any:
    """How far local SGD goes from its start, in units of ``lr``, if every gradient is 1: v <- rho v + 1 - lr mu s, s <- s + v.

    Args:
        steps: of a client; or of each of a stack, [K, 1].
    """
    if not momentum and not mu:
        return steps
    most = int(array_namespace(steps).max(steps)) if is_array_api_obj(steps) else steps
    velocity = distance = 0.0 * steps
    for step in range(most):
        velocity = momentum * velocity + 1.0 - lr * mu * distance
        distance = distance + velocity * (steps > step)
    return distance


@dataclass(frozen=True)
class FedNova(Algorithm):
    """FedAvg of what clients' changes are per step, so that nobody counts for more because it took more steps.

    Unequal work: this is what it is for. Each change is divided by the client's own distance (its steps, for plain SGD), so
    the model converges to the optimum of the weighted loss whatever the numbers of steps. A client without a step is left out.

    Args:
        server_lr: learning rate of the server, from 0 up.
        momentum: of the server, in [0, 1); that of the clients is Local(momentum=).
        mu: of a proximal local solver as in FedProx, from 0 up, with lr * mu below 2.
    """

    server_lr: float = 1.0
    momentum: float = 0.0
    mu: float = 0.0
    paper: ClassVar[str] = "Wang et al., NeurIPS 2020, arXiv:2007.07481"
    pointwise: ClassVar[bool] = True
    assumes_rounds: ClassVar[str] = "its step is as long as the mean of the steps that a cohort took from one model"

    def __post_init__(self) -> None:
        super().__post_init__()
        within("server_lr", self.server_lr, 0)
        within("momentum", self.momentum, 0, 1, below=True)
        within("mu", self.mu, 0)

    def check(self, local: Local, cohort: int) -> None:
        super().check(local, cohort)
        if local.optimizer != "sgd":
            why = "how far its steps go does not depend on their number alone"
            raise UsageError(f"FedNova cannot be used with optimizer={local.optimizer!r}: {why}. Use SGD.")
        if local.lr * self.mu >= 2:
            raise UsageError(f"FedNova cannot be used with mu={self.mu} and lr={local.lr}: lr * mu must be below 2. Lower mu.")

    @property
    def corrects(self) -> bool:
        return self.mu > 0

    def init(self, weights: Array) -> State:
        return State(weights=weights, velocity=0 * weights) if self.momentum else State(weights=weights)

    def correct(self, grad: Array, y: Array, ask: Ask, mine: Arrays | None) -> Array:
        return grad + self.mu * (y - ask.weights)

    def report(self, delta: Array, work: Work, ask: Ask, mine: Arrays | None) -> tuple[Update, Arrays | None]:
        norm = travelled(work.steps, work.lr, work.momentum, self.mu)
        effective = work.steps if self.mu else norm
        divisor = array_namespace(delta).asarray(norm + (work.steps == 0), dtype=delta.dtype)
        return Update(delta=delta / divisor, effective=effective, weight=self.weight(work) * (work.steps > 0)), mine

    def step(self, state: State, aggregate: Update, cohort: Cohort) -> State:
        change = float(aggregate.effective) * aggregate.delta
        if not self.momentum:
            return state.replace(weights=state.weights + self.server_lr * change)
        velocity = self.momentum * state.velocity + change
        return state.replace(weights=state.weights + self.server_lr * velocity, velocity=velocity)

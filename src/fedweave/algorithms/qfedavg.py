# SPDX-License-Identifier: Apache-2.0
"""q-FedAvg: Li, Sanjabi, Beirami, Smith, "Fair Resource Allocation in Federated Learning", ICLR 2020, arXiv:1905.10497,
Algorithm 2, for the objective sum p_k F_k^{q+1} / (q + 1).

    paper                                                      here
    w^t, w_k                                                   ask.weights, y
    L = 1/eta                                                  1 / work.lr
    F_k(w^t)                                                   work.start_loss + EPSILON
    dw_k = L (w^t - w_k)                                       -delta / lr
    Delta_k = F_k^q dw_k                                       delta, the factor F_k^q in the weight and -L left out
    h_k = q F_k^{q-1} |dw_k|^2 + L F_k^q                       curvature, the factor F_k^q in the weight and L left out
    p_k                                                        self.weight(work)
    w^{t+1} = w^t - sum_k p_k Delta_k / sum_k p_k h_k          step: both are means over the same weights p_k F_k^q

So F_k^q never meets the model's own numbers, which it could overflow or underflow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from array_api_compat import array_namespace, is_array_api_obj

from fedweave.contract import Algorithm, Array, Arrays, Ask, Cohort, Local, State, Update, Work, within
from fedweave.errors import UsageError

EPSILON = 1e-10
"""Added to each loss, as in the authors' code."""


@dataclass(frozen=True)
class QFedAvg(Algorithm):
    """FedAvg in which clients with a higher loss count for more, so that the model serves all of them about as well.

    Unequal work: as in FedAvg, a client that takes more steps moves the mean further than its weight says. Its step also
    raises the estimated curvature, which shortens everybody's.

    Args:
        q: how much a high loss counts, from 0 (FedAvg) up; sane values are 0.1 to 5.
    """

    q: float = 1.0
    paper: ClassVar[str] = "Li et al., ICLR 2020, arXiv:1905.10497"
    pointwise: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"start_loss"})
    assumes_rounds: ClassVar[str] = "it compares the clients' losses at one and the same model"
    assumes_mean: ClassVar[str] = "only a weighted mean counts clients by their losses"

    def __post_init__(self) -> None:
        super().__post_init__()
        within("q", self.q, 0)

    def check(self, local: Local, cohort: int) -> None:
        super().check(local, cohort)
        if local.lr == 0:
            raise UsageError("QFedAvg cannot be used with lr=0: its step size is made of 1/lr. Choose a learning rate above 0.")

    def report(self, delta: Array, work: Work, ask: Ask, mine: Arrays | None) -> tuple[Update, Arrays | None]:
        loss, xp = work.start_loss + EPSILON, array_namespace(delta)
        squared = xp.sum(delta * delta, axis=-1, keepdims=True)
        curvature = 1 + xp.asarray(self.q / (work.lr * loss), dtype=delta.dtype) * squared
        return Update(delta=delta, curvature=curvature, weight=self.weight(work) * _power(loss, self.q)), mine

    def step(self, state: State, aggregate: Update, cohort: Cohort) -> State:
        return state.replace(weights=state.weights + aggregate.delta / aggregate.curvature)


def _power(loss: Any, q: float) -> Any:
    if bool(array_namespace(loss).any(loss < 0)) if is_array_api_obj(loss) else loss < 0:
        raise UsageError(f"QFedAvg needs losses from 0 up, but a client's is {loss}. Use a loss that is never negative.")
    try:
        return loss**q
    except OverflowError:
        return math.inf

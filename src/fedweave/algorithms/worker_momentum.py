# SPDX-License-Identifier: Apache-2.0
"""Worker momentum: Karimireddy, He, Jaggi, "Learning from History for Byzantine Robust Optimization", ICML 2021,
arXiv:2012.10333.

    paper                                 here
    -eta g_i(x)                           delta; with one local step it is exactly that
    beta                                  momentum
    m_i <- (1 - beta) g_i(x) + beta m_i   report; kept as mine.momentum, in units of delta
    x <- x - eta Agg(m_1 ... m_n)         step; Agg is reduce, server_lr = 1
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from fedweave.contract import Algorithm, Array, Arrays, Ask, Cohort, State, Update, Work, within
from fedweave.errors import UsageError


@dataclass(frozen=True)
class WorkerMomentum(Algorithm):
    """Clients send a running mean of their changes, whose small spread leaves bad clients nowhere to hide.

    Unequal work: as in FedAvg, a client that takes more steps moves the mean further than its weight says. One that takes
    none does not count in that round, and its momentum waits.

    Args:
        momentum: what the running mean keeps of the past, in [0, 1); with 0 it is FedAvg.
        server_lr: learning rate of the server, from 0 up.
        initial: the running mean begins with the client's first change ("delta"), or at 0 ("zero"), which is a slower start.
    """

    momentum: float = 0.9
    server_lr: float = 1.0
    initial: Literal["delta", "zero"] = "delta"
    paper: ClassVar[str] = "Karimireddy et al., ICML 2021, arXiv:2012.10333"
    pointwise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        within("momentum", self.momentum, 0, 1, below=True)
        within("server_lr", self.server_lr, 0)
        if self.initial not in ("delta", "zero"):
            raise UsageError(f"initial is {self.initial!r}; it must be 'delta' or 'zero'.")

    def report(self, delta: Array, work: Work, ask: Ask, mine: Arrays | None) -> tuple[Update, Arrays | None]:
        before, turns = (0 * delta, 0) if mine is None else (mine.momentum, mine.turns)
        first = (turns == 0) if self.initial == "delta" else (turns < 0)
        mean = delta * first + (self.momentum * before + (1 - self.momentum) * delta) * (first == 0)
        momentum = mean * (work.steps > 0) + before * (work.steps == 0)
        weight = self.weight(work) * (work.steps > 0)
        return Update(delta=momentum, weight=weight), Arrays(momentum=momentum, turns=turns + (work.steps > 0))

    def step(self, state: State, aggregate: Update, cohort: Cohort) -> State:
        return state.replace(weights=state.weights + self.server_lr * aggregate.delta)

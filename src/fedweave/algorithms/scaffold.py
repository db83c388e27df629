# SPDX-License-Identifier: Apache-2.0
"""SCAFFOLD: Karimireddy, Kale, Mohri, Reddi, Stich, Suresh, "SCAFFOLD: Stochastic Controlled Averaging for Federated
Learning", ICML 2020, arXiv:1910.06378, Algorithm 1.

    paper                                    here
    x, y_i                                   state.weights = ask.weights, y
    c, c_i (both 0 at first)                 state.control = ask.control, mine.control
    y_i <- y_i - eta_l (g_i(y_i) - c_i + c)  correct; eta_l is work.lr, one step per local step
    K                                        work.steps, the client's own number of steps
    (I)  c_i+ = g_i(x)                       option=1: work.start_gradient, over all of the client's data
    (II) c_i+ = c_i - c + (x - y_i)/(K eta)  option=2: the mean gradient of the steps, for x - y_i = -delta
    dy_i, dc_i                               delta and control of the update
    x <- x + eta_g/|S| sum dy_i              step; eta_g is server_lr
    c <- c + 1/N sum dc_i                    step; N = total, the weight of all clients (see there)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from array_api_compat import array_namespace

from fedweave.contract import Algorithm, Array, Arrays, Ask, Cohort, Local, State, Update, Work, within
from fedweave.errors import UsageError

OPTIONS = {1: 1, 2: 2, "I": 1, "II": 2}


@dataclass(frozen=True)
class SCAFFOLD(Algorithm):
    """Clients correct each step by the difference between everybody's mean gradient and their own, which they remember.

    Unequal work: each client divides by its own number of steps, so its control variate is its mean gradient whatever it did,
    and the optimum is right; who takes more steps only moves the model more on the way. Without a step nothing changes.

    Args:
        server_lr: learning rate of the server, from 0 up.
        option: how control variates are renewed: 1 (or "I") by the gradient over all data at the weights sent, one pass more;
            2 (or "II") by the mean gradient of the local steps, which costs nothing.
    """

    server_lr: float = 1.0
    option: Literal[1, 2, "I", "II"] = 2
    weighting: Literal["examples", "uniform"] = field(default="uniform", kw_only=True)
    paper: ClassVar[str] = "Karimireddy et al., ICML 2020, arXiv:1910.06378"
    pointwise: ClassVar[bool] = True
    assumes_sgd: ClassVar[str] = "its control variates are mean gradients of plain SGD steps"
    assumes_rounds: ClassVar[str] = "clients' control variates are differences from the server's of one and the same round"
    assumes_mean: ClassVar[str] = "its control variate must stay the mean of the clients' own"

    def __post_init__(self) -> None:
        super().__post_init__()
        within("server_lr", self.server_lr, 0)
        if isinstance(self.option, bool) or self.option not in tuple(OPTIONS):
            raise UsageError(f"option is {self.option!r}; it must be 1 or 2, or 'I' or 'II'.")
        object.__setattr__(self, "option", OPTIONS[self.option])

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset({"start_gradient"} if self.option == 1 else ())

    def check(self, local: Local, cohort: int) -> None:
        super().check(local, cohort)
        if self.option == 1 and local.weight_decay:
            why = "the gradient that renews its control variates is of the data alone"
            raise UsageError(f"SCAFFOLD(option=1) cannot be used with weight_decay={local.weight_decay}: {why}. Use option=2.")

    def init(self, weights: Array) -> State:
        return State(weights=weights, control=0 * weights, answers=0.0, held=0.0, total=0.0)

    def ask(self, state: State, client: int) -> Ask:
        return Ask(weights=state.weights, control=state.control)

    def correct(self, grad: Array, y: Array, ask: Ask, mine: Arrays | None) -> Array:
        return grad - (0 if mine is None else mine.control) + ask.control

    def report(self, delta: Array, work: Work, ask: Ask, mine: Arrays | None) -> tuple[Update, Arrays | None]:
        own = 0 * delta if mine is None else mine.control
        travelled = work.steps * work.lr
        moved = (travelled > 0) * 1.0
        moved, travelled = (array_namespace(delta).asarray(v, dtype=delta.dtype) for v in (moved, travelled + 1.0 - moved))
        renewed = work.start_gradient if self.option == 1 else own - ask.control - delta / travelled
        change = moved * (renewed - own)
        return Update(delta=delta, control=change, weight=self.weight(work)), Arrays(control=own + change)

    def step(self, state: State, aggregate: Update, cohort: Cohort) -> State:
        # N, unless clients have no examples or count by them: then the weight of all, judged by those that answered so far.
        answers, held = state.answers + cohort.size, state.held + aggregate.weight
        total = cohort.population * held / answers
        control = state.total / total * state.control + aggregate.weight / total * aggregate.control
        weights = state.weights + self.server_lr * aggregate.delta
        return state.replace(weights=weights, control=control, answers=answers, held=held, total=total)

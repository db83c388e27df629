# SPDX-License-Identifier: Apache-2.0
"""FedAdagrad, FedAdam, FedYogi: Reddi, Charles, Zaheer, Garrett, Rush, Konecny, Kumar, McMahan, "Adaptive Federated
Optimization", ICLR 2021, arXiv:2003.00295, Algorithm 2.

    paper                                           here
    x_t                                             state.weights
    Delta_t, the clients' mean change               aggregate.delta
    m_t = beta_1 m_{t-1} + (1 - beta_1) Delta_t     state.first, 0 before the first round
    v_t                                             state.second, by each class's rule; v_{-1} is initial_accumulator, or tau^2
    x_{t+1} = x_t + eta m_t / (sqrt(v_t) + tau)     _onward; eta is server_lr
    bias_correction (the authors' code, as Keras):  eta sqrt(1 - beta_2^t) / (1 - beta_1^t) in place of eta, t from 1
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from array_api_compat import array_namespace

from fedweave.contract import Algorithm, Array, Cohort, State, Update, within

PAPER = "Reddi et al., ICLR 2021, arXiv:2003.00295"


def _checked(server_lr: float, tau: float, initial_accumulator: float | None, **betas: float) -> None:
    within("server_lr", server_lr, 0)
    within("tau", tau, 0, above=True)
    within("initial_accumulator", 0.0 if initial_accumulator is None else initial_accumulator, 0)
    for name, beta in betas.items():
        within(name, beta, 0, 1, below=True)


def _begin(weights: Array, tau: float, initial_accumulator: float | None) -> State:
    second = tau**2 if initial_accumulator is None else initial_accumulator
    return State(weights=weights, first=0 * weights, second=0 * weights + second)


def _onward(state: State, first: Array, second: Array, rate: float, tau: float) -> State:
    weights = state.weights + rate * first / (_root(second) + tau)
    return state.replace(weights=weights, first=first, second=second)


def _root(values: Array) -> Array:
    """The square root, rounded as IEEE 754 says, which torch's own is not everywhere: a simulation and a server agree."""
    xp = array_namespace(values)
    return xp.astype(xp.sqrt(xp.astype(values, xp.float64)), values.dtype)


@dataclass(frozen=True)
class FedAdagrad(Algorithm):
    """FedAvg whose server divides each coordinate's step by the root of all the squared changes so far.

    Unequal work: as in FedAvg, a client that takes more steps counts for more than its weight says; the scaling by coordinate
    takes the mean change as it comes.

    Args:
        server_lr: learning rate of the server, from 0 up; 1 is rarely right, try 0.01 to 0.3.
        beta1: momentum, in [0, 1).
        tau: above 0; changes much smaller than it are not scaled up.
        initial_accumulator: the squared change at the start, from 0 up; None is tau^2.
    """

    server_lr: float = 1.0
    beta1: float = 0.0
    tau: float = 1e-3
    initial_accumulator: float | None = None
    paper: ClassVar[str] = PAPER
    pointwise: ClassVar[bool] = True
    departs: ClassVar[Mapping[str, str]] = {
        "downhill": "its first step is about server_lr in every coordinate, however little the clients move, and may overshoot"
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        _checked(self.server_lr, self.tau, self.initial_accumulator, beta1=self.beta1)

    def init(self, weights: Array) -> State:
        return _begin(weights, self.tau, self.initial_accumulator)

    def step(self, state: State, aggregate: Update, cohort: Cohort) -> State:
        delta = aggregate.delta
        first = self.beta1 * state.first + (1 - self.beta1) * delta
        second = state.second + delta * delta
        return _onward(state, first, second, self.server_lr, self.tau)


@dataclass(frozen=True)
class _Moments(Algorithm, ABC):
    """What Adam and Yogi share: all but how squared changes are gathered."""

    server_lr: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3
    bias_correction: bool = False
    initial_accumulator: float | None = None
    paper: ClassVar[str] = PAPER
    pointwise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _checked(self.server_lr, self.tau, self.initial_accumulator, beta1=self.beta1, beta2=self.beta2)

    def init(self, weights: Array) -> State:
        return _begin(weights, self.tau, self.initial_accumulator).replace(steps=0)

    def step(self, state: State, aggregate: Update, cohort: Cohort) -> State:
        delta, t, rate = aggregate.delta, state.steps + 1, self.server_lr
        first = self.beta1 * state.first + (1 - self.beta1) * delta
        second = self.gathered(state.second, delta * delta)
        if self.bias_correction:
            rate *= (1 - self.beta2**t) ** 0.5 / (1 - self.beta1**t)
        return _onward(state, first, second, rate, self.tau).replace(steps=t)

    @abstractmethod
    def gathered(self, second: Array, square: Array) -> Array:
        """v_t of v_{t-1} and the squared change."""


@dataclass(frozen=True)
class FedAdam(_Moments):
    """FedAvg whose server takes Adam's step: momentum, divided by the root of a running mean of squared changes.

    Unequal work: as in FedAvg, a client that takes more steps counts for more than its weight says; the scaling by coordinate
    takes the mean change as it comes.

    Args:
        server_lr: learning rate of the server, from 0 up; 1 is rarely right, try 0.003 to 0.1.
        beta1, beta2: of the means of changes and of their squares, in [0, 1).
        tau: above 0; changes much smaller than it are not scaled up.
        bias_correction: make up for the means' start in the first rounds, as the authors' code does and the paper does not.
        initial_accumulator: the mean square at the start, from 0 up; None is tau^2.
    """

    def gathered(self, second: Array, square: Array) -> Array:
        return self.beta2 * second + (1 - self.beta2) * square


@dataclass(frozen=True)
class FedYogi(_Moments):
    """FedAdam whose mean of squared changes moves by additive steps, so that it forgets large ones slowly.

    Unequal work: as in FedAvg, a client that takes more steps counts for more than its weight says; the scaling by coordinate
    takes the mean change as it comes.

    Args:
        server_lr: learning rate of the server, from 0 up; 1 is rarely right, try 0.003 to 0.1.
        beta1, beta2: of the means of changes and of their squares, in [0, 1).
        tau: above 0; changes much smaller than it are not scaled up.
        bias_correction: make up for the means' start in the first rounds, as the authors' code does and the paper does not.
        initial_accumulator: the mean square at the start, from 0 up; None is tau^2.
    """

    def gathered(self, second: Array, square: Array) -> Array:
        return second - (1 - self.beta2) * square * array_namespace(second).sign(second - square)

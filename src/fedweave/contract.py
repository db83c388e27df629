# SPDX-License-Identifier: Apache-2.0
"""The contract: what an algorithm is, what a client is asked to do and what it says it did.

    data ─► local training ─► Update ─► reduce ─► algorithm.step ─► weights, store
              ▲                                        │
              └──────────────── Ask ◄──────────────────┘

An algorithm is a frozen dataclass whose fields are its hyperparameters, with six small pure hooks. It is linear algebra on
flat vectors, written against the Python array API, and does not know who carries the values or how many clients there are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from fedweave.errors import UsageError
from fedweave.reduce import Mean, Reduction
from fedweave.values import Array, Arrays, Ask, State, Update

__all__ = ["Algorithm", "Array", "Arrays", "Ask", "Cohort", "Local", "Mean", "Reduction", "State", "Update", "Work"]


@dataclass(frozen=True)
class Local:
    """The local training that a client is asked for.

    Args:
        lr: learning rate.
        epochs: passes over the client's own data; a fraction stops part of the way. Default 1 unless ``steps`` is given.
        steps: number of local steps instead of epochs, the same for every client.
        batch_size: examples per step; None is all of the client's data at once (the papers' B = infinity). The last, smaller
            batch of an epoch is kept.
        optimizer: ``"sgd"``, or ``"adam"`` (its moments start anew every round).
        momentum: of SGD, within one round.
        weight_decay: added to the gradient as ``weight_decay * weights``, as torch.optim does.
        clip_norm: the largest Euclidean norm of a step's gradient, or None.
        lr_decay: the learning rate of round t (from 1) is ``lr * lr_decay ** (t - 1)``.
        shuffle: ``"epoch"`` draws new batches every epoch; ``"once"`` draws one split per round and uses it in every epoch, as
            the FedAvg paper's algorithm 1 is written; ``"never"`` keeps the stored order.

    Raises:
        UsageError: a value is out of its range.
    """

    lr: float = 0.1
    epochs: float | None = None
    steps: int | None = None
    batch_size: int | None = 10
    optimizer: Literal["sgd", "adam"] = "sgd"
    momentum: float = 0.0
    weight_decay: float = 0.0
    clip_norm: float | None = None
    lr_decay: float = 1.0
    shuffle: Literal["epoch", "once", "never"] = "epoch"

    def __post_init__(self) -> None:
        if self.epochs is not None and self.steps is not None:
            raise UsageError(f"epochs is {self.epochs} and steps is {self.steps}; give one of them.")
        if self.epochs is None and self.steps is None:
            object.__setattr__(self, "epochs", 1)
        _check("lr", self.lr, self.lr >= 0, "a number from 0 up")
        if self.epochs is not None:
            _check("epochs", self.epochs, self.epochs >= 0, "a number from 0 up")
        if self.steps is not None:
            _check("steps", self.steps, self.steps >= 0 and self.steps == int(self.steps), "a whole number from 0 up")
        if self.batch_size is not None:
            whole = self.batch_size == int(self.batch_size)
            _check("batch_size", self.batch_size, whole and self.batch_size >= 1, "a whole number from 1 up, or None for all")
        _check("momentum", self.momentum, 0 <= self.momentum < 1, "in [0, 1)")
        _check("weight_decay", self.weight_decay, self.weight_decay >= 0, "a number from 0 up")
        if self.clip_norm is not None:
            _check("clip_norm", self.clip_norm, self.clip_norm > 0, "above 0, or None")
        _check("lr_decay", self.lr_decay, 0 < self.lr_decay <= 1, "in (0, 1]")
        if self.optimizer not in ("sgd", "adam"):
            raise UsageError(f"optimizer is {self.optimizer!r}; it must be 'sgd' or 'adam'.")
        if self.optimizer == "adam" and self.momentum:
            raise UsageError(f"momentum is {self.momentum}, but only the optimizer 'sgd' uses it; leave it at 0 with 'adam'.")
        if self.shuffle not in ("epoch", "once", "never"):
            raise UsageError(f"shuffle is {self.shuffle!r}; it must be 'epoch', 'once' or 'never'.")

    def lr_at(self, round: int) -> float:
        """The learning rate of a round, counted from 1."""
        return self.lr * self.lr_decay ** (round - 1) if self.lr_decay != 1.0 else self.lr

    def steps_for(self, examples: int) -> int:
        """How many local steps a client with so many examples takes."""
        if examples == 0:
            return 0
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        per_epoch = 1 if self.batch_size is None else math.ceil(examples / self.batch_size)
        return math.ceil(self.epochs * per_epoch)


def _check(name: str, value: float, fine: bool, range: str) -> None:
    if not fine or not math.isfinite(value):
        raise UsageError(f"{name} is {value}; it must be {range}.")


@dataclass(frozen=True)
class Work:
    """What a client really did. In a stack of K clients the numbers are arrays [K, 1].

    Args:
        examples: how many examples the client holds (n_k).
        steps: local steps taken (tau_k).
        lr: learning rate of those steps.
        start_loss: mean loss over all of the client's data at the weights it was sent, if the algorithm needs it.
        start_gradient: gradient [P] of that loss, if the algorithm needs it.
    """

    examples: Any
    steps: Any = 0
    lr: Any = 0.0
    start_loss: Any = None
    start_gradient: Array = None


@dataclass(frozen=True)
class Cohort:
    """Who took part: ``size`` clients answered, of ``asked``, out of a ``population`` (the papers' m, and K or N)."""

    size: int
    asked: int
    population: int
    round: int


@dataclass(frozen=True)
class Algorithm:
    """FedAvg by default: a paper's file overrides only what the paper changes.

    Class variables that a paper may set: ``needs``, a subset of {"start_loss", "start_gradient"}, is measured over all of a
    client's data before its first step; ``trains = False`` means that clients take no local step. ``reduce`` says how updates
    become one aggregate: the mean weighted by ``Update.weight`` unless another is given.
    """

    paper: ClassVar[str] = ""
    needs: ClassVar[frozenset[str]] = frozenset()
    trains: ClassVar[bool] = True

    reduce: Reduction = field(default=Mean(), kw_only=True)

    def init(self, weights: Array) -> State:
        """The server's state before the first round, from the initial weights [P]."""
        return State(weights=weights)

    def ask(self, state: State, client: int) -> Ask:
        """What this client is sent."""
        return Ask(weights=state.weights)

    def correct(self, grad: Array, y: Array, ask: Ask, mine: Arrays | None) -> Array:
        """The direction of a local step at weights ``y``, from the mini-batch gradient there, which is left as it is."""
        return grad

    def report(self, delta: Array, work: Work, ask: Ask, mine: Arrays | None) -> tuple[Update, Arrays | None]:
        """What is sent, and what the client keeps for its next round; ``delta`` = its weights - ``ask.weights``."""
        return Update(delta=delta, weight=work.examples), mine

    def step(self, state: State, aggregate: Update, cohort: Cohort) -> State:
        """The server's state after the round."""
        return state.replace(weights=state.weights + aggregate.delta)

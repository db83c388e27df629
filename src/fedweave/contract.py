# SPDX-License-Identifier: Apache-2.0
"""The contract: what an algorithm is, what a client is asked to do and what it says it did.

    data ─► local training ─► Update ─► reduce ─► algorithm.step ─► weights, store
              ▲                                        │
              └──────────────── Ask ◄──────────────────┘

An algorithm is a frozen dataclass whose fields are its hyperparameters, with a few small pure hooks, each of which is FedAvg's
unless a paper changes it. It is linear algebra on flat vectors, written against the Python array API, and does not know who
carries the values or how many clients there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from fedweave.errors import UsageError
from fedweave.layout import Layout
from fedweave.reduce import Mean, Reduction
from fedweave.reduce import base as reductions
from fedweave.values import Array, Arrays, Ask, State, Update
from fedweave.wiring import Wiring

__all__ = [
    "Algorithm", "Array", "Arrays", "Ask", "Cohort", "Gradient", "Local", "Mean", "Progress", "Reduction", "Setting", "State",
    "Update", "Wiring", "Work", "within",
]  # fmt: skip

Gradient = Callable[[Array], Array]
"""The gradient [P] of the loss of one and the same mini-batch, at any weights [P]."""


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
        momentum: of the local SGD.
        start_loss: mean loss over all of the client's data at the weights it was sent, if the algorithm needs it.
        start_gradient: gradient [P] of that loss, if the algorithm needs it.
        class_counts: how many labels of each class the client holds [C], if the algorithm needs it and labels are classes.
        end: ``weights`` [P] and ``buffers`` [B] where it ended, if the algorithm ``prepares``.
    """

    examples: Any
    steps: Any = 0
    lr: Any = 0.0
    momentum: float = 0.0
    start_loss: Any = None
    start_gradient: Array = None
    class_counts: Array = None
    end: Any = None


@dataclass(frozen=True)
class Setting:
    """How a client trains this round, which an algorithm that ``prepares`` may change.

    Args:
        local: the local training asked for.
        fresh: draws initial weights [P] of the client's own, the same at each call.
        buffers: to start from [B].
        weights: to start from, in place of what ``start`` gives.
        layout: how the weights lie, if they are not the run's own model but the same with other widths.
        frozen: names of the parameters that local steps leave alone.
        mine: what the client keeps, as the other hooks are to see it.
    """

    local: Local
    fresh: Callable[[], Array]
    buffers: Array = None
    weights: Array = None
    layout: Layout | None = None
    frozen: frozenset[str] = frozenset()
    mine: Arrays | None = None


@dataclass(frozen=True)
class Progress:
    """Where in its local training a client is: ``done`` of ``steps`` local steps, ``per_epoch`` of which are one epoch."""

    done: int
    steps: int
    per_epoch: int


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

    Args:
        reduce: how updates become one aggregate; the mean weighted by ``Update.weight`` unless another is given.
        weighting: how much a client counts: ``"examples"`` (n_k), or ``"uniform"``, every client that has examples alike.

    Class variables that a paper may set:

    ``needs``, a subset of {"start_loss", "start_gradient", "class_counts"}, is measured over all of a client's data before its
    first step.
    ``trains = False``: clients take no local step.
    ``surveys = True``: a round has two conversations; in the first, clients send what ``survey`` makes of their gradient.
    ``keeps_buffers = True``: a client's buffers (BatchNorm's statistics) stay with it.
    ``wires = True``: it must know how the model's layers hang together, and is told by ``wired``.
    ``assumes_sgd``, ``assumes_mean``: why local steps must be plain SGD, or the reduction a mean, if they must.
    ``assumes_rounds``: why all clients of a step must have begun from one model, if they must: no asynchronous rounds.
    ``pointwise = True``: ``init``, ``step``, ``surveyed``, ``report`` and ``survey`` treat every coordinate alike and for
    itself, numbers that clients send excepted, so that a server may take a block at a time; who overrides one says it anew.
    ``departs``: identities of the battery that the paper's method does not have, and why not.
    """

    paper: ClassVar[str] = ""
    needs: ClassVar[frozenset[str]] = frozenset()
    trains: ClassVar[bool] = True
    surveys: ClassVar[bool] = False
    keeps_buffers: ClassVar[bool] = False
    wires: ClassVar[bool] = False
    assumes_sgd: ClassVar[str] = ""
    assumes_mean: ClassVar[str] = ""
    assumes_rounds: ClassVar[str] = ""
    pointwise: ClassVar[bool] = True
    departs: ClassVar[Mapping[str, str]] = {}

    reduce: Reduction = field(default=Mean(), kw_only=True)
    weighting: Literal["examples", "uniform"] = field(default="examples", kw_only=True)

    def __post_init__(self) -> None:
        if self.weighting not in ("examples", "uniform"):
            raise UsageError(f"weighting is {self.weighting!r}; it must be 'examples' or 'uniform'.")
        if not isinstance(self.reduce, Reduction):
            raise UsageError(f"reduce is {self.reduce!r}; give a reduction such as Mean() or Median().")

    # Before a run --------------------------------------------------------------------------------------------------------

    def bind(self, layout: Layout) -> Algorithm:
        """The algorithm for a model whose tensors lie as ``layout`` says; raises UsageError if it cannot have it."""
        return self

    def wired(self, wiring: Wiring) -> Algorithm:
        """The algorithm for a model whose layers hang together so, if it ``wires``."""
        return self

    def check(self, local: Local, cohort: int) -> None:
        """See that it works with this local training and a cohort of so many clients.

        Raises:
            UsageError: it does not, and why.
        """
        name = type(self).__name__
        if self.assumes_sgd:
            extra = [f"momentum={local.momentum}"] if local.momentum else []
            extra += ["optimizer='adam'"] if local.optimizer == "adam" else []
            extra += [f"clip_norm={local.clip_norm}"] if local.clip_norm is not None else []
            if extra:
                raise UsageError(f"{name} cannot be used with {', '.join(extra)}: {self.assumes_sgd}. Use plain local SGD.")
            if local.lr == 0 and self.trains:
                raise UsageError(f"{name} cannot be used with lr=0: {self.assumes_sgd}. Choose a learning rate above 0.")
        if self.assumes_mean and not reductions.linear(self.reduce):
            kind = type(self.reduce).__name__
            raise UsageError(f"{name} cannot be used with reduce={kind}: {self.assumes_mean}. Leave reduce at Mean().")
        reductions.check(self.reduce, cohort)

    # The server ----------------------------------------------------------------------------------------------------------

    def init(self, weights: Array) -> State:
        """The server's state before the first round, from the initial weights [P]."""
        return State(weights=weights)

    def ask(self, state: State, client: int) -> Ask:
        """What this client is sent."""
        return Ask(weights=state.weights)

    def surveyed(self, state: State, aggregate: Update, cohort: Cohort) -> State:
        """The server's state after the first conversation of a round, if it ``surveys``."""
        return state

    def step(self, state: State, aggregate: Update, cohort: Cohort) -> State:
        """The server's state after the round."""
        return state.replace(weights=state.weights + aggregate.delta)

    def layout(self, state: State) -> Layout | None:
        """How ``state.weights`` lie, if the model has other widths by now; None: as the run's own."""
        return None

    def figures(self, state: State) -> dict[str, float]:
        """Numbers that say how the server's state develops, for the round's record."""
        return {}

    # A client ------------------------------------------------------------------------------------------------------------

    def prepare(self, setting: Setting, ask: Ask, mine: Arrays | None) -> Setting:
        """How the client trains this round, for papers that freeze layers, change their widths or begin elsewhere."""
        return setting

    def survey(self, work: Work, ask: Ask, mine: Arrays | None) -> tuple[Update, Arrays | None]:
        """What is sent in the first conversation, if it ``surveys``, and what the client keeps; ``work`` has the
        ``start_gradient``."""
        return Update(gradient=work.start_gradient, weight=self.weight(work)), mine

    def start(self, ask: Ask, mine: Arrays | None) -> Array:
        """Where local training starts: [P]; or longer, for a client that trains more than one model, with ``direction`` to
        match."""
        return ask.weights

    def direction(self, y: Array, gradient: Gradient, ask: Ask, mine: Arrays | None, progress: Progress) -> Array:
        """The direction of a local step at ``y`` (shaped as ``start`` gave it), for papers that need more than one gradient."""
        return self.correct(gradient(y), y, ask, mine)

    def correct(self, grad: Array, y: Array, ask: Ask, mine: Arrays | None) -> Array:
        """The direction of a local step at weights ``y``, from the mini-batch gradient there, which is left as it is."""
        return grad

    def report(self, delta: Array, work: Work, ask: Ask, mine: Arrays | None) -> tuple[Update, Arrays | None]:
        """What is sent, and what the client keeps for its next round; ``delta`` = where it ended - where it started."""
        return Update(delta=delta, weight=self.weight(work)), mine

    def personal(self, weights: Array, mine: Arrays | None) -> Array:
        """The model [P] that a client uses for itself, from the server's weights and what it keeps."""
        return weights

    # Helpers -------------------------------------------------------------------------------------------------------------

    def weight(self, work: Work) -> Any:
        """How much a client counts, by ``weighting``."""
        return work.examples if self.weighting == "examples" else (work.examples > 0) * 1.0

    @property
    def personalised(self) -> bool:
        """Whether clients use models of their own."""
        return type(self).personal is not Algorithm.personal

    @property
    def corrects(self) -> bool:
        """Whether local steps go elsewhere than down the mini-batch's gradient, so that ``correct`` has to be asked."""
        return type(self).correct is not Algorithm.correct

    @property
    def prepares(self) -> bool:
        """Whether clients' training is changed by ``prepare``; buffers are then the algorithm's to send, and ``state.buffers``
        are the model's."""
        return type(self).prepare is not Algorithm.prepare

    @property
    def draws(self) -> bool:
        """Whether clients begin from initial weights of their own, not the server's."""
        return False

    @property
    def period(self) -> int:
        """Rounds that belong together: the same cohort is asked in all of them, and the model is whole after the last."""
        return 1

    @property
    def ends(self) -> int | None:
        """The round after which nothing is left to do, or None."""
        return None


def within(name: str, value: float, least: float, most: float = math.inf, *, below: bool = False, above: bool = False) -> None:
    """See that a hyperparameter lies between ``least`` and ``most``; ``above`` excludes the least, ``below`` the most.

    Raises:
        UsageError: it does not, or is no finite number.
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if number and least <= value <= most and not (above and value == least) and not (below and value == most):
        return
    if most == math.inf:
        range = f"a number above {least:g}" if above else f"a number from {least:g} up"
    else:
        range = f"a number in {'(' if above else '['}{least:g}, {most:g}{')' if below else ']'}"
    raise UsageError(f"{name} is {value!r}; it must be {range}.")

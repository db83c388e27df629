# SPDX-License-Identifier: Apache-2.0
"""The identities that every algorithm must satisfy, as functions that raise AssertionError; also for algorithms of your own.

    from fedweave import battery
    battery.check(MyAlgorithm(mu=0.1))

They are played on least-squares problems in NumPy float64, where the truth is known: client k holds n_k rows of (A_k, b_k) and
minimises F_k(w) = |A_k w - b_k|^2 / (2 n_k); the global objective is F = sum n_k F_k / sum n_k.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedweave.contract import Algorithm, Arrays, Ask, Cohort, State, Update, Work

Vector = npt.NDArray[np.float64]
ToArray = Callable[[Vector], Any]


@dataclass(frozen=True)
class Client:
    """One client's least-squares problem: rows [n, P] and targets [n]."""

    rows: Vector
    targets: Vector

    @property
    def examples(self) -> int:
        return len(self.targets)

    def loss(self, w: Vector) -> float:
        return float(np.square(self.rows @ w - self.targets).sum() / (2 * max(self.examples, 1)))

    def gradient(self, w: Vector) -> Vector:
        return np.asarray(self.rows.T @ (self.rows @ w - self.targets) / max(self.examples, 1))


def federation(seed: int, clients: int = 5, parameters: int = 4, alike: bool = False) -> list[Client]:
    """Clients of uneven sizes whose curvature is at most 1.

    Args:
        alike: all share one optimum; otherwise each has its own.
    """
    draw = np.random.default_rng(seed)
    common = draw.normal(size=parameters)
    made = []
    for _ in range(clients):
        rows = draw.normal(size=(int(draw.integers(parameters, 40)), parameters))
        rows *= np.sqrt(len(rows)) / np.linalg.norm(rows, ord=2)
        own = common if alike else draw.normal(size=parameters)
        made.append(Client(rows, rows @ own))
    return made


def turn(
    algorithm: Algorithm, ask: Ask, client: Client, mine: Arrays | None, lr: float, steps: int, to: ToArray = np.asarray
) -> tuple[Update, Arrays | None]:
    """A client's half of a round: ``steps`` full-batch steps through ``correct``, then ``report``."""

    def gradient(w: Any) -> Any:
        return to(client.gradient(np.asarray(w)))

    measured: dict[str, Any] = {}
    if "start_gradient" in algorithm.needs:
        measured["start_gradient"] = gradient(ask.weights)
    if "start_loss" in algorithm.needs:
        measured["start_loss"] = client.loss(np.asarray(ask.weights))
    y, taken = ask.weights, 0
    if algorithm.trains and client.examples:
        for _ in range(steps):
            y = y - lr * algorithm.correct(gradient(y), y, ask, mine)
        taken = steps
    work = Work(examples=client.examples, steps=taken, lr=lr, **measured)
    return algorithm.report(y - ask.weights, work, ask, mine)


def play(
    algorithm: Algorithm,
    clients: Sequence[Client],
    start: Vector,
    rounds: int = 1,
    lr: float = 0.1,
    steps: int | Sequence[int] = 3,
    population: int | None = None,
    block: int | None = None,
    to: ToArray = np.asarray,
) -> State:
    """Rounds in which all ``clients`` take part, gathered in blocks of ``block`` clients."""
    state = algorithm.init(to(start))
    kept: dict[int, Arrays | None] = {}
    size = block or len(clients)
    each = [steps] * len(clients) if isinstance(steps, int) else list(steps)
    for number in range(1, rounds + 1):
        total = algorithm.reduce.empty()
        for first in range(0, len(clients), size):
            part = algorithm.reduce.empty()
            for k in range(first, min(first + size, len(clients))):
                update, kept[k] = turn(algorithm, algorithm.ask(state, k), clients[k], kept.get(k), lr, each[k], to)
                part = algorithm.reduce.add(part, update)
            total = algorithm.reduce.merge(total, part)
        aggregate = algorithm.reduce.result(total)
        if aggregate is not None:
            state = algorithm.step(state, aggregate, Cohort(len(clients), len(clients), population or len(clients), number))
    return state


def weights(state: State) -> Vector:
    return np.asarray(state.weights, dtype=np.float64)


def objective(clients: Sequence[Client], w: Vector) -> float:
    """F(w), the clients weighted by their examples."""
    return sum(c.examples * c.loss(w) for c in clients) / sum(c.examples for c in clients)


def _close(found: Vector, expected: Vector, what: str) -> None:
    if not np.allclose(found, expected, rtol=1e-9, atol=1e-11):
        raise AssertionError(f"{what}: the weights are {found}, expected {expected}")


# The identities ----------------------------------------------------------------------------------------------------------


def nobody_moves(algorithm: Algorithm, seed: int) -> None:
    """Where every client's gradient is zero, the weights stay."""
    clients = federation(seed, alike=True)
    optimum = np.random.default_rng(seed).normal(size=4)
    found = weights(play(algorithm, clients, optimum, rounds=3))
    _close(found, optimum, "Nobody moves, yet the model does")


def downhill(algorithm: Algorithm, seed: int) -> None:
    """One round of small steps lowers the global objective."""
    clients = federation(seed)
    start = np.random.default_rng(seed + 1).normal(size=4) * 3
    before, after = objective(clients, start), objective(clients, weights(play(algorithm, clients, start, lr=0.02)))
    if not after < before:
        raise AssertionError(f"A round raises the objective, from {before} to {after}: is a sign wrong?")


def finds_the_common_optimum(algorithm: Algorithm, seed: int) -> None:
    """Where all clients share one optimum, many rounds come close to it."""
    clients = federation(seed, alike=True)
    optimum = np.random.default_rng(seed).normal(size=4)
    start = optimum + 1.0
    found = weights(play(algorithm, clients, start, rounds=300, lr=0.3))
    before, after = objective(clients, start), objective(clients, found)
    if not after < 0.05 * before:
        raise AssertionError(f"300 rounds lower the objective only from {before} to {after}; the optimum is 0")


def examples_are_what_counts(algorithm: Algorithm, seed: int) -> None:
    """Two clients that hold half of a client's examples each, in effect, count as that client."""
    clients = federation(seed)
    start = np.zeros(4)
    # The halves repeat the same rows, so that each has the whole's objective and half of its examples.
    doubled = [Client(np.tile(c.rows, (2, 1)), np.tile(c.targets, 2)) for c in clients[:1]] + clients[1:]
    halves = [clients[0], clients[0], *clients[1:]]
    whole = weights(play(algorithm, doubled, start))
    _close(weights(play(algorithm, halves, start)), whole, "A client split in two counts otherwise than before")


def empty_clients_do_not_count(algorithm: Algorithm, seed: int) -> None:
    """A client without examples changes nothing."""
    clients = federation(seed)
    nothing = Client(np.zeros((0, 4)), np.zeros(0))
    found = weights(play(algorithm, [*clients, nothing], np.zeros(4)))
    _close(found, weights(play(algorithm, clients, np.zeros(4))), "A client without examples changes the model")


def only_the_cohort_counts(algorithm: Algorithm, seed: int) -> None:
    """The first round's model does not depend on how many clients were not asked (the erratum of the FedAvg paper)."""
    clients = federation(seed)
    alone = weights(play(algorithm, clients, np.zeros(4)))
    found = weights(play(algorithm, clients, np.zeros(4), population=1000))
    _close(found, alone, "Clients that were not asked change the model")


def order_does_not_matter(algorithm: Algorithm, seed: int) -> None:
    """Neither the order of clients nor the blocks they are gathered in matter."""
    clients = federation(seed)
    steps = [1, 5, 2, 3, 4]
    expected = weights(play(algorithm, clients, np.zeros(4), rounds=2, steps=steps))
    order = np.random.default_rng(seed).permutation(len(clients))
    turned = play(algorithm, [clients[k] for k in order], np.zeros(4), rounds=2, steps=[steps[k] for k in order])
    _close(weights(turned), expected, "The order of clients matters")
    for block in (1, 2, 3):
        found = play(algorithm, clients, np.zeros(4), rounds=2, steps=steps, block=block)
        _close(weights(found), expected, f"Blocks of {block} clients matter")


def arguments_are_left_alone(algorithm: Algorithm, seed: int) -> None:
    """The hooks are pure: what they are given is as it was."""
    client = federation(seed, clients=1)[0]
    start = np.random.default_rng(seed).normal(size=4)
    kept = start.copy()
    state = algorithm.init(start)
    ask = algorithm.ask(state, 0)
    gradient, y = client.gradient(start), start + 1.0
    given = (gradient.copy(), y.copy())
    algorithm.correct(gradient, y, ask, None)
    _close(gradient, given[0], "correct changes the gradient in place")
    _close(y, given[1], "correct changes the weights in place")
    update, _ = turn(algorithm, ask, client, None, 0.1, 2)
    algorithm.step(state, update, Cohort(1, 1, 1, 1))
    _close(start, kept, "A hook changes the server's weights in place")
    _close(weights(state), kept, "step changes the state that it was given")


def stacks_broadcast(algorithm: Algorithm, seed: int) -> None:
    """``correct`` and ``report`` give a stack of clients [K, P] what they give each of them."""
    clients = federation(seed)
    draw = np.random.default_rng(seed)
    ask = algorithm.ask(algorithm.init(draw.normal(size=4)), 0)
    grads, ys = draw.normal(size=(5, 4)), draw.normal(size=(5, 4))
    stacked = np.asarray(algorithm.correct(grads, ys, ask, None))
    for k in range(5):
        _close(stacked[k], np.asarray(algorithm.correct(grads[k], ys[k], ask, None)), "correct does not broadcast")
    column = np.array([[float(c.examples)] for c in clients])
    measured: dict[str, Any] = {}
    if "start_gradient" in algorithm.needs:
        measured["start_gradient"] = grads
    if "start_loss" in algorithm.needs:
        measured["start_loss"] = column / 10
    together, _ = algorithm.report(ys, Work(examples=column, steps=column, lr=0.1, **measured), ask, None)
    for k in range(5):
        single = {name: value[k] for name, value in measured.items()}
        alone, _ = algorithm.report(ys[k], Work(examples=column[k], steps=column[k], lr=0.1, **single), ask, None)
        for name, value in alone.items():
            _close(np.broadcast_to(together[name], (5, np.size(value)))[k], np.asarray(value), "report does not broadcast")


IDENTITIES: tuple[Callable[[Algorithm, int], None], ...] = (
    nobody_moves,
    downhill,
    finds_the_common_optimum,
    examples_are_what_counts,
    empty_clients_do_not_count,
    only_the_cohort_counts,
    order_does_not_matter,
    arguments_are_left_alone,
    stacks_broadcast,
)


def check(algorithm: Algorithm, seeds: Sequence[int] = (0, 1, 2)) -> None:
    """Run every identity on a few federations.

    Raises:
        AssertionError: naming the identity that does not hold.
    """
    for identity in IDENTITIES:
        for seed in seeds:
            try:
                identity(algorithm, seed)
            except AssertionError as error:
                raise AssertionError(f"{type(algorithm).__name__} fails {identity.__name__} (seed {seed}): {error}") from None

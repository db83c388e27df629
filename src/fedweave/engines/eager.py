# SPDX-License-Identifier: Apache-2.0
"""The eager engine: one client after another, in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedweave.attacks import Attack
from fedweave.contract import Algorithm, Array, Arrays, Ask, Local, State, Update, Work
from fedweave.coordinator import BLOCK, Tally, fault
from fedweave.data import Split
from fedweave.diagnosis import Seen, observe
from fedweave.engines.base import Block, Job, Kept
from fedweave.local import Outcome, Trainer, Turn
from fedweave.models import Model, tensor
from fedweave.randomness import generator
from fedweave.reduce.base import Moment

MEASURED = 1000
"""Clients measured one by one at most; of a larger population, a fixed random sample of so many."""


@dataclass(frozen=True)
class Answer:
    """What a client sends and keeps; ``outcome`` None in a survey."""

    client: int
    ask: Ask
    update: Update
    kept: Arrays | None
    outcome: Outcome | None


class Eager:
    """Trains and measures in this process.

    Args:
        model: is overwritten.
        split: the data, and who holds what.
        algorithm: what is done.
        seed: addresses all draws.
        kept: what clients keep between their rounds.
        evaluate: ``"central"``, ``"clients"`` or ``"both"``.
        buffers: ``"mean"``: the clients' buffers enter the model as their parameters do; ``"keep"``: the server's stay.
        attack, byzantine: what bad clients do, and who they are.
        watch: told each client that is done.
        fresh: draws initial weights [P] for a client, where the algorithm's clients begin from their own.
    """

    name = "eager"

    def __init__(
        self,
        model: Model,
        split: Split,
        algorithm: Algorithm,
        seed: int,
        kept: Kept,
        evaluate: str = "central",
        buffers: str = "mean",
        attack: Attack | None = None,
        byzantine: Sequence[int] = (),
        watch: Callable[[int], None] | None = None,
        fresh: Callable[[int], Tensor] | None = None,
    ) -> None:
        self.model, self.split, self.algorithm, self.seed, self.watch = model, split, algorithm, seed, watch
        self.policy = "home" if algorithm.keeps_buffers else buffers
        self.kept, self.attack, self.byzantine = kept, attack, frozenset(byzantine)
        self.x, self.y = tensor(split.x_train), tensor(split.y_train)
        self.trainer = self.bad_trainer = Trainer(model, self.x, self.y, algorithm, fresh)
        if attack is not None and attack.flips_labels:
            self.bad_trainer = Trainer(model, self.x, attack.flipped(self.y, split.classes), algorithm, fresh)
        self.memory = Arrays()
        self.measured = evaluate
        population = split.clients
        self.sample = np.arange(population)
        if population > MEASURED:
            self.sample = np.sort(generator(seed, "measured clients").choice(population, MEASURED, replace=False))

    def train(self, job: Job) -> Iterator[Block]:
        answers: Iterable[Answer | int] = self._answers(job)
        if self.attack is not None:
            answers = self._forged(list(answers), self.attack, job)
        source = iter(answers)
        for first in range(0, len(job.clients), BLOCK):
            last = min(first + BLOCK, len(job.clients))
            partial, tally = job.algorithm.reduce.empty(), Tally()
            seen: list[Seen] = []
            for _ in range(first, last):
                answer = next(source)
                if isinstance(answer, int):
                    tally += Tally(dropped=(answer,))
                    continue
                reason = fault(answer.update)
                if reason is None:
                    if job.observe and answer.outcome is not None:
                        # Before the update is gathered: a reduction may take its arrays for its own.
                        seen.append(observe(answer.client, answer.update, answer.outcome.work, answer.outcome.loss, self.seed))
                    partial = job.algorithm.reduce.add(partial, answer.update)
                    if answer.kept is not None:
                        self.kept.put(answer.client, answer.kept)
                tally += _tally(answer, 0 if job.algorithm.prepares else job.buffers.nbytes, reason)
            yield Block(first, last, partial, tally, tuple(seen))

    def _answers(self, job: Job) -> Iterator[Answer | int]:
        """Of each of the cohort in turn; the number of a client that is not done in time."""
        for client, local in zip(job.clients.tolist(), job.efforts, strict=True):
            answer: Answer | int = client
            if local is not None:
                answer = self._survey(job, client) if job.survey else self._turn(job, client, local)
            if self.watch is not None and not job.survey:
                self.watch(client)
            yield answer

    def _turn(self, job: Job, client: int, local: Local) -> Answer:
        ask, mine = job.algorithm.ask(job.state, client), self._mine(client)
        trainer = self.bad_trainer if client in self.byzantine else self.trainer
        indices, turn = self.split.indices(client), Turn(self.seed, job.round, client)
        buffers = mine["buffers"] if self.policy == "home" and mine is not None else job.buffers
        outcome = trainer.turn(ask, buffers, mine, indices, turn, local)
        update, kept = outcome.update, outcome.mine
        if self.policy == "home":
            kept = (kept or Arrays()).replace(buffers=outcome.buffers)
        elif self.policy == "mean" and self.model.layout.buffer_size and not self.algorithm.prepares:
            update = update.replace(buffers=outcome.buffers)
        return Answer(client, ask, update, kept, outcome)

    def _survey(self, job: Job, client: int) -> Answer:
        ask, mine = job.algorithm.ask(job.state, client), self._mine(client)
        trainer = self.bad_trainer if client in self.byzantine else self.trainer
        turn = Turn(self.seed, job.round, client)
        update, kept = trainer.survey(ask, job.buffers, mine, self.split.indices(client), turn)
        return Answer(client, ask, update, kept, None)

    def _mine(self, client: int) -> Arrays | None:
        kept = self.kept.get(client)
        return None if kept is None else kept.map(lambda v: torch.from_numpy(v) if isinstance(v, np.ndarray) else v)

    def _forged(self, answers: list[Answer | int], attack: Attack, job: Job) -> list[Answer | int]:
        """The answers, the bad clients' as the attack makes them from what all would have sent."""
        sent = [a for a in answers if isinstance(a, Answer) and fault(a.update) is None]
        bad = [a for a in sent if a.client in self.byzantine]
        honest = [a.update for a in sent if a.client not in self.byzantine]
        if not bad or not honest:
            return answers
        moment = Moment(self.seed, job.round)
        made, self.memory = attack.forge([a.update for a in bad], honest, moment, self.memory)
        forged = {a.client: Answer(a.client, a.ask, u, a.kept, a.outcome) for a, u in zip(bad, made, strict=True)}
        return [a if isinstance(a, int) else forged.get(a.client, a) for a in answers]

    def evaluate(self, state: State, buffers: Any) -> dict[str, float]:
        model = self.model.shaped(self.algorithm.layout(state))
        model.load(state.weights, buffers)
        metrics: dict[str, float] = {}
        if self.measured in ("central", "both"):
            metrics |= model.evaluate(tensor(self.split.x_test), tensor(self.split.y_test))
        if self.measured in ("clients", "both"):
            metrics |= self._per_client(model, state, buffers)
        return metrics

    def _per_client(self, model: Model, state: State, buffers: Any) -> dict[str, float]:
        """Each client's own test examples, or its training examples if it has none apart, with the client's own model if the
        algorithm gives it one: the mean weighted by examples, and the 10th, 50th and 90th percentile over clients."""
        sizes: list[int] = []
        columns: dict[str, list[float]] = {}
        own = self.split.test_offsets is not None
        if own:
            x, y = tensor(self.split.x_private), tensor(self.split.y_private)
        else:
            x, y = self.x, self.y
        for client in self.sample.tolist():
            indices = self.split.test_indices(client) if own else self.split.indices(client)
            if indices is None or len(indices) == 0:
                continue
            if self.algorithm.personalised or self.policy == "home":
                mine = self._mine(client)
                at_home = mine["buffers"] if self.policy == "home" and mine is not None else buffers
                model.load(self.algorithm.personal(state.weights, mine), at_home)
            where = torch.from_numpy(np.asarray(indices, np.int64))
            values = model.evaluate(x.index_select(0, where), y.index_select(0, where))
            if not values:
                continue
            sizes.append(len(indices))
            for name, value in values.items():
                columns.setdefault(name, []).append(value)
        metrics = {}
        for name, column in columns.items():
            metrics[f"clients_{name}"] = float(np.average(column, weights=sizes))
            for percent in (10, 50, 90):
                metrics[f"clients_{name}_p{percent}"] = float(np.percentile(column, percent))
        return metrics


def _tally(answer: Answer, buffers: int, reason: str | None) -> Tally:
    down, up = _bytes(answer.ask) + buffers, _bytes(answer.update)
    if reason is not None:
        return Tally(bytes_down=down, bytes_up=up, refused=((answer.client, reason),))
    if answer.outcome is None:
        return Tally(counted=1, bytes_down=down, bytes_up=up)
    work: Work = answer.outcome.work
    loss = answer.outcome.loss * work.examples
    return Tally(counted=1, examples=work.examples, steps=work.steps, loss=loss, bytes_down=down, bytes_up=up)


def _bytes(record: Arrays) -> int:
    """Bytes of the arrays; a scalar counts as eight."""

    def size(value: Array) -> int:
        return int(getattr(value, "nbytes", 8))

    return sum(size(value) for value in record.values())

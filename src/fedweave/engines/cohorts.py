# SPDX-License-Identifier: Apache-2.0
"""The engine: a job cut into units, a crew that performs them with a kernel, and blocks for the coordinator."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from fedweave.attacks import Attack
from fedweave.contract import Arrays, State
from fedweave.coordinator import BLOCK, fault
from fedweave.engines.base import Answer, Block, Crew, Job, Kept, Unit
from fedweave.engines.performing import cut, reduced
from fedweave.reduce.base import Moment


class Cohorts:
    """Trains cohorts.

    Args:
        name: what it is called: its kernel.
        why: why it was chosen.
        crew: performs units.
        chunk: clients of a unit, by the kernel's rule.
        measure: gives the metrics of a model.
        seed: addresses the draws of an attack.
        kept: what clients keep between their rounds.
        attack, byzantine: what bad clients send, and who they are.
        watch: told each client that is done.
    """

    def __init__(
        self,
        name: str,
        why: str,
        crew: Crew,
        chunk: Callable[[Job], int],
        measure: Callable[[State, Any], dict[str, float]],
        seed: int,
        kept: Kept,
        attack: Attack | None = None,
        byzantine: Collection[int] = (),
        watch: Callable[[int], None] | None = None,
    ) -> None:
        self.name, self.why, self.crew, self.chunk, self.evaluate, self.seed = name, why, crew, chunk, measure, seed
        self.kept, self.attack, self.byzantine, self.watch = kept, attack, frozenset(byzantine), watch
        self.memory = Arrays()

    def train(self, job: Job) -> Iterator[Block]:
        units = (self._unit(job, first, last) for first, last in cut(job, self.chunk(job), self.crew.single))
        if self.attack is not None:
            yield from self._attacked(job, units, self.attack)
            return
        for done in self.crew.perform(job, units):
            self._keep(done.kept)
            self._tell(job, *done.unit)
            yield from done.blocks

    @property
    def about(self) -> str:
        """What it is and why, for people."""
        return f"{self.name}, {self.crew.name} ({self.why})"

    def close(self) -> None:
        self.crew.close()

    def _unit(self, job: Job, first: int, last: int) -> Unit:
        asked = range(first, last)
        mine = [None if job.efforts[p] is None else client_state(self.kept, int(job.clients[p])) for p in asked]
        return Unit(first, last, mine)

    def _attacked(self, job: Job, units: Iterator[Unit], attack: Attack) -> Iterator[Block]:
        """All answers are awaited first: bad clients know what every client of the round would have sent."""
        found: dict[int, Sequence[Answer | int]] = {}
        for done in self.crew.perform(job, units):
            found[done.unit[0]] = done.answers
            self._tell(job, *done.unit)
        answers = self._forged([answer for _, part in sorted(found.items()) for answer in part], attack, job)
        for first in range(0, len(answers), BLOCK):
            last, kept = min(first + BLOCK, len(answers)), list[tuple[int, Arrays]]()
            blocks = list(reduced(job, answers[first:last], first, last, kept, self.seed, not job.apart))
            self._keep(kept)
            yield from blocks

    def _forged(self, answers: list[Answer | int], attack: Attack, job: Job) -> list[Answer | int]:
        """The answers, the bad clients' as the attack makes them from what all would have sent."""
        sent = [a for a in answers if isinstance(a, Answer) and fault(a.update) is None]
        bad = [a for a in sent if a.client in self.byzantine]
        honest = [a.update for a in sent if a.client not in self.byzantine]
        if not bad or not honest:
            return answers
        moment = Moment(self.seed, job.round)
        made, self.memory = attack.forge([a.update for a in bad], honest, moment, self.memory)
        forged = {a.client: a._replace(update=u, sound=False) for a, u in zip(bad, made, strict=True)}
        return [a if isinstance(a, int) else forged.get(a.client, a) for a in answers]

    def _keep(self, kept: list[tuple[int, Arrays]]) -> None:
        for client, record in kept:
            self.kept.put(client, record)

    def _tell(self, job: Job, first: int, last: int) -> None:
        if self.watch is not None and not job.survey:
            for client in job.clients[first:last].tolist():
                self.watch(client)


def client_state(kept: Kept, client: int) -> Arrays | None:
    """What a client keeps, as torch tensors and numbers."""
    found = kept.get(client)
    return None if found is None else found.map(lambda v: torch.from_numpy(v) if isinstance(v, np.ndarray) else v)

# SPDX-License-Identifier: Apache-2.0
"""The eager kernel: one client after another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fedweave.engines.base import Job, Task, Trained
from fedweave.local import Trainer


class Eager:
    """Trains one client after another on the same buffers.

    Args:
        honest: the trainer on the data as they are.
        liar: the trainer of bad clients whose labels are wrong.
    """

    name = "eager"

    def __init__(self, honest: Trainer, liar: Trainer) -> None:
        self.honest, self.liar = honest, liar

    def train(self, tasks: Sequence[Task]) -> Iterator[Trained]:
        for task in tasks:
            trainer = self.liar if task.liar else self.honest
            if task.local is None:
                update, kept = trainer.survey(task.ask, task.buffers, task.mine, task.indices, task.turn)
                yield Trained(update, kept, None)
            else:
                outcome = trainer.turn(task.ask, task.buffers, task.mine, task.indices, task.turn, task.local)
                yield Trained(outcome.update, outcome.mine, outcome)

    def together(self, tasks: Sequence[Task]) -> None:
        return None

    def chunk(self, job: Job) -> int:
        return 1

# SPDX-License-Identifier: Apache-2.0
"""What is done with a unit, in whatever process: its clients trained, their updates admitted and reduced."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from fedweave.contract import Arrays, Ask, Update, Work
from fedweave.coordinator import BLOCK, Tally, fault
from fedweave.data import Split
from fedweave.diagnosis import Seen, observe, observe_stack
from fedweave.engines.base import Answer, Block, Done, Job, Kernel, Task, Trained, Unit
from fedweave.engines.rows import columns
from fedweave.engines.stacked import Stacked
from fedweave.reduce.base import ByRows

SINGLE = 8 * BLOCK
"""Clients of a cohort up to which each is a unit of its own: with few blocks, processes would wait for the slowest."""


LONG, HALVED = 64, 3 * BLOCK
"""Local steps of a usual client from which on a stack is cut in two, so that two processes have something to do, and clients of
a cohort from which on. One process then takes more calls; short units would cost more in messages than they bring."""
TOGETHER = 2**16
"""Parameters up to which the updates of a block are looked at as one matrix."""


class Performer:
    """Performs units in this process.

    Args:
        kernel: trains.
        split: who holds what.
        seed: addresses all draws.
        buffers: ``"mean"``: the clients' buffers enter the model as their parameters do; ``"keep"``: the server's stay;
            ``"home"``: each client has its own.
        byzantine: the bad clients.
        unreduced: hand over the updates themselves, since an attack must see them all first.
    """

    def __init__(
        self, kernel: Kernel, split: Split, seed: int, buffers: str, byzantine: Collection[int], unreduced: bool
    ) -> None:
        self.kernel, self.split, self.seed, self.policy = kernel, split, seed, buffers
        self.byzantine, self.unreduced = frozenset(byzantine), unreduced

    def __call__(self, job: Job, unit: Unit) -> Done:
        positions, where = range(unit.first, unit.last), (unit.first, unit.last)
        ask = job.asked_alike()
        tasks = [self._task(job, p, unit.mine[p - unit.first], ask) for p in positions if job.efforts[p] is not None]
        whole = len(positions) > 1 and not job.apart
        # Buffers are nobody's but the server's in what can be stacked.
        stack = self.kernel.together(tasks) if whole and not self.unreduced and self.policy != "home" else None
        if stack is not None and stack.whole and isinstance(job.algorithm.reduce, ByRows):
            return Done(where, list(self._rows(job, stack, tasks, unit)))
        answers = self._answers(job, unit, tasks, self.kernel.train(tasks) if stack is None else stack.each())
        if self.unreduced:
            return Done(where, answers=list(answers))
        kept: list[tuple[int, Arrays]] = []
        return Done(where, list(reduced(job, answers, unit.first, unit.last, kept, self.seed, whole)), kept=kept)

    def chunk(self, job: Job) -> int:
        """Clients of a unit, by a rule that knows nothing of processes: what the kernel trains together, or half of a cohort
        that trains for long."""
        most, clients = self.kernel.chunk(job), len(job.clients)
        local = next((effort for effort in job.efforts if effort is not None), None)
        if most == 1 or local is None or job.survey or clients < HALVED:
            return most
        usual = int(np.median(self.split.sizes[job.clients]))
        return min(most, math.ceil(clients / 2 / BLOCK) * BLOCK) if local.steps_for(usual) >= LONG else most

    def _rows(self, job: Job, stack: Stacked, tasks: Sequence[Task], unit: Unit) -> Iterator[Block]:
        """The blocks of a stack that is whole."""
        reduce, done = job.algorithm.reduce, 0
        assert isinstance(reduce, ByRows)
        each = size(stack.alone[0])
        sent = {key: size(ask) for key, ask in {id(task.ask): task.ask for task in tasks}.items()}
        for start in range(unit.first, unit.last, BLOCK):
            stop, begun = min(start + BLOCK, unit.last), done
            dropped = tuple(int(job.clients[p]) for p in range(start, stop) if job.efforts[p] is None)
            done += stop - start - len(dropped)
            update, work = stack.rows(begun, done)
            losses, mine = stack.losses[begun:done], tasks[begun:done]
            examples, loss = [len(task.indices) for task in mine], 0.0
            for mean, count in zip(losses, examples, strict=True):
                loss += mean * count
            asked = sum(sent[id(task.ask)] + int(task.buffers.nbytes) for task in mine)
            steps = sum(stack.differing["steps"][begun:done])
            tally = Tally(len(mine), sum(examples), steps, loss, asked, each * len(mine), (), dropped)
            partial = reduce.add_rows(reduce.empty(), update) if mine else reduce.empty()
            seen: tuple[Seen, ...] = ()
            if job.observe and mine:
                seen = observe_stack([task.client for task in mine], update, work, losses, self.seed)
            yield Block(start, stop, partial, tally, seen)

    def _answers(self, job: Job, unit: Unit, tasks: Sequence[Task], trained: Iterable[Trained]) -> Iterator[Answer | int]:
        """Of each of the unit's clients in turn; the number of a client that is not done in time."""
        positions, trained = range(unit.first, unit.last), iter(trained)
        awaited = iter(tasks)
        for p in positions:
            if job.efforts[p] is None:
                yield int(job.clients[p])
                continue
            task = next(awaited)
            update, kept, outcome, sound = next(trained)
            if outcome is not None and self.policy == "home":
                kept = (kept or Arrays()).replace(buffers=outcome.buffers)
            elif outcome is not None and self.policy == "mean" and len(outcome.buffers) and not job.algorithm.prepares:
                update, sound = update.replace(buffers=outcome.buffers), False
            sent = size(task.ask) + (0 if job.algorithm.prepares else int(job.starts(p).nbytes))
            yield Answer(task.client, sent, update, kept, outcome, sound)

    def _task(self, job: Job, position: int, mine: Arrays | None, ask: Ask | None) -> Task:
        client = int(job.clients[position])
        buffers = mine["buffers"] if self.policy == "home" and mine is not None else job.starts(position)
        return Task(
            client,
            job.ask(position) if ask is None else ask,
            buffers,
            mine,
            np.asarray(self.split.indices(client), np.int64),
            job.turn(self.seed, position),
            None if job.survey else job.efforts[position],
            client in self.byzantine,
        )


def reduced(
    job: Job,
    answers: Iterable[Answer | int],
    first: int,
    last: int,
    kept: list[tuple[int, Arrays]],
    seed: int,
    whole: bool = True,
) -> Iterator[Block]:
    """The answers of positions ``first`` to ``last``, block by block if they are whole, else one by one; what clients keep goes
    into ``kept``. ``seed`` addresses what is drawn for the diagnosis."""
    source = iter(answers)
    for start in range(first, last, BLOCK if whole else 1):
        stop = min(start + BLOCK, last) if whole else start + 1
        partial, tally, counted = job.algorithm.reduce.empty(), _Tallied(), list[Answer]()
        for _ in range(start, stop):
            answer = next(source)
            if isinstance(answer, int):
                tally.dropped.append(answer)
                continue
            reason = None if answer.sound else fault(answer.update)
            if reason is None:
                partial = job.algorithm.reduce.add(partial, answer.update)
                if answer.kept is not None:
                    kept.append((answer.client, answer.kept))
                if job.observe and answer.outcome is not None:
                    counted.append(answer)
            tally.add(answer, reason)
        yield Block(start, stop, partial, tally.tally(), _seen(counted, seed))


def _seen(answers: Sequence[Answer], seed: int) -> tuple[Seen, ...]:
    """What is noted of counted updates; small ones are looked at together."""
    works = [a.outcome.work for a in answers if a.outcome is not None]
    losses = [a.outcome.loss for a in answers if a.outcome is not None]
    alike = len(answers) > 1 and all(
        w.end is None and isinstance(a.update.get("delta"), Tensor) for a, w in zip(answers, works, strict=True)
    )
    if alike and answers[0].update.delta.numel() <= TOGETHER:
        delta = torch.stack([a.update.delta for a in answers])
        update = Update(delta=delta, weight=columns([a.update.weight for a in answers]))
        gradients = [work.start_gradient for work in works]
        work = Work(
            examples=columns([work.examples for work in works]),
            steps=columns([work.steps for work in works]),
            start_gradient=None if any(g is None for g in gradients) else torch.stack(gradients),
        )
        return observe_stack([a.client for a in answers], update, work, losses, seed)
    triples = zip(answers, works, losses, strict=True)
    return tuple(observe(a.client, a.update, work, loss, seed) for a, work, loss in triples)


class _Tallied:
    """A block's tally, as it grows."""

    def __init__(self) -> None:
        self.counted = self.examples = self.steps = self.down = self.up = 0
        self.loss = 0.0
        self.refused: list[tuple[int, str]] = []
        self.dropped: list[int] = []

    def add(self, answer: Answer, reason: str | None) -> None:
        self.down += answer.asked
        self.up += size(answer.update)
        if reason is not None:
            self.refused.append((answer.client, reason))
            return
        self.counted += 1
        if answer.outcome is not None:
            work = answer.outcome.work
            self.examples += work.examples
            self.steps += work.steps
            self.loss += answer.outcome.loss * work.examples

    def tally(self) -> Tally:
        refused, dropped = tuple(self.refused), tuple(self.dropped)
        return Tally(self.counted, self.examples, self.steps, self.loss, self.down, self.up, refused, dropped)


def size(record: Arrays) -> int:
    """Bytes of the arrays; a scalar counts as eight."""

    return sum([getattr(value, "nbytes", 8) for value in record.values()])


def cut(job: Job, chunk: int, single: bool) -> Sequence[tuple[int, int]]:
    """The stretches (first, last) of a job's units: ``chunk`` clients each, the last one whatever is left.

    Args:
        single: a kernel that trains one client at a time gets units of one, if the cohort is small, so that it can be spread
            over processes.
    """
    clients = len(job.clients)
    step = chunk if chunk > 1 else 1 if single and clients <= SINGLE else BLOCK
    return [(first, min(first + step, clients)) for first in range(0, clients, step)]

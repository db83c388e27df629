# SPDX-License-Identifier: Apache-2.0
"""The training of an asynchronous run, put off and done in batches.

What a client sends depends on the model it began from, its data and its draws, all of which are known once it has begun. So
its training may be done at any time before its answer is used: when one is needed, others whose answers come next are trained
with it. Whom a client is trained with may change the last bit of what it sends, so that what was trained ahead is part of a
checkpoint; what a client keeps stays aside until its answer is used.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fedweave.contract import Algorithm, Arrays, Local, Reduction, Update
from fedweave.coordinator import BLOCK, Arrived, Base, Coordinator, FlowCourse, Tally
from fedweave.coordinator.flow import Task
from fedweave.engines import Block, Job, Kept, Scattered
from fedweave.reduce.base import restored, single

AHEAD = 4 * BLOCK
"""Clients that are trained, or wait trained, at a time, unless more are needed at once."""
HELD = 1 << 26
"""Bytes of 64-bit numbers that their updates may take."""


class Aside:
    """What clients keep between their rounds, with what they will keep once their answers are used.

    Args:
        kept: what they keep now.
    """

    def __init__(self, kept: Kept) -> None:
        self.kept = kept
        self.later: dict[int, Arrays] = {}

    def get(self, client: int) -> Arrays | None:
        return self.kept.get(client)

    def put(self, client: int, kept: Arrays) -> None:
        self.later[client] = kept

    def settle(self, client: int, used: bool) -> None:
        """The client's answer is used, or never will be."""
        record = self.later.pop(client, None)
        if used and record is not None:
            self.kept.put(client, record)


@dataclass(frozen=True)
class Errands:
    """Tasks that are trained when it is time.

    Args:
        aside: what clients keep.
        train: an engine's.
        size: numbers of a model, of which an update in hand takes one of 8 bytes each.
        efforts: how each task's client trains; kept by the driver.
        done: what came of those that are trained already.
    """

    aside: Aside
    train: Callable[[Job], Iterator[Block]]
    size: int
    efforts: dict[int, Local | None]
    done: dict[int, tuple[int, Block]]

    def collect(
        self, answers: tuple[tuple[int, int], ...], coordinator: Coordinator, pending: Mapping[tuple[int, int], float]
    ) -> Iterator[Arrived]:
        """What these answers say; ``pending`` tells when the others will be in."""
        course = coordinator.course
        assert isinstance(course, FlowCourse)
        tasks = {**course.working, **course.buffer, **course.gathering}
        batch = [tasks[number] for _, number in answers if number not in self.done]
        if batch:
            room = min(AHEAD, HELD // (8 * self.size + 1)) - len(batch) - len(self.done)
            coming = sorted((at, number) for (_, number), at in pending.items() if number not in self.done)
            later = [tasks[number] for number in (*course.buffer, *(number for _, number in coming)) if number not in self.done]
            batch += [task for task in later if task not in batch][: max(room, 0)]
            self._trained(batch, coordinator.algorithm, coordinator, course.bases)
        for round, number in answers:
            client, block = self.done.pop(number)
            del self.efforts[number]
            self.aside.settle(client, used=block.tally.counted > 0)
            yield Arrived(round, number, number + 1, block.partial, block.tally)

    def _trained(self, batch: list[Task], algorithm: Algorithm, now: Coordinator, bases: Mapping[int, Base]) -> None:
        job = Scattered(
            now.round + 1,
            np.array([task.client for task in batch], np.int64),
            algorithm,
            now.state,
            now.buffers,
            [self.efforts[task.number] for task in batch],
            rounds=[task.round for task in batch],
            bases=[(bases[task.round].state, bases[task.round].buffers) for task in batch],
        )
        for block in self.train(job):
            task = batch[block.first]
            self.done[task.number] = (task.client, block)

    def arrays(self, reduction: Reduction) -> dict[str, Any]:
        """What was trained ahead, for a checkpoint: named arrays and numbers."""
        found: dict[str, Any] = {}
        tallies: dict[int, Any] = {}
        for number, (client, block) in self.done.items():
            tallies[number] = (client, asdict(block.tally))
            update = single(reduction, block.partial)
            found |= {f"{number}.update.{name}": value for name, value in (update or {}).items()}
            found |= {f"{number}.kept.{name}": value for name, value in self.aside.later.get(client, {}).items()}
        return found | {"tallies": np.frombuffer(json.dumps(tallies).encode(), np.uint8)} if tallies else {}

    def restore(self, arrays: Mapping[str, Any], reduction: Reduction) -> None:
        """Go on from there."""
        if not arrays:
            return
        for text, (client, tally) in json.loads(np.asarray(arrays["tallies"]).tobytes()).items():
            number, parts = int(text), dict[str, dict[str, Any]](update={}, kept={})
            for name, value in arrays.items():
                owner, _, rest = name.partition(".")
                if owner == text:
                    part, _, leaf = rest.partition(".")
                    parts[part][leaf] = value
            tally["refused"] = tuple((who, why) for who, why in tally["refused"])
            tally["dropped"] = tuple(tally["dropped"])
            partial = restored(reduction, Update(**parts["update"]) if parts["update"] else None)
            self.done[number] = (client, Block(0, 1, partial, Tally(**tally)))
            if parts["kept"]:
                self.aside.put(client, Arrays(**parts["kept"]))

    def forget(self, live: set[int]) -> None:
        """Only these tasks are still of interest."""
        for number in [number for number in self.efforts if number not in live]:
            del self.efforts[number]
            if (found := self.done.pop(number, None)) is not None:
                self.aside.settle(found[0], used=False)

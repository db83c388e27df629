# SPDX-License-Identifier: Apache-2.0
"""A crew of processes on this machine, this one among them: ``workers=4`` is three more.

The others are forked, so that data and model exist once in memory; the weights of a round and what comes of a unit pass
through files in memory. This process trains too, and between two units of its own keeps the others busy: each has a unit at
hand and one waiting. A process that dies is replaced, and its units are performed anew; since a unit depends on nothing but
the job, the result is the same.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from multiprocessing import connection
from typing import Any

import torch

from fedweave.contract import Algorithm
from fedweave.engines import parcels
from fedweave.engines.base import Done, Job, Unit
from fedweave.errors import EngineError

AHEAD = 2
"""Units that a process has at a time: the one that it is at, and the next."""
TRIES = 3
"""Processes that may die over one unit before the run ends."""


def possible() -> bool:
    """Whether this system can fork a process that has torch in it."""
    return sys.platform == "linux"


class _Worker:
    """One forked process, as this one sees it."""

    def __init__(self, crew: Workers) -> None:
        self.line, there = connection.Pipe()
        self.slots = [(parcels.Slot(), parcels.Slot()) for _ in range(AHEAD)]
        self.free = list(range(AHEAD))
        self.at: dict[int, Unit] = {}
        with warnings.catch_warnings():
            # Python 3.12 warns of threads that a fork does not copy; the child needs none of them.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if self.pid == 0:
            _live(crew, self, there)
        there.close()
        self.told: Any = None

    def give(self, unit: Unit, round: tuple[int, bytes]) -> None:
        place = self.free.pop()
        self.at[place] = unit
        with contextlib.suppress(OSError):  # it is dead: that is seen when its answer is awaited
            if self.told != round[0]:
                self.line.send_bytes(b"job" + round[1])
                self.told = round[0]
            self.line.send_bytes(bytes([place]) + parcels.put(unit, self.slots[place][0]))

    def take(self) -> Done | None:
        """What it has done; None if it is dead."""
        try:
            message = self.line.recv_bytes()
        except (EOFError, OSError):
            return None
        place = message[0]
        found = parcels.get(message[1:], self.slots[place][1], copied=True)
        del self.at[place]
        self.free.append(place)
        if isinstance(found, BaseException):
            raise found
        return found  # type: ignore[no-any-return]

    def end(self) -> None:
        self.line.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        for pair in self.slots:
            for slot in pair:
                slot.close()


def _live(crew: Workers, me: _Worker, line: connection.Connection) -> None:
    """The life of a forked process: units in, what came of them out, until this program ends."""
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the one who asks for units decides
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: do not outlive it
        me.line.close()
        for other in crew.workers:
            other.line.close()
        torch.set_num_threads(crew.threads)
        job: Job | None = None
        while True:
            message = line.recv_bytes()
            if message[:3] == b"job":
                job = replace(parcels.get(message[4:], crew.rounds[message[3]], copied=False), algorithm=crew.algorithm)
                continue
            place = message[0]
            unit = parcels.get(message[1:], me.slots[place][0], copied=False)
            assert job is not None
            line.send_bytes(bytes([place]) + _performed(crew, job, unit, me.slots[place][1]))
    except (EOFError, OSError):
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _performed(crew: Workers, job: Job, unit: Unit, slot: parcels.Slot) -> bytes:
    """What came of a unit, or the error that it ended with."""
    try:
        return parcels.put(crew.performer(job, unit), slot)
    except Exception as error:
        traced = "".join(traceback.format_exception(error))
        error.add_note(traced)
        try:
            message = parcels.put(error, slot)
            parcels.get(message, slot, copied=True)
            return message
        except Exception:  # an error that cannot be handed over; its text can
            return parcels.put(EngineError(traced), slot)


class Workers:
    """Performs units in ``count`` processes, this one among them.

    Args:
        performer: performs a unit, in any of them.
        algorithm: of all jobs; it is forked with the rest.
        count: how many processes.
        threads: torch's threads in each of the others.
    """

    single = True

    def __init__(self, performer: Callable[[Job, Unit], Done], algorithm: Any, count: int, threads: int = 1) -> None:
        self.performer, self.algorithm, self.threads = performer, algorithm, threads
        self.name = f"{count} processes"
        self.others = count - 1
        self.workers: list[_Worker] = []
        self.rounds = [parcels.Slot(), parcels.Slot()]
        self.number = 0

    def perform(self, job: Job, units: Iterable[Unit]) -> Iterator[Done]:
        while len(self.workers) < self.others:
            self.workers.append(_Worker(self))
        self.number += 1
        turn = self.number % 2
        bare: Any = replace(job, algorithm=Algorithm())  # theirs was forked with them
        message = bytes([turn]) + parcels.put(bare, self.rounds[turn])
        left, again = iter(units), deque[Unit]()
        lost: dict[int, int] = {}
        try:
            while True:
                own: Unit | None = None
                for ahead in range(1, AHEAD + 1):
                    # One for everybody, this process too, before anybody gets a second that others would then wait for.
                    for worker in self.workers:
                        if len(worker.at) < ahead and (unit := _next(again, left)) is not None:
                            worker.give(unit, (self.number, message))
                    own = _next(again, left) if own is None else own
                if own is not None:
                    yield self.performer(job, own)
                elif not any(worker.at for worker in self.workers):
                    return
                yield from self._heard(again, lost, wait=own is None)
        finally:
            # A round that was not seen to its end leaves units behind whose answers nobody awaits.
            for worker in [w for w in self.workers if w.at]:
                worker.end()
                self.workers.remove(worker)

    def _heard(self, again: deque[Unit], lost: dict[int, int], wait: bool) -> Iterator[Done]:
        """What the others have done by now; waits for one of them if there is nothing else to do."""
        busy = {worker.line: worker for worker in self.workers if worker.at}
        for line in connection.wait(list(busy), None if wait else 0):
            worker = busy[line]  # type: ignore[index]
            done = worker.take()
            if done is not None:
                yield done
                continue
            self.workers.remove(worker)
            worker.end()
            for unit in worker.at.values():
                lost[unit.first] = lost.get(unit.first, 0) + 1
                if lost[unit.first] >= TRIES:
                    raise EngineError(
                        f"{TRIES} worker processes died while they trained clients {unit.first} to {unit.last - 1} of the "
                        f"cohort, perhaps for lack of memory. Choose fewer workers; what was done is kept."
                    )
                again.append(unit)
            self.workers.append(_Worker(self))

    def close(self) -> None:
        for worker in self.workers:
            worker.end()
        self.workers = []
        for slot in self.rounds:
            slot.close()
        self.rounds = []


def _next(again: deque[Unit], left: Iterator[Unit]) -> Unit | None:
    return again.popleft() if again else next(left, None)

# SPDX-License-Identifier: Apache-2.0
"""Engines timed on a user's own model and data, when that is asked for: ``engine="measure"`` and ``fedweave tune``."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedweave.engines.base import Engine, Job

PASSES, FIRST = 3, 2
"""Times that each candidate is timed at least, taking turns, once it is among the last and before; the fastest counts, since a
machine is only ever slowed down."""
NEAR = 1.6
"""Times the fastest's time up to which a candidate is tried on; the others are out."""
ENOUGH = 50
"""Times after which more would tell nothing."""


@dataclass(frozen=True)
class Candidate:
    """An engine and a number of processes."""

    engine: str
    workers: int


@dataclass(frozen=True)
class Timing:
    """How long a candidate takes for a round, in seconds; None, and why, if it cannot be had."""

    candidate: Candidate
    seconds: float | None
    about: str


def candidates(engines: Sequence[str], most: int) -> list[Candidate]:
    """Each engine in one process, and in 2, 4, ... up to ``most``, which is always among them."""
    counts = sorted({min(2**n, most) for n in range(most.bit_length() + 1)})
    return [Candidate(engine, count) for engine in engines for count in counts]


def calibrate(
    make: Callable[[Candidate], Engine | str], job: Job, found: Sequence[Candidate], seconds: float
) -> Iterator[Timing]:
    """How long each candidate takes for a job, fastest first. Those that are far behind at first are not tried any longer; the
    others are timed on all of the job, if there is time for it: how it is shared out among processes depends on its length.

    Args:
        make: an engine of its own for a candidate, which may leave no trace in the run; or why it cannot be had.
        job: a round of the run. A long one is cut to as many of its clients as fit the time.
        found: what to try.
        seconds: for all of them together; a candidate takes a round or two more if it is slow.
    """
    engines: dict[Candidate, Engine] = {}
    refused: list[Timing] = []
    best: dict[Candidate, float] = {}
    near: dict[Candidate, float] = {}
    try:
        for candidate in found:
            made = make(candidate)
            if isinstance(made, str):
                refused.append(Timing(candidate, None, made))
            else:
                engines[candidate] = made
        share = seconds / max(len(engines), 1) / (FIRST + PASSES)
        part, whole = _fitting(job, next(iter(engines.values())), share) if engines else (job, 1.0)
        began, left = time.perf_counter(), dict(engines)
        for engine in engines.values():
            _timed(engine, part)  # what is made once: processes, buffers, compiled code
        for _ in range(FIRST):
            _pass(left, part, whole, best)
        left = {c: engine for c, engine in left.items() if best[c] <= NEAR * min(best.values())}
        if PASSES * sum(best[c] for c in left) <= seconds:
            part, whole = job, 1.0
        passes = 0
        while passes < PASSES or (time.perf_counter() - began < seconds and passes < ENOUGH):
            _pass(left, part, whole, near)
            passes += 1
            if time.perf_counter() - began > 2 * seconds:
                break
        best |= near
        about = {candidate: engine.about for candidate, engine in engines.items()}
    finally:
        for engine in engines.values():
            engine.close()
    for candidate in sorted(best, key=lambda c: (c not in near, best[c])):
        yield Timing(candidate, best[candidate], about[candidate])
    yield from refused


def _pass(engines: Mapping[Candidate, Engine], job: Job, whole: float, best: dict[Candidate, float]) -> None:
    """Each engine once; ``best`` is the least that it took so far, times ``whole``."""
    for candidate, engine in engines.items():
        best[candidate] = min(best.get(candidate, float("inf")), _timed(engine, job) * whole)


def _timed(engine: Engine, job: Job) -> float:
    began = time.perf_counter()
    for _ in engine.train(job):
        pass
    return time.perf_counter() - began


def _fitting(job: Job, engine: Engine, seconds: float) -> tuple[Job, float]:
    """So many of a job's clients that they take about so long, and by how much the whole takes longer."""
    clients = len(job.clients)
    if clients < 2:
        return job, 1.0
    one = _timed(engine, _first(job, 1))
    one = min(one, _timed(engine, _first(job, 1)))
    count = int(np.clip(seconds / max(one, 1e-9), min(2, clients), clients))
    return _first(job, count), clients / count


def _first(job: Job, count: int) -> Job:
    return replace(job, clients=job.clients[:count], efforts=job.efforts[:count])

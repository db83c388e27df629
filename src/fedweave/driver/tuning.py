# SPDX-License-Identifier: Apache-2.0
"""The engine of a run found by trying: each candidate trains the run's own cohort for a few seconds, and leaves no trace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from fedweave.contract import Array, Arrays, Local, State
from fedweave.engines import Engine, Job, Setup
from fedweave.engines import build as build_engine
from fedweave.engines.calibrating import Candidate, Timing, calibrate, candidates
from fedweave.engines.workers import possible
from fedweave.errors import FedweaveError
from fedweave.randomness import generator
from fedweave.reduce.parallel import cores

KERNELS = ("eager", "vectorized")
"""What is tried on this machine."""
SECONDS = 5.0
"""For all candidates together, unless more is given."""


class _Nothing:
    """Clients that keep nothing between two trials."""

    def get(self, client: int) -> Arrays | None:
        return None

    def put(self, client: int, kept: Arrays) -> None:
        return None


def tuned(setup: Setup, state: State, buffers: Array, cohort: int, local: Local, seconds: float = SECONDS) -> list[Timing]:
    """How long a round takes with each engine and number of processes, fastest first.

    Args:
        setup: of the run; its ``workers``, if given, is the only number that is tried.
        state, buffers: what a round begins from.
        cohort: clients per round.
        local: what they are asked for.
    """
    chosen = generator(setup.seed, "calibration").choice(setup.split.clients, min(cohort, setup.split.clients), replace=False)
    clients = np.sort(chosen).astype(np.int64)
    job = Job(1, clients, setup.algorithm, state, buffers, [local] * len(clients))
    most = max(1, min(cores(), cohort)) if possible() else 1
    found = candidates(KERNELS, most)
    if setup.workers is not None:
        found = [Candidate(kernel, setup.workers) for kernel in KERNELS]
    return list(calibrate(_maker(setup), job, found, seconds))


def _maker(setup: Setup) -> Callable[[Candidate], Engine | str]:
    def make(candidate: Candidate) -> Engine | str:
        plain = replace(setup, kept=_Nothing(), engine=candidate.engine, workers=candidate.workers, watch=None, attack=None)
        try:
            engine = build_engine(plain)
        except FedweaveError as error:
            return str(error)
        if engine.name != candidate.engine:
            engine.close()
            return engine.about
        return engine

    return make

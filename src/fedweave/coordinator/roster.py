# SPDX-License-Identifier: Apache-2.0
"""Who may be asked, and what is known of them: what a Sampling must be told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from fedweave.coordinator.course import Clients
from fedweave.sampling import Available, BySize, Candidates, Poisson, Sampling, Uniform


class Roster:
    """Chooses clients by a sampling, and remembers what they last reported if the sampling looks at it.

    Args:
        sampling: the rule.
        seed: addresses its draws.
        population: number of clients N.
        sizes: examples that each holds [N]; None: not known.
        online: who is online at a time of the driver's clock [N]; None: not known.
    """

    def __init__(
        self,
        sampling: Sampling,
        seed: int,
        population: int,
        sizes: npt.NDArray[np.int64] | None = None,
        online: Callable[[float], npt.NDArray[np.bool_]] | None = None,
    ) -> None:
        self.sampling, self.seed, self.population, self.sizes = sampling, seed, population, sizes
        self.online = None if isinstance(sampling, (Uniform, Poisson)) else online
        self.learns = not isinstance(sampling, (Uniform, Available, BySize, Poisson))
        known = population if self.learns else 0
        self.losses, self.durations = np.full((2, known), np.nan, np.float32)

    def __call__(self, round: int, size: int, now: float, busy: Clients) -> Clients | None:
        mask = None
        if len(busy):
            mask = np.zeros(self.population, np.bool_)
            mask[busy] = True
        found = self.sampling.select(
            Candidates(
                self.seed,
                round,
                self.population,
                size,
                self.sizes,
                None if self.online is None else self.online(now),
                self.losses if self.learns else None,
                self.durations if self.learns else None,
                mask,
            )
        )
        # A Poisson sample may be empty, and is then not drawn again.
        return None if len(found) == 0 and not isinstance(self.sampling, Poisson) else found

    def learn(self, client: int, *, loss: float | None = None, seconds: float | None = None) -> None:
        """What a client reported: its mean training loss, how long it took."""
        if self.learns:
            if loss is not None:
                self.losses[client] = loss if np.isfinite(loss) else np.nan
            if seconds is not None:
                self.durations[client] = seconds

    def arrays(self) -> dict[str, Any]:
        """What it remembers, for a checkpoint."""
        return {"losses": self.losses.copy(), "durations": self.durations.copy()} if self.learns else {}

    def restore(self, arrays: dict[str, Any]) -> None:
        """Go on from there."""
        if arrays:
            self.losses, self.durations = (np.array(arrays[name], np.float32) for name in ("losses", "durations"))

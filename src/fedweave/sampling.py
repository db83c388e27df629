# SPDX-License-Identifier: Apache-2.0
"""Which clients are asked. A sampling is a value without memory: whatever it must know comes in, so that a run that is
resumed asks the same clients, and a simulator and a server ask by one rule.

Clients that are busy are never asked again. ``uniform`` and ``poisson`` draw from all others, because what they promise
is a probability for every client; the rest draw from those that are online, where it is known who is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from fedweave import names
from fedweave.errors import UsageError
from fedweave.randomness import generator

Numbers = npt.NDArray[np.int64]
Known = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Candidates:
    """From whom a cohort is drawn, and what is known of them.

    Args:
        seed, round: address the draw; ``round`` is the number of the draw where rounds overlap.
        population: number of clients N.
        size: how many are wanted.
        sizes: examples that each client holds [N].
        online: who is online [N]; None: not known.
        losses: the mean training loss that each last reported [N], finite, nan if it never did; None: nobody did.
        durations: seconds that each last took for its task [N], nan if unknown; None: nothing is known.
        busy: who is training already [N]; None: nobody.
    """

    seed: int
    round: int
    population: int
    size: int
    sizes: Numbers | None = None
    online: npt.NDArray[np.bool_] | None = None
    losses: Known | None = None
    durations: Known | None = None
    busy: npt.NDArray[np.bool_] | None = None

    def idle(self) -> Numbers:
        """Who is not busy, ascending."""
        return np.arange(self.population) if self.busy is None else np.flatnonzero(~self.busy)

    def ready(self) -> Numbers:
        """Who is neither busy nor known to be offline, ascending."""
        if self.online is None:
            return self.idle()
        return np.flatnonzero(self.online if self.busy is None else self.online & ~self.busy)

    def known(self, values: Known | None, clients: Numbers) -> Known:
        """The losses or durations of these clients, nan where nothing is known."""
        return np.full(len(clients), np.nan, np.float32) if values is None else values[clients]

    def generator(self, purpose: str) -> np.random.Generator:
        return generator(self.seed, purpose, self.round)


@runtime_checkable
class Sampling(Protocol):
    """Which clients are asked."""

    def select(self, moment: Candidates) -> Numbers:
        """Client numbers, ascending; ``moment.size`` of them, or all that may be asked if those are fewer."""


@dataclass(frozen=True)
class Uniform:
    """All clients alike, without replacement, be they online or not: who is not, does not answer."""

    def select(self, moment: Candidates) -> Numbers:
        return _uniformly(moment, moment.idle())


@dataclass(frozen=True)
class Available:
    """Those that are online alike, without replacement. Where everyone is, they are the clients that ``Uniform`` draws."""

    def select(self, moment: Candidates) -> Numbers:
        return _uniformly(moment, moment.ready())


@dataclass(frozen=True)
class BySize:
    """Without replacement, each client with a probability of exactly ``size * n_k / sum(n)``, or 1 where that is more
    (the others' then share what is left). Clients without examples are never asked.

    Systematic sampling of a random order (Hartley and Rao, "Sampling with unequal probabilities and without replacement",
    Annals of Mathematical Statistics 33, 1962), in whole numbers. With ``weighting="uniform"`` the mean over such cohorts is
    unbiased for the mean over all examples while no client's probability is cut at 1, as in Li et al., "On the Convergence of
    FedAvg on Non-IID Data", ICLR 2020, whose scheme I draws with replacement.
    """

    def select(self, moment: Candidates) -> Numbers:
        ready = moment.ready()
        return ready[_in_proportion(_sizes("by-size", moment)[ready], moment.size, moment.generator("cohort"))]


@dataclass(frozen=True)
class Poisson:
    """Each client on its own with the same probability, which is what the privacy of DP-FedAvg is accounted by (McMahan et al.,
    "Learning Differentially Private Recurrent Language Models", ICLR 2018). The cohort's size varies; it may be empty.
    It is then not drawn again, which would change the probabilities: the round has no clients and makes no step.

    Args:
        rate: the probability; ``size / population`` unless given.
    """

    rate: float | None = None

    def __post_init__(self) -> None:
        if self.rate is not None:
            _between("rate", self.rate, 0, 1)

    def select(self, moment: Candidates) -> Numbers:
        rate = moment.size / moment.population if self.rate is None else self.rate
        # Client k's draw is number k of the stream, whatever the number of clients.
        chosen = moment.generator("cohort").random(moment.population) < rate
        return np.flatnonzero(chosen if moment.busy is None else chosen & ~moment.busy)


@dataclass(frozen=True)
class PowerOfChoice:
    """Of ``d`` candidates, drawn by size, those with the largest local losses.

    Cho, Wang, Joshi, "Client Selection in Federated Learning: Convergence Analysis and Power-of-Choice Selection Strategies",
    arXiv:2010.01243, section 4: the variant rpow-d, which costs no communication. It takes for a client's loss what it last
    reported, and infinity before that; ties are broken at random. Candidates are drawn as ``BySize`` draws. It converges
    faster where clients differ, to a model that is biased towards clients with large losses, the more the larger ``d``.

    Args:
        d: candidates, at least as many as are wanted.
    """

    d: int

    def __post_init__(self) -> None:
        if isinstance(self.d, bool) or not isinstance(self.d, int) or self.d < 1:
            raise UsageError(f"d is {self.d!r}; it must be a whole number from 1 up.")

    def select(self, moment: Candidates) -> Numbers:
        if self.d < moment.size:
            raise UsageError(f"d is {self.d}, but {moment.size} clients are asked; choose a d from {moment.size} up.")
        ready, rng = moment.ready(), moment.generator("cohort")
        candidates = ready[_in_proportion(_sizes("power-of-choice", moment)[ready], self.d, rng)]
        losses = moment.known(moment.losses, candidates).astype(np.float64)
        losses[np.isnan(losses)] = np.inf
        order = np.lexsort((rng.random(len(candidates)), -losses))
        return np.sort(candidates[order[: moment.size]])


@dataclass(frozen=True)
class Oort:
    """Clients with much to learn from that are not too slow, and some that were never tried.

    Lai, Zhu, Madhyastha, Chowdhury, "Oort: Efficient Federated Learning via Guided Participant Selection", OSDI 2021,
    algorithm 1. A client's utility is ``n_k`` times its last loss, times ``(pace / t_k) ** alpha`` if it took ``t_k >
    pace`` seconds. A share of the cohort, ``explore * decay ** (round - 1)`` but at least ``least``, is drawn from
    clients that never reported; the others from those whose utility is at least ``cut`` times that of the last who would
    have a place, in proportion to it. Utilities above the 95th percentile count as that.

    What differs: the loss is a client's mean and not the root of its mean square, which is not reported; clients that
    were never tried are drawn alike, because their speed is not known; ``pace`` stays where it is, and no utility grows
    with age.

    Args:
        pace: seconds that a client may take without a penalty; the median of those known unless given.
        alpha: exponent of the penalty.
        explore, decay, least: share of the cohort that is new.
        cut: share of the last utility with a place that still makes a candidate.
    """

    pace: float | None = None
    alpha: float = 2.0
    explore: float = 0.9
    decay: float = 0.98
    least: float = 0.2
    cut: float = 0.95

    def __post_init__(self) -> None:
        if self.pace is not None:
            _between("pace", self.pace, 0, math.inf)
        _between("alpha", self.alpha, 0, math.inf)
        for name in ("explore", "decay", "least", "cut"):
            _between(name, getattr(self, name), 0, 1)

    def select(self, moment: Candidates) -> Numbers:
        ready, rng = moment.ready(), moment.generator("cohort")
        size = min(moment.size, len(ready))
        losses = moment.known(moment.losses, ready)
        tried, fresh = ready[~np.isnan(losses)], ready[np.isnan(losses)]
        new = min(math.floor(max(self.explore * self.decay ** (moment.round - 1), self.least) * size + 0.5), len(fresh))
        new = max(new, size - len(tried))
        explored = rng.choice(fresh, new, replace=False, shuffle=False)
        utilities = self._utilities(moment, tried)
        return np.sort(np.concatenate([explored, self._exploited(tried, utilities, size - new, rng)]))

    def _utilities(self, moment: Candidates, tried: Numbers) -> npt.NDArray[np.float64]:
        losses = np.maximum(moment.known(moment.losses, tried).astype(np.float64), 0)
        utilities = _sizes("oort", moment)[tried].astype(np.float64) * losses
        if len(utilities):
            utilities = np.minimum(utilities, np.quantile(utilities, 0.95))
        durations = moment.known(moment.durations, tried).astype(np.float64)
        seen = ~np.isnan(durations)
        if seen.any():
            pace = float(np.median(durations[seen])) if self.pace is None else self.pace
            slow = seen & (durations > pace)
            utilities[slow] *= (pace / durations[slow]) ** self.alpha
        return utilities

    def _exploited(self, tried: Numbers, utilities: npt.NDArray[np.float64], count: int, rng: np.random.Generator) -> Numbers:
        if count == 0:
            return tried[:0]
        last = np.partition(utilities, len(utilities) - count)[len(utilities) - count]
        candidates = np.flatnonzero(utilities >= self.cut * last)
        # One exponential clock per candidate: the first to ring are a draw in proportion, without replacement.
        with np.errstate(divide="ignore"):
            rings = rng.exponential(size=len(candidates)) / utilities[candidates]
        return tried[candidates[np.argsort(rings, kind="stable")[:count]]]


SAMPLINGS: dict[str, type[Any]] = {
    "uniform": Uniform,
    "available": Available,
    "by-size": BySize,
    "poisson": Poisson,
    "power-of-choice": PowerOfChoice,
    "oort": Oort,
}
"""The samplings by name."""


def sampling(choice: str | Sampling) -> Sampling:
    """The sampling itself, or the one named: ``"power-of-choice(d=20)"``.

    Raises:
        UnknownName, UsageError: there is none of that name; an argument is unknown or out of its range.
    """
    found: Sampling = names.chosen("sampling", SAMPLINGS, Sampling, choice)
    return found


def spell(value: Sampling) -> str:
    """The text that ``sampling`` turns back into this value."""
    return names.spelled(SAMPLINGS, value)


# Draws -------------------------------------------------------------------------------------------------------------------


def _uniformly(moment: Candidates, clients: Numbers) -> Numbers:
    size = min(moment.size, len(clients))
    chosen = moment.generator("cohort").choice(len(clients), size, replace=False, shuffle=False)
    return np.sort(clients[chosen]).astype(np.int64)


def _in_proportion(sizes: Numbers, count: int, rng: np.random.Generator) -> Numbers:
    """``count`` positions, ascending, without replacement, each with probability ``count * size / sum(sizes)``, those of
    more than 1 for certain; all with a size above 0 if they are no more."""
    held = np.flatnonzero(sizes > 0)
    if len(held) <= count:
        return held
    sizes = sizes.astype(np.int64)
    sure = np.zeros(len(sizes), np.bool_)
    while True:
        rest = held[~sure[held]]
        left, total = count - int(sure.sum()), int(sizes[rest].sum())
        more = rest[sizes[rest] * left > total]
        if not len(more):
            break
        sure[more] = True
    # The clients as intervals of length left * size on a line of left * total, in random order: of the points first + i * total
    # each interval, none of them longer than total, holds one at most.
    order = rng.permutation(rest)
    first = int(rng.integers(total)) if left else 0
    points = first + np.arange(left) * total
    chosen = order[np.searchsorted(np.cumsum(sizes[order] * left), points, side="right")]
    return np.sort(np.concatenate([np.flatnonzero(sure), chosen]))


def _sizes(name: str, moment: Candidates) -> Numbers:
    if moment.sizes is None:
        raise UsageError(f"The sampling {name!r} needs to know how many examples each client holds.")
    return moment.sizes


def _between(name: str, value: object, low: float, high: float) -> None:
    fine = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and low <= value <= high
    if not fine:
        span = f"a number from {low:g} up" if high == math.inf else f"between {low:g} and {high:g}"
        raise UsageError(f"{name} is {value!r}; it must be {span}.")

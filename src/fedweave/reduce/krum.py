# SPDX-License-Identifier: Apache-2.0
"""Rules that choose clients by their distances to each other: Krum, multi-Krum and Bulyan.

Blanchard, El Mhamdi, Guerraoui, Stainer, "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent", NIPS 2017.
El Mhamdi, Guerraoui, Rouault, "The Hidden Vulnerability of Distributed Learning in Byzantium", ICML 2018, arXiv:1802.07927.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedweave.errors import UsageError
from fedweave.reduce import networks
from fedweave.reduce.base import Moment
from fedweave.reduce.checks import enough, whole
from fedweave.reduce.parallel import Host, Scratch
from fedweave.reduce.rows import Matrix, Rows, Vector
from fedweave.reduce.stack import Stacked


def scores(squared: Matrix, f: int) -> Matrix:
    """Krum's scores [n]: each one's sum of squared distances to the n - f - 2 others that are nearest (at least 1 of them).

    Args:
        squared: [n, n], squared distances.
        f: how many bad ones there may be.
    """
    n = len(squared)
    others = np.sort(squared[~np.eye(n, dtype=np.bool_)].reshape(n, n - 1), axis=1)
    return np.asarray(others[:, : max(n - f - 2, 1)].sum(axis=1))


@dataclass(frozen=True)
class Krum(Stacked):
    """The one update whose n - f - 2 nearest neighbours are nearest, by the sum of squared distances.

    Blanchard et al., NIPS 2017, section 4. Needs n >= 2f + 3 clients; of equal scores the first client's counts. Time
    O(K^2 P), as one matrix product. Use it when a few clients may send anything at all and the rest are alike; a single
    client's update is noisy, so where their data differ prefer multi-Krum, or nnm before it.

    Args:
        f: how many bad clients it withstands.

    Raises:
        UsageError: f is not a whole number from 0 up.
    """

    f: int

    def __post_init__(self) -> None:
        whole("f", self.f, 0)

    def check(self, cohort: int) -> None:
        enough("krum", cohort, 2 * self.f + 3, f"2f + 3 with f = {self.f}")

    def combine(self, rows: Rows, moment: Moment) -> Vector:
        best = np.argmin(scores(rows.distances(), self.f))
        return rows.combination(np.eye(rows.count)[best])


@dataclass(frozen=True)
class MultiKrum(Stacked):
    """The mean of the m updates that Krum scores best.

    Blanchard et al., NIPS 2017, section 4 (m-Krum): scored once. Needs n >= 2f + 3 clients and 1 <= m <= n - f. Time
    O(K^2 P), as one matrix product. Use it as Krum, when one client's update alone is too noisy.

    Args:
        f: how many bad clients it withstands.
        m: how many updates are averaged; None is n - f, whatever n comes.

    Raises:
        UsageError: f is not a whole number from 0 up, or m none from 1 up.
    """

    f: int
    m: int | None = None

    def __post_init__(self) -> None:
        whole("f", self.f, 0)
        if self.m is not None:
            whole("m", self.m, 1)

    def check(self, cohort: int) -> None:
        enough("multi-krum", cohort, 2 * self.f + 3, f"2f + 3 with f = {self.f}")
        if self.m is not None and self.m > cohort - self.f:
            raise UsageError(f"m is {self.m}, but of {cohort} clients with f = {self.f} at most {cohort - self.f} can be kept.")

    def combine(self, rows: Rows, moment: Moment) -> Vector:
        m = rows.count - self.f if self.m is None else self.m
        best = np.argsort(scores(rows.distances(), self.f), kind="stable")[:m]
        shares = np.zeros(rows.count)
        shares[best] = 1.0 / m
        return rows.combination(shares)


@dataclass(frozen=True)
class Bulyan(Stacked):
    """Of n - 2f updates chosen by Krum, the mean of each coordinate's n - 4f values nearest its median.

    El Mhamdi et al., ICML 2018, section 4: theta = n - 2f, beta = theta - 2f. Krum is played on those not yet chosen, with the
    same f and always at least one neighbour; of equal scores the first client's counts, as of two that are each other's only
    neighbour. Of two windows of values equally near the median the lower one counts. Needs n >= 4f + 3 clients. Time
    O(K^2 P + K^3). Use it when an attacker may hide a large change in a single coordinate.

    Args:
        f: how many bad clients it withstands.

    Raises:
        UsageError: f is not a whole number from 0 up.
    """

    f: int

    def __post_init__(self) -> None:
        whole("f", self.f, 0)

    def check(self, cohort: int) -> None:
        enough("bulyan", cohort, 4 * self.f + 3, f"4f + 3 with f = {self.f}")

    def combine(self, rows: Rows, moment: Moment) -> Vector:
        chosen = self.choose(rows.distances())
        beta = len(chosen) - 2 * self.f

        def kernel(block: list[Host], out: Host, scratch: Scratch) -> None:
            nearest_to_median([block[k] for k in chosen], beta, out, scratch)

        return rows.coordinatewise(kernel)

    def choose(self, squared: Matrix) -> list[int]:
        """The n - 2f that Krum takes, best first, from squared distances [n, n]."""
        n, f = len(squared), self.f
        left, chosen = np.ones(n, dtype=np.bool_), np.empty(0, dtype=np.intp)
        others = np.where(np.eye(n, dtype=np.bool_), np.inf, squared)
        order = np.argsort(others, axis=1, kind="stable")
        place = np.argsort(order, axis=1)
        # A client's neighbours by distance. With every choice their number falls by one, so their set only ever shrinks:
        # by the chosen one, or where that is none of them by the farthest.
        near = np.take_along_axis(others, order, axis=1)
        near[:, n - f - 2 :] = 0.0
        held = np.arange(n)[None, :] < np.full((n, 1), n - f - 2)
        while len(chosen) < n - 2 * f:
            if left.sum() - f - 2 > 0:
                best = int(np.argmin(np.where(left, near.sum(axis=1), np.inf)))
            else:
                rest = np.flatnonzero(left)
                best = int(rest[np.argmin(scores(squared[np.ix_(rest, rest)], f))])
            chosen, left[best] = np.append(chosen, best), False
            rows = np.arange(n)
            gone = np.where(held[rows, place[:, best]], place[:, best], n - 1 - np.argmax(held[:, ::-1], axis=1))
            near[rows, gone], held[rows, gone] = 0.0, False
        return [int(k) for k in chosen]


def nearest_to_median(rows: list[Host], beta: int, out: Host, scratch: Scratch) -> None:
    """The mean of each column's ``beta`` values that are nearest to its median, into ``out`` [B]."""
    ordered = networks.ranked(rows, scratch)
    n = len(ordered)
    # In float64 so that two values of float32 on either side of the median are compared without rounding.
    median = np.add(ordered[(n - 1) // 2], ordered[n // 2], dtype=np.float64) * 0.5
    first: npt.NDArray[np.intp] = np.zeros(out.shape, np.intp)
    least = np.maximum(median - ordered[0], ordered[beta - 1] - median)
    for start in range(1, n - beta + 1):
        radius = np.maximum(median - ordered[start], ordered[start + beta - 1] - median)
        better = radius < least
        first[better] = start
        np.minimum(least, radius, out=least)
    total = np.zeros(out.shape)
    for rank, row in enumerate(ordered):
        np.add(total, row, out=total, where=(first <= rank) & (rank < first + beta))
    np.divide(total, beta, out=out, casting="same_kind")

# SPDX-License-Identifier: Apache-2.0
"""Rules that iterate on a point among the updates: geometric median and centred clipping.

The point is always anchor + shares @ (rows - anchor), so only the K shares are iterated on. Distances to it come from the
K x K inner products, which take one pass over the data for all iterations, or for many clients from one pass each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedweave.errors import MismatchError, UsageError
from fedweave.reduce.base import Moment
from fedweave.reduce.checks import positive, whole
from fedweave.reduce.parallel import Host
from fedweave.reduce.rows import Matrix, Rows, Vector, host
from fedweave.reduce.stack import Stacked

PRODUCTS = 100
"""Clients per further iteration up to which the inner products are the shorter way (measured)."""


def squared_distances(rows: Rows, anchor: Host | None, iterations: int) -> Callable[[Matrix], Matrix]:
    """What gives the squared distances [K] of the rows to the point of some shares [K]."""
    if rows.clients > PRODUCTS * (iterations - 1):
        return lambda shares: rows.squares(shares, anchor)
    products = rows.gram(anchor)
    if not np.isfinite(products).all():
        return lambda shares: rows.squares(shares, anchor)

    def from_products(shares: Matrix) -> Matrix:
        along = products @ shares
        return np.maximum(np.diag(products) - 2.0 * along + shares @ along, 0.0)

    return from_products


@dataclass(frozen=True)
class GeometricMedian(Stacked):
    """The point with the least sum of distances to the updates, by smoothed Weiszfeld iterations from 0.

    Pillutla, Kakade, Harchaoui, "Robust Aggregation for Federated Learning" (RFA), IEEE Transactions on Signal Processing 2022,
    arXiv:1912.13445, Algorithm 2: z = sum b_k x_k / sum b_k with b_k = a_k / max(smoothing, |z - x_k|). Started at 0, that is
    from the server's own weights, so that no bad update can push the start away. Withstands any minority. Time O(K P) an
    iteration for many clients, O(K^2 P) in all for few. Use it when clients differ: it moves less than the median or Krum.

    Args:
        iterations: how often the point is moved (the paper finds 3 enough; Karimireddy, He, Jaggi, ICLR 2022, take 8).
        smoothing: the least distance that is told apart, in units of the updates (the paper's nu).
        weighting: ``"uniform"`` counts each client once; ``"examples"`` by its ``weight``, as the paper does, which trusts what
            clients say of themselves.

    Raises:
        UsageError: a value is out of its range.
    """

    iterations: int = 8
    smoothing: float = 1e-6
    weighting: Literal["uniform", "examples"] = "uniform"

    def __post_init__(self) -> None:
        whole("iterations", self.iterations, 1)
        positive("smoothing", self.smoothing)
        if self.weighting not in ("uniform", "examples"):
            raise UsageError(f"weighting is {self.weighting!r}; it must be 'uniform' or 'examples'.")

    def combine(self, rows: Rows, moment: Moment) -> Vector:
        importance = np.ones(rows.count) if self.weighting == "uniform" else rows.weights
        shares = np.zeros(rows.count)
        squared = squared_distances(rows, None, self.iterations)
        for _ in range(self.iterations):
            pull = importance / np.maximum(np.sqrt(squared(shares)), self.smoothing)
            shares = pull / pull.sum()
        return rows.combination(shares)


@dataclass(frozen=True)
class CentredClipping(Stacked):
    """The last aggregate, moved by the mean of the updates' differences from it, each clipped to a radius.

    Karimireddy, He, Jaggi, "Learning from History for Byzantine Robust Optimization", ICML 2021, arXiv:2012.10333:
    v = v + mean_k (x_k - v) min(1, radius / |x_k - v|). In the first round v is 0. Time O(K P) an iteration. Use it when
    clients differ and the radius can be chosen: about the distance of an honest update from the mean.

    Args:
        radius: how far one client may pull, times 1/n (the paper's tau), in units of the updates.
        iterations: how often the point is moved in a round (the paper takes 1).

    Raises:
        UsageError: a value is out of its range.
    """

    radius: float
    iterations: int = 1

    @property
    def remembers(self) -> bool:
        return True

    def __post_init__(self) -> None:
        positive("radius", self.radius)
        whole("iterations", self.iterations, 1)

    def combine(self, rows: Rows, moment: Moment) -> Vector:
        last = None if moment.last is None else host(moment.last).reshape(-1)
        if last is not None and len(last) != rows.size:
            raise MismatchError(f"The last aggregate holds {len(last)} values, but the updates hold {rows.size}.")
        shares = np.zeros(rows.count)
        squared = squared_distances(rows, last, self.iterations)
        for _ in range(self.iterations):
            pull = self.radius / np.maximum(np.sqrt(squared(shares)), self.radius) / rows.count
            shares = shares * (1.0 - pull.sum()) + pull
        return rows.combination(shares, last)

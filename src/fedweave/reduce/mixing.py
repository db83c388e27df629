# SPDX-License-Identifier: Apache-2.0
"""Pre-aggregators: the updates are mixed with each other before another rule reduces them."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field

import numpy as np

from fedweave.errors import UsageError
from fedweave.randomness import generator
from fedweave.reduce.base import Moment, Reduction, at, check, remembers
from fedweave.reduce.checks import enough, whole
from fedweave.reduce.coordinatewise import Median
from fedweave.reduce.rows import Matrix, Rows, Vector
from fedweave.reduce.stack import Stacked


class Mixed(Stacked):
    """Base of the two: ``then`` reduces the mixtures, each of which counts once."""

    then: Reduction

    @property
    def remembers(self) -> bool:
        return remembers(self.then)

    @abstractmethod
    def mixture(self, rows: Rows, moment: Moment) -> Matrix:
        """[mixtures, K], each row summing to 1."""

    def combine(self, rows: Rows, moment: Moment) -> Vector | None:
        mixed = rows.mixed(self.mixture(rows, moment))
        if isinstance(self.then, Stacked):
            return self.then.combine(mixed, moment)
        rule = at(self.then, moment)
        partial = rule.empty()
        for share in np.eye(mixed.count):
            partial = rule.add(partial, mixed.update(mixed.combination(share), 1.0))
        found = rule.result(partial)
        return None if found is None else mixed.split(found)

    def _check_then(self) -> None:
        if isinstance(self.then, type) or not isinstance(self.then, Reduction):
            raise UsageError(f"then is {self.then!r}; give a reduction such as Median().")


@dataclass(frozen=True)
class NNM(Mixed):
    """Each update becomes the mean of its n - f nearest, itself among them; then another rule reduces them.

    Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan, "Fixing by Mixing: A Recipe for Optimal Byzantine ML under
    Heterogeneity", AISTATS 2023, arXiv:2302.01772, Algorithm 2 (nearest-neighbour mixing). Needs n > 2f clients and what
    ``then`` needs. Of equally near ones the first clients count. Time O(K^2 P), as matrix products. Use it before any rule
    where clients' data differ: it takes the bias away that they have there.

    Args:
        f: how many bad clients there may be.
        then: the rule for the mixtures, any reduction. Its own f is the same: a bad client stays one row.

    Raises:
        UsageError: f is not a whole number from 0 up, or ``then`` is not a reduction.
    """

    f: int
    then: Reduction = field(default=Median())

    def __post_init__(self) -> None:
        whole("f", self.f, 0)
        self._check_then()

    def check(self, cohort: int) -> None:
        enough("nnm", cohort, 2 * self.f + 1, f"2f + 1 with f = {self.f}")
        check(self.then, cohort)

    def mixture(self, rows: Rows, moment: Moment) -> Matrix:
        squared = rows.distances()
        np.fill_diagonal(squared, -1.0)
        kept = rows.count - self.f
        shares = np.zeros_like(squared)
        np.put_along_axis(shares, np.argsort(squared, axis=1, kind="stable")[:, :kept], 1.0 / kept, axis=1)
        return shares


@dataclass(frozen=True)
class Bucketing(Mixed):
    """The updates are dealt at random into buckets of s; another rule reduces the buckets' means.

    Karimireddy, He, Jaggi, "Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing", ICLR 2022, arXiv:2006.09365,
    Algorithm 1. The permutation is drawn anew each round from the run's seed; the last bucket may be smaller. ``then`` sees
    ceil(n / s) rows and must be able to work with them. Time O(K P) and what ``then`` takes. Use it before any rule where
    clients' data differ and few clients are bad.

    Args:
        s: clients in a bucket; 1 changes nothing but the order.
        then: the rule for the buckets, any reduction. f bad clients spoil at most f buckets, so its own f stays
            the same while the rows become fewer: it must suit ceil(n / s) rows.

    Raises:
        UsageError: s is not a whole number from 1 up, or ``then`` is not a reduction.
    """

    s: int = 2
    then: Reduction = field(default=Median())

    def __post_init__(self) -> None:
        whole("s", self.s, 1)
        self._check_then()

    def check(self, cohort: int) -> None:
        check(self.then, -(-cohort // self.s))

    def mixture(self, rows: Rows, moment: Moment) -> Matrix:
        order = generator(moment.seed, "buckets", moment.round).permutation(rows.count)
        shares = np.zeros((-(-rows.count // self.s), rows.count))
        for bucket, share in enumerate(shares):
            members = order[bucket * self.s : (bucket + 1) * self.s]
            share[members] = 1.0 / len(members)
        return shares

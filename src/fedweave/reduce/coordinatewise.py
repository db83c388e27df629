# SPDX-License-Identifier: Apache-2.0
"""Rules that treat every coordinate for itself: median and trimmed mean.

Yin, Chen, Ramchandran, Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML 2018,
arXiv:1803.01498, Definitions 1 (coordinate-wise median) and 2 (coordinate-wise trimmed mean).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedweave.reduce import networks
from fedweave.reduce.base import Moment
from fedweave.reduce.checks import enough, whole
from fedweave.reduce.parallel import Host, Scratch
from fedweave.reduce.rows import Rows, Vector
from fedweave.reduce.stack import Stacked


@dataclass(frozen=True)
class Median(Stacked):
    """The median of every coordinate; of an even number of clients the mean of the two middle ones.

    Yin et al., ICML 2018, Definition 1. Time O(P K log^2 K) up to 64 clients, all in the cache, and O(P K log K) above. Use it
    when a minority of any kind may be bad and you have no idea how many; where clients' data differ much it is biased.
    """

    pointwise: ClassVar[bool] = True

    def combine(self, rows: Rows, moment: Moment) -> Vector:
        low, high = (rows.count - 1) // 2, rows.count // 2 + 1

        def kernel(block: list[Host], out: Host, scratch: Scratch) -> None:
            networks.middle(block, low, high, out, scratch)

        return rows.coordinatewise(kernel)


@dataclass(frozen=True)
class TrimmedMean(Stacked):
    """The mean of every coordinate without its f largest and its f smallest values.

    Yin et al., ICML 2018, Definition 2, with f = beta n. Needs n > 2f clients. Time as for the median. Use it when you can
    bound the number of bad clients: it wastes less of the honest ones than the median.

    Args:
        f: how many bad clients it withstands; how many values it drops at each end.

    Raises:
        UsageError: f is not a whole number from 0 up.
    """

    f: int
    pointwise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        whole("f", self.f, 0)

    def check(self, cohort: int) -> None:
        enough("trimmed-mean", cohort, 2 * self.f + 1, f"2f + 1 with f = {self.f}")

    def combine(self, rows: Rows, moment: Moment) -> Vector:
        def kernel(block: list[Host], out: Host, scratch: Scratch) -> None:
            networks.middle(block, self.f, rows.count - self.f, out, scratch)

        return rows.coordinatewise(kernel)

# SPDX-License-Identifier: Apache-2.0
"""Norm clipping: the weighted mean of updates that are made no longer than a radius."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fedweave.reduce.base import Partial
from fedweave.reduce.checks import positive
from fedweave.reduce.mean import Mean
from fedweave.reduce.rows import Rows
from fedweave.values import Update


@dataclass(frozen=True)
class NormClipping:
    """The weighted mean of the updates, each shortened to a Euclidean norm of at most the radius.

    Sun, Kairouz, Suresh, McMahan, "Can You Really Backdoor Federated Learning?", 2019, arXiv:1911.07963, section 4 (norm
    thresholding). The norm is that of all an update holds but its ``weight``. It streams as the mean does: O(P) an update, none
    of which is kept. Use it against a few strong clients: a bad one moves the model by at most its share of the weight times
    the radius, and honest updates below the radius are untouched. It trusts the weights that clients claim.

    Args:
        radius: the largest norm, in units of the updates.

    Raises:
        UsageError: the radius is not a number above 0.
    """

    radius: float

    def __post_init__(self) -> None:
        positive("radius", self.radius)

    def empty(self) -> Partial:
        return Mean().empty()

    def add(self, partial: Partial, update: Update) -> Partial:
        if float(update.weight) == 0.0:
            return partial
        norm = math.sqrt(Rows.of([update]).squares(np.zeros(1))[0])
        if norm > self.radius:
            factor = self.radius / norm
            update = update.map(lambda value: value * factor).replace(weight=update.weight)
        return Mean().add(partial, update)

    def merge(self, first: Partial, second: Partial) -> Partial:
        return Mean().merge(first, second)

    def scaled(self, partial: Partial, factor: float, but: tuple[str, ...] = ()) -> Partial:
        return Mean().scaled(partial, factor, but)

    def restored(self, update: Update) -> Partial:
        # It is clipped already; its norm may have been rounded to more than the radius.
        return Mean().add(Mean().empty(), update)

    def result(self, partial: Partial) -> Update | None:
        return Mean().result(partial)

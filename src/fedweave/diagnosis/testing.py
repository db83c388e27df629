# SPDX-License-Identifier: Apache-2.0
"""The tests behind the sentences. Every p-value is of a permutation or a bootstrap with a fixed seed: one run, one
diagnosis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fedweave.diagnosis.rounds import Observed
from fedweave.randomness import generator

DRAWS = 999
"""Permutations and resamplings of one test; the smallest p-value is 1 / (DRAWS + 1)."""

MOST = 60
"""Rounds that a test looks at: of more, so many at equal distances, the last among them."""

Vector = npt.NDArray[Any]


def thinned(rounds: Sequence[Observed], most: int = MOST) -> list[Observed]:
    """At most so many of the rounds, at equal distances, the last among them."""
    if len(rounds) <= most:
        return list(rounds)
    return [rounds[round(i * (len(rounds) - 1) / (most - 1))] for i in range(most)]


def per_client(clients: Sequence[Vector], values: Sequence[Vector]) -> tuple[Vector, Vector, Vector]:
    """Who appears, each one's mean over its rounds of its value less the round's median, and in how many rounds it appears."""
    who, place = np.unique(np.concatenate(clients), return_inverse=True)
    apart = np.concatenate([v - np.median(v) for v in values])
    times = np.bincount(place, minlength=len(who))
    return who, np.bincount(place, apart, minlength=len(who)) / times, times


def outlying(
    clients: Sequence[Vector], values: Sequence[Vector], floor: float, least: int
) -> tuple[Vector, Vector, Vector, Vector]:
    """How far each client lies from the others, over its rounds.

    Args:
        clients, values: per round, [K].
        floor: the smallest spread between clients that is believed.
        least: rounds in which a client must appear to be judged.

    Returns:
        who is judged; each one's mean distance from the round's median; the same in robust standard deviations between clients
        (1.4826 times the median absolute deviation); and its p-value, of a permutation of the clients within every round, for
        the
        largest distance among all: the probability that anybody would lie so far if clients were alike.
    """
    who, apart, times = per_client(clients, values)
    judged = times >= least
    if judged.sum() < 4:
        nobody = np.zeros(0)
        return nobody, nobody, nobody, nobody
    centre = np.median(apart[judged])
    spread = max(1.4826 * float(np.median(np.abs(apart[judged] - centre))), floor)
    draws = _draws(sum(len(v) for v in values))
    drawn = _mixed_sums(who, clients, [v - np.median(v) for v in values], draws, "outlying clients") / times
    largest = np.abs(drawn[:, judged] - np.median(drawn[:, judged], axis=1, keepdims=True)).max(1)
    far = np.abs(apart[judged] - centre)
    p = (1 + (largest[:, None] >= far).sum(0)) / (draws + 1)
    return who[judged], apart[judged], (apart[judged] - centre) / spread, p


def mantel(pairs: Sequence[Vector], who: Sequence[Vector], distance: Vector) -> tuple[float, float]:
    """Whether clients that are far apart by one measure have low values of another together (Mantel, Cancer Research 1967),
    pooled over rounds.

    Args:
        pairs: per round the values [L, L] of every two clients, such as cosines; NaN where there is none.
        who: per round which rows [L] of ``distance`` they are.
        distance: [N, N] between all clients.

    Returns:
        the pooled correlation within rounds, and its p-value for being so negative, of permutations of the clients.
    """
    corners = [np.nonzero(np.triu(np.isfinite(square), 1)) for square in pairs]
    values = [square[ends] - square[ends].mean() for square, ends in zip(pairs, corners, strict=True)]
    squares = sum(float(v @ v) for v in values)

    def correlations(orders: Vector) -> Vector:
        """Of the clients in each of some orders [D, N]."""
        product, spread = np.zeros(len(orders)), np.zeros(len(orders))
        for v, (i, j), rows in zip(values, corners, who, strict=True):
            d = distance[orders[:, rows[i]], orders[:, rows[j]]]
            d = d - d.mean(1, keepdims=True)
            product, spread = product + d @ v, spread + (d * d).sum(1)
        scale = np.sqrt(squares * spread)
        found: Vector = np.divide(product, scale, out=np.zeros(len(orders)), where=scale > 1e-9)
        return found

    count = len(distance)
    found = float(correlations(np.arange(count)[None])[0])
    draws = _draws(sum(len(v) for v in values))
    orders = generator(0, "mantel").permuted(np.tile(np.arange(count), (draws, 1)), axis=1)
    return found, float(1 + (correlations(orders) <= found + 1e-12).sum()) / (draws + 1)


def related(first: Sequence[Vector], second: Sequence[Vector]) -> tuple[float, float]:
    """Pooled rank correlation within rounds of two values per client, and its one-sided p-value for being so positive, of
    permutations within every round."""
    pairs = [(_ranks(a), _ranks(b)) for a, b in zip(first, second, strict=True) if len(a) > 1]
    a, b = (np.concatenate([pair[i] for pair in pairs]) if pairs else np.zeros(0) for i in (0, 1))
    scale = np.sqrt(float(a @ a) * float(b @ b))
    if not scale > 0:
        return 0.0, 1.0
    found = float(a @ b)
    draw, draws = generator(0, "related"), _draws(len(a))
    drawn = sum(draw.permuted(np.tile(x, (draws, 1)), axis=1) @ y for x, y in pairs)
    return found / scale, float(1 + (drawn >= found - 1e-9 * scale).sum()) / (draws + 1)


def lasting(clients: Sequence[Vector], values: Sequence[Vector]) -> tuple[float, float]:
    """The share of the variance of a value within rounds that is between clients, and its p-value of permutations within
    rounds: do the same clients have the same value again?"""
    who, place = np.unique(np.concatenate(clients), return_inverse=True)
    centred = [v - v.mean() for v in values]
    flat = np.concatenate(centred)
    times = np.bincount(place, minlength=len(who))
    total = float(flat @ flat)
    if not total > 0 or times.max() < 2:
        return 0.0, 1.0

    found = float((np.bincount(place, flat, minlength=len(who)) ** 2 / times).sum()) / total
    draws = _draws(len(flat))
    drawn = (_mixed_sums(who, clients, centred, draws, "lasting") ** 2 / times).sum(1) / total
    return found, float(1 + (drawn >= found - 1e-12).sum()) / (draws + 1)


def _draws(values: int) -> int:
    """Permutations of so many values that are drawn: fewer of a large run."""
    return min(DRAWS, max(199, 20_000_000 // max(values, 1)))


def _mixed_sums(who: Vector, clients: Sequence[Vector], values: Sequence[Vector], draws: int, purpose: str) -> Vector:
    """[draws, clients]: each one's sum over its rounds if the values of every round are dealt out anew."""
    draw, total = generator(0, purpose), np.zeros((draws, len(who)))
    for client, value in zip(clients, values, strict=True):
        total[:, np.searchsorted(who, client)] += draw.permuted(np.tile(value, (draws, 1)), axis=1)
    return total


def between(values: Vector, level: float = 0.98) -> tuple[float, float]:
    """The percentile bootstrap interval of a mean over rounds."""
    if len(values) == 0:
        return -np.inf, np.inf
    drawn = generator(0, "bootstrap").integers(0, len(values), (DRAWS, len(values)))
    low, high = np.quantile(values[drawn].mean(1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _ranks(values: Vector) -> Vector:
    """Centred ranks, equal values sharing theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts + 1) / 2)[place]
    centred: Vector = ranks - ranks.mean()
    return centred

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
    place = np.searchsorted(who, np.concatenate(clients))
    centred = [v - np.median(v) for v in values]
    draw = generator(0, "outlying clients")
    largest = np.zeros(DRAWS)
    # The time is that of all values, drawn again and again: of a large run fewer draws are made.
    draws = int(min(DRAWS, max(199, 20_000_000 // max(len(place), 1))))
    for i in range(draws):
        mixed = np.concatenate([draw.permutation(v) for v in centred])
        drawn = np.bincount(place, mixed, minlength=len(who)) / times
        largest[i] = np.abs(drawn[judged] - centre).max()
    far = np.abs(apart[judged] - centre)
    p = (1 + (largest[:draws, None] >= far).sum(0)) / (draws + 1)
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
    masks = [np.triu(np.isfinite(square), 1) for square in pairs]
    values = [square[mask] - square[mask].mean() for square, mask in zip(pairs, masks, strict=True)]
    squares = sum(float(v @ v) for v in values)

    def correlation(order: Vector) -> float:
        product = spread = 0.0
        for v, mask, rows in zip(values, masks, who, strict=True):
            placed = order[rows]
            d = distance[np.ix_(placed, placed)][mask]
            d = d - d.mean()
            product, spread = product + float(v @ d), spread + float(d @ d)
        return product / float(np.sqrt(squares * spread)) if squares > 0 and spread > 1e-12 else 0.0

    count = len(distance)
    found = correlation(np.arange(count))
    draw = generator(0, "mantel")
    draws = int(min(DRAWS, max(199, 50_000_000 // max(sum(len(v) for v in values), 1))))
    lower = sum(correlation(draw.permutation(count)) <= found for _ in range(draws))
    return found, (1 + lower) / (draws + 1)


def related(first: Sequence[Vector], second: Sequence[Vector]) -> tuple[float, float]:
    """Pooled rank correlation within rounds of two values per client, and its one-sided p-value for being so positive, of
    permutations within every round."""
    pairs = [(_ranks(a), _ranks(b)) for a, b in zip(first, second, strict=True) if len(a) > 1]
    a, b = (np.concatenate([pair[i] for pair in pairs]) if pairs else np.zeros(0) for i in (0, 1))
    scale = np.sqrt(float(a @ a) * float(b @ b))
    if not scale > 0:
        return 0.0, 1.0
    draw = generator(0, "related")
    found = float(a @ b)
    draws = int(min(DRAWS, max(199, 20_000_000 // len(a))))
    higher = sum(float(np.concatenate([draw.permutation(x) for x, _ in pairs]) @ b) >= found for _ in range(draws))
    return found / scale, (1 + higher) / (draws + 1)


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

    def between(values: Vector) -> float:
        return float((np.bincount(place, values, minlength=len(who)) ** 2 / times).sum()) / total

    found = between(flat)
    draw = generator(0, "lasting")
    draws = int(min(DRAWS, max(199, 20_000_000 // len(flat))))
    higher = sum(between(np.concatenate([draw.permutation(v) for v in centred])) >= found for _ in range(draws))
    return found, (1 + higher) / (draws + 1)


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

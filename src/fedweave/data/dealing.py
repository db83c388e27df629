# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of dealing examples out, without a loop over clients: shuffle, group by owner, share in whole numbers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fedweave.data.dataset import AnyArray, Dataset
from fedweave.errors import PartitionError


class Dealt(NamedTuple):
    """Who holds what, before it is put on the data: see ``Split``."""

    order: AnyArray
    offsets: AnyArray
    notes: tuple[str, ...] = ()
    ids: AnyArray | None = None
    test_order: AnyArray | None = None
    test_offsets: AnyArray | None = None


def held_out(dealt: Dealt, fraction: float, rng: np.random.Generator) -> Dealt:
    sizes = np.diff(dealt.offsets)
    away = np.minimum(np.floor(sizes * fraction + 0.5).astype(np.int64), np.maximum(sizes - 1, 0))
    owner = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    mixed = dealt.order[np.lexsort((rng.random(len(owner)), owner))]
    rank = np.arange(len(owner)) - np.repeat(dealt.offsets[:-1], sizes)
    is_test = rank < np.repeat(away, sizes)
    ends = np.concatenate([[0], np.cumsum(sizes - away)])
    return dealt._replace(
        order=mixed[~is_test], offsets=ends, test_order=mixed[is_test], test_offsets=np.concatenate([[0], np.cumsum(away)])
    )


def numbers(examples: int) -> type[np.int32] | type[np.int64]:
    return np.int32 if examples < 2**31 else np.int64


def shuffled(examples: int, rng: np.random.Generator) -> AnyArray:
    order = np.arange(examples, dtype=numbers(examples))
    rng.shuffle(order)
    return order


def even(total: int, parts: int) -> AnyArray:
    """[parts + 1] offsets of pieces that are equal to within one, the larger ones first."""
    size, rest = divmod(total, parts)
    k = np.arange(parts + 1, dtype=np.int64)
    return k * size + np.minimum(k, rest)


def grouped(examples: AnyArray, owner: AnyArray, clients: int) -> tuple[AnyArray, AnyArray]:
    """Sort examples by the client that holds each (stable), and where each client's begin."""
    by_owner = np.argsort(owner, kind="stable")
    offsets = np.zeros(clients + 1, np.int64)
    np.cumsum(np.bincount(owner, minlength=clients), out=offsets[1:])
    return examples[by_owner], offsets


def dirichlet(alpha: float, parts: int, rng: np.random.Generator) -> AnyArray:
    # log Gamma(a) = log Gamma(a + 1) + log(U) / a stays finite where a draw from Gamma(a) itself would be zero.
    log = np.log(rng.standard_gamma(alpha + 1, parts)) + np.log(1 - rng.random(parts)) / max(alpha, 1e-100)
    share = np.exp(log - log.max())
    return np.asarray(share / share.sum())


def shares(weights: AnyArray, total: int) -> AnyArray:
    """Whole numbers that sum to ``total``, in proportion to the weights (largest remainders)."""
    exact = weights / weights.sum() * total
    part: AnyArray = np.floor(exact).astype(np.int64)
    rest = total - int(part.sum())
    part[np.argsort(part - exact, kind="stable")[:rest]] += 1
    return part


def bounded_shares(weights: AnyArray, total: int, most: AnyArray) -> AnyArray:
    """As ``shares``, but each number at least 1 and at most ``most``; their sum must allow it."""
    part: AnyArray = np.clip(shares(weights.astype(float), total), 1, most)
    while (gap := total - int(part.sum())) != 0:
        if gap > 0:
            free = np.flatnonzero(part < most)
            part[free] = np.minimum(part[free] + shares(weights[free].astype(float), gap), most[free])
        else:
            part = np.maximum(part - shares(part - 1.0, -gap), 1)
    return part


def mix(held: AnyArray, rng: np.random.Generator) -> None:
    """Exchange labels between random pairs of clients, in place, wherever each then still has distinct labels."""
    clients, k = held.shape
    half = clients // 2
    order = np.arange(clients, dtype=np.int32)
    for _ in range(8 * k if half else 0):  # each label moves about six times, each time to a random client
        rng.shuffle(order)
        pairs = order[: 2 * half].reshape(2, half)
        places = rng.integers(0, k, (2, half), dtype=np.int32)
        mine, theirs = held[pairs[0], places[0]], held[pairs[1], places[1]]
        fine = ~(held[pairs[0]] == theirs[:, None]).any(1) & ~(held[pairs[1]] == mine[:, None]).any(1)
        held[pairs[0][fine], places[0][fine]], held[pairs[1][fine], places[1][fine]] = theirs[fine], mine[fine]


def by_size(data: Dataset, weights: AnyArray, min_size: int, rng: np.random.Generator) -> Dealt:
    clients = len(weights)
    room(data, clients, min_size)
    sizes = min_size + shares(weights, len(data) - clients * min_size)
    return Dealt(shuffled(len(data), rng), np.concatenate([[0], np.cumsum(sizes)]))


def filled(order: AnyArray, offsets: AnyArray, min_size: int, rng: np.random.Generator) -> Dealt:
    """Bring every client up to ``min_size`` with random examples of the largest clients, which are lowered to one level."""
    sizes = np.diff(offsets)
    short = np.maximum(min_size - sizes, 0)
    need = int(short.sum())
    if not need:
        return Dealt(order, offsets)
    low, high = min_size, int(sizes.max())
    while high - low > 1:  # the highest level that still frees enough
        level = (low + high) // 2
        low, high = (level, high) if np.maximum(sizes - level, 0).sum() >= need else (low, level)
    give = np.maximum(sizes - low - 1, 0)
    give[np.flatnonzero(sizes > low)[: need - int(give.sum())]] += 1
    owner = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    order = order[np.lexsort((rng.random(len(owner)), owner))]
    rank = np.arange(len(owner)) - np.repeat(offsets[:-1], sizes)
    owner[rank < np.repeat(give, sizes)] = np.repeat(np.arange(len(sizes), dtype=np.int32), short)
    note = (
        f"{int((short > 0).sum()):,} clients drew fewer than {min_size} examples; {need:,} were moved to them from the largest."
    )
    return Dealt(*grouped(order, owner, len(sizes)), notes=(note,))


def room(data: Dataset, clients: int, min_size: int) -> None:
    if clients * min_size > len(data):
        raise PartitionError(
            f"{clients:,} clients with at least {min_size} examples each need {clients * min_size:,}, but {data.name} has "
            f"{len(data):,}; use fewer clients or a smaller min_size."
        )

# SPDX-License-Identifier: Apache-2.0
"""How far clients are apart by the labels that they hold, and whether chance would put them there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import chdtrc

from fedweave.diagnosis.rounds import Observed, Vector
from fedweave.diagnosis.run import LEVEL, Run
from fedweave.diagnosis.testing import thinned
from fedweave.randomness import generator

EXCESS = 0.1
"""Labels are skewed if clients' are so much further from the whole, in total variation, than a random dealing would put
them."""


@dataclass(frozen=True)
class Labels:
    """The labels of the clients that were seen beside others, and how their changes point to each other.

    Args:
        who: the clients, ascending.
        share: [n, C] of each one's examples by label.
        apart: [n, n] total variation between them.
        distance: their mean total variation from the labels of all.
        random: the same for labels dealt at random to clients of these sizes.
        p: of the chi-squared test that labels do not depend on the client.
        rows, squares: per round, which of ``who`` [L] were paired, and the cosines [L, L] of their changes.
        rounds: those rounds.
    """

    who: Vector
    share: Vector
    apart: Vector
    distance: float
    random: float
    p: float
    rows: Sequence[Vector]
    squares: Sequence[Vector]
    rounds: Sequence[Observed]

    @property
    def skewed(self) -> bool:
        """Whether clients' labels differ by more than chance gives, and by enough to matter."""
        return self.p <= LEVEL / 10 and self.distance - self.random > EXCESS

    def pairs(self) -> tuple[Vector, Vector]:
        """Cosine and distance in labels of every pair of clients in every round."""
        above: list[Vector] = [np.triu(np.isfinite(square), 1) for square in self.squares]
        cosines = np.concatenate([square[mask] for square, mask in zip(self.squares, above, strict=True)])
        apart = [self.apart[np.ix_(rows, rows)][mask] for rows, mask in zip(self.rows, above, strict=True)]
        return cosines, np.concatenate(apart)

    def unexplained(self) -> list[Vector]:
        """Per round, of each of its paired clients [L] the mean over the others of the cosine less what the distance in labels
        makes one expect, by least squares."""
        cosines, apart = self.pairs()
        spread = float(apart.std())
        slope = float(np.cov(apart, cosines)[0, 1] / np.var(apart, ddof=1)) if spread > 0.01 and len(apart) > 2 else 0.0
        level = float(cosines.mean() - slope * apart.mean())
        return [
            np.nanmean(square - level - slope * self.apart[np.ix_(rows, rows)], axis=1)
            for rows, square in zip(self.rows, self.squares, strict=True)
        ]


def labels_of(run: Run) -> Labels | None:
    """The labels of the clients that were seen beside others; None if they are not at hand or those are fewer than 4."""
    rounds = thinned([one for one in run.observed if np.isfinite(one.cosines).any()])
    if run.labels is None or not rounds:
        return None
    who = np.unique(np.concatenate([one.client[one.paired] for one in rounds]))
    who = who[run.labels[who].sum(1) > 0]
    if len(who) < 4:
        return None
    held = run.labels[who].astype(float)
    share = held / held.sum(1, keepdims=True)
    place = {int(client): i for i, client in enumerate(who)}
    squares, rows, kept = [], [], []
    for one in rounds:
        cosines = one.cosines
        sent = [bool(np.isfinite(row).any()) for row in cosines]
        known = [i for i, client in enumerate(one.client[one.paired].tolist()) if sent[i] and client in place]
        if len(known) > 1:
            squares.append(cosines[np.ix_(known, known)])
            rows.append(np.array([place[int(one.client[one.paired[i]])] for i in known]))
            kept.append(one)
    if not kept:
        return None
    apart = np.abs(share[:, None] - share[None]).sum(-1) / 2
    return Labels(who, share, apart, *_beyond_chance(held), rows, squares, kept)


def _beyond_chance(held: Vector) -> tuple[float, float, float]:
    """Mean total variation of clients' labels from the whole; the same for labels dealt at random to clients of these sizes;
    and the p-value of the chi-squared test of independence."""
    whole = held.sum(0)
    held, whole = held[:, whole > 0], whole[whole > 0]
    share, sizes = whole / whole.sum(), held.sum(1)
    expected = sizes[:, None] * share
    statistic = float(((held - expected) ** 2 / expected).sum())
    p = float(chdtrc((held.shape[0] - 1) * max(held.shape[1] - 1, 1), statistic))

    def far(counts: Vector) -> float:
        return float((np.abs(counts / sizes[:, None] - share).sum(1) / 2).mean())

    draw = generator(0, "dealt labels")
    random = float(np.mean([far(np.array([draw.multinomial(int(n), share) for n in sizes])) for _ in range(20)]))
    return far(held), random, p

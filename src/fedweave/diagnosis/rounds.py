# SPDX-License-Identifier: Apache-2.0
"""One observed round: what is kept of it in columns, and the figures that follow from what was seen.

d_k, n_k        change that client k sent; |d_k|
p_k             its weight over the sum of the weights
d               sum of p_k d_k
tau_k           its local steps
<.,.>           estimated from the sketches; cosines are those of the sketches
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from fedweave.diagnosis.observing import Seen
from fedweave.diagnosis.sketch import WIDTH
from fedweave.randomness import generator

PAIRED = 64
"""Clients of a round whose cosines with each other are kept; of a larger cohort a random sample of so many."""

COLUMNS: dict[str, Any] = {
    "client": np.int64, "weight": np.float32, "steps": np.int32, "examples": np.int32, "loss": np.float32, "norm": np.float32,
    "cosine": np.float32, "staleness": np.int32, "paired": np.int32, "pairs": np.int8, "mean": np.float32,
}  # fmt: skip

Vector = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Observed:
    """A round's counted clients as columns, ascending by client.

    Args:
        number: the round.
        client, weight, steps, examples, loss, norm, staleness: [K], as in ``Seen``.
        cosine: [K] of each client's change to the weighted mean of the others'; NaN where there is none.
        paired: [L] positions of the clients, at most ``PAIRED``, whose cosines with each other are kept.
        pairs: [L (L - 1) / 2] those cosines in 127ths, in the order (0, 1), (0, 2), ..., (1, 2), ...
        mean: [251] sketch of the mean change d; empty if there is none.
        figures: the round in numbers; see ``figures_of``.
        first: the first of several rounds that are looked at as one, of which ``number`` is the last; 0: it is one round.
    """

    number: int
    client: Vector
    weight: Vector
    steps: Vector
    examples: Vector
    loss: Vector
    norm: Vector
    cosine: Vector
    staleness: Vector
    paired: Vector
    pairs: Vector
    mean: Vector
    figures: Mapping[str, float] = field(default_factory=dict)
    first: int = 0

    @property
    def begins(self) -> int:
        """The first of the rounds that it tells of."""
        return self.first or self.number

    def __len__(self) -> int:
        return len(self.client)

    def packed(self) -> bytes:
        """The columns as safetensors; those that say nothing are left out."""
        kept = {name: np.ascontiguousarray(getattr(self, name), kind) for name, kind in COLUMNS.items()}
        if not self.staleness.any():
            del kept["staleness"]
        return safetensors.numpy.save(kept)

    @classmethod
    def unpacked(cls, number: int, content: bytes, figures: Mapping[str, float | None]) -> Observed:
        """The inverse of ``packed``; ``figures`` that are None become NaN."""
        held: dict[str, Any] = dict(safetensors.numpy.load(content))
        held.setdefault("staleness", np.zeros(len(held["client"]), np.int32))
        return cls(number, **held, figures={k: math.nan if v is None else v for k, v in figures.items()})

    @property
    def cosines(self) -> Vector:
        """[L, L] of the ``paired`` clients with each other; NaN on the diagonal and where one sent nothing."""
        count = len(self.paired)
        square = np.full((count, count), np.nan)
        above = np.triu_indices(count, 1)
        values = np.where(self.pairs == -128, np.nan, self.pairs / 127.0)
        square[above] = values
        square[above[::-1]] = values
        return square


def observed(number: int, seen: Iterable[Seen], seed: int) -> Observed:
    """The round of all that was seen in it; ``seed`` chooses the paired clients of a large cohort."""
    ordered = sorted(seen, key=lambda one: one.client)
    columns: dict[str, Any] = {
        name: np.array([getattr(one, name) for one in ordered], COLUMNS[name])
        for name in ("client", "weight", "steps", "examples", "loss", "norm", "staleness")
    }
    sketches = _stacked([one.sketch for one in ordered])
    share = _shares(columns["weight"])
    mean = share @ sketches if sketches is not None else np.zeros(0)
    cosine = _to_the_others(sketches, share) if sketches is not None else np.full(len(ordered), np.nan)
    paired, pairs = _pairs(number, sketches, seed)
    return Observed(
        number,
        **columns,
        cosine=cosine.astype(np.float32),
        paired=paired,
        pairs=pairs,
        mean=mean.astype(np.float32),
        figures=figures_of(ordered),
    )


def together(rounds: Sequence[Observed], most: int, seed: int = 0) -> list[Observed]:
    """Rounds of one client each, looked at as rounds of up to ``most``: the mean change of one client is its own. A client
    that comes again begins the next, and one that came in another stretch of observed rounds does too."""
    found: list[Observed] = []
    held: list[Observed] = []
    for one in (*rounds, None):
        ends = one is None or len(held) == most or (bool(held) and one.number != held[-1].number + 1)
        if held and (ends or one is None or int(one.client[0]) in {int(other.client[0]) for other in held}):
            whole = observed(held[-1].number, [_alone(other) for other in held], seed)
            found.append(replace(whole, first=held[0].number))
            held = []
        if one is not None:
            held.append(one)
    return found


def _alone(one: Observed) -> Seen:
    return Seen(
        int(one.client[0]), float(one.weight[0]), int(one.steps[0]), int(one.examples[0]), float(one.loss[0]),
        float(one.norm[0]), one.mean if len(one.mean) else None, staleness=int(one.staleness[0]),
    )  # fmt: skip


def figures_of(seen: Sequence[Seen]) -> dict[str, float]:
    """A round in numbers, NaN where there is nothing to say.

    - ``norm_mean``, ``norm_std``: of n_k; how far clients drift, plain mean and sample standard deviation.
    - ``update_norm``: |d|.
    - ``signal``: |d|^2 / sum p_k^2 n_k^2; 1 is the noise floor, where clients have nothing in common; 1 / sum p_k^2 if all
      agree.
    - ``cosine_mean``, ``cosine_min``: of the clients to the mean of the others.
    - ``pairwise``: mean cosine of two clients.
    - ``diversity``: sum n_k^2 / |sum d_k|^2 (Yin et al., AISTATS 2018); 1 / K if all are alike, 1 if they are orthogonal.
    - ``dissimilarity``: B of Li et al., MLSys 2020, definition 3: sqrt(sum p_k n_k^2) / |d|; of the gradients at the weights
      sent if the algorithm measures them (``exact`` is 1), else of the changes in their place (0).
    - ``loss_mean``, ``loss_std``; ``steps_mean``, ``steps_cv``: over the clients; cv is standard deviation over mean.
    - ``effective``: 1 / sum p_k^2, the number of clients of equal weight that would count as much.
    - ``inconsistency``: chi^2(p || q) = sum (p_k - q_k)^2 / q_k with q_k in proportion to p_k tau_k: how far the objective
      that unequal steps descend is from the one asked for (Wang et al., NeurIPS 2020, theorem 1 and section 4).
    - ``staleness_mean``, ``staleness_max``.
    """
    share = _shares(np.array([one.weight for one in seen]))
    norm, sketches = np.array([one.norm for one in seen]), _stacked([one.sketch for one in seen])
    found = dict.fromkeys(("norm_mean", "norm_std", "update_norm", "signal", "cosine_mean", "cosine_min"), math.nan)
    found |= dict.fromkeys(("pairwise", "diversity", "dissimilarity", "exact"), math.nan)
    if sketches is not None:
        whole, sums = _square(share @ sketches), _square(sketches.sum(0))
        cosine = _to_the_others(sketches, share)
        found["norm_mean"], found["norm_std"] = _mean(norm), _std(norm)
        found["update_norm"] = math.sqrt(whole)
        found["signal"] = _ratio(whole, float(share**2 @ norm**2))
        found["cosine_mean"] = _mean(cosine)
        found["cosine_min"] = float(np.nanmin(cosine)) if np.isfinite(cosine).any() else math.nan
        found["pairwise"] = _pairwise(sketches)
        found["diversity"] = _ratio(float(norm @ norm), sums)
        found["dissimilarity"], found["exact"] = math.sqrt(_ratio(float(share @ norm**2), whole)), 0.0
    if (gradients := _stacked([one.gradient_sketch for one in seen])) is not None:
        lengths = np.array([one.gradient_norm for one in seen])
        found["dissimilarity"] = math.sqrt(_ratio(float(share @ lengths**2), _square(share @ gradients)))
        found["exact"] = 1.0
    loss, steps = np.array([one.loss for one in seen]), np.array([one.steps for one in seen], float)
    found |= {"loss_mean": _mean(loss), "loss_std": _std(loss), "steps_mean": _mean(steps)}
    found["steps_cv"] = _ratio(_std(steps), _mean(steps))
    found["effective"] = _ratio(1.0, float(share @ share))
    found["inconsistency"] = inconsistency(share, steps)
    late = np.array([one.staleness for one in seen], float)
    return found | {"staleness_mean": _mean(late), "staleness_max": float(late.max(initial=0.0))}


def inconsistency(share: Vector, steps: Vector) -> float:
    """chi^2(p || q) between the shares asked for and those in proportion to share times steps; infinite if a client that
    counts took no step."""
    moved = share * steps
    if not moved.sum() > 0:
        return math.nan
    q = moved / moved.sum()
    if np.any((share > 0) & (q == 0)):
        return math.inf
    counts = q > 0
    return float((((share - q) ** 2)[counts] / q[counts]).sum())


def _stacked(sketches: Sequence[npt.NDArray[np.float32] | None]) -> Vector | None:
    """[K, 251] in float64; None if one is missing or there is none."""
    rows = [sketch for sketch in sketches if sketch is not None]
    return np.array(rows, np.float64) if rows and len(rows) == len(sketches) else None


def _shares(weight: Vector) -> Vector:
    weight = weight.astype(np.float64)
    return weight / weight.sum() if weight.sum() > 0 else np.full(len(weight), 1.0 / max(len(weight), 1))


def _square(vector: Vector) -> float:
    return float(vector @ vector)


def _units(rows: Vector) -> Vector:
    """Each row at length 1; NaN if it has none."""
    length = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / np.where(length > 0, length, np.nan)


def _to_the_others(sketches: Vector, share: Vector) -> Vector:
    """[K] cosine of each client to the weighted mean of the others."""
    others = share @ sketches - share[:, None] * sketches
    if len(sketches) < 2:
        return np.full(len(sketches), np.nan)
    cosines: Vector = (_units(sketches) * _units(others)).sum(-1)
    return cosines


def _pairwise(sketches: Vector) -> float:
    """Mean cosine of two different clients among those that sent something, without making all pairs."""
    unit = _units(sketches)
    unit = unit[np.isfinite(unit).all(-1)]
    count = len(unit)
    return (_square(unit.sum(0)) - count) / (count * (count - 1)) if count > 1 else math.nan


def _pairs(number: int, sketches: Vector | None, seed: int) -> tuple[Vector, Vector]:
    if sketches is None:
        return np.zeros(0, np.int32), np.zeros(0, np.int8)
    chosen = np.arange(len(sketches), dtype=np.int32)
    if len(chosen) > PAIRED:
        chosen = np.sort(generator(seed, "paired clients", number).choice(chosen, PAIRED, replace=False))
    unit = _units(sketches[chosen])
    above = (unit @ unit.T)[np.triu_indices(len(chosen), 1)]
    # -128 is no cosine of two clients one of which sent nothing.
    return chosen, np.where(np.isfinite(above), np.rint(127 * above), -128).astype(np.int8)


def _ratio(above: float, below: float) -> float:
    return above / below if below > 0 else math.nan


def _mean(values: Vector) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else math.nan


def _std(values: Vector) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.std(ddof=1)) if len(finite) > 1 else math.nan


__all__ = ["COLUMNS", "PAIRED", "WIDTH", "Observed", "figures_of", "inconsistency", "observed", "together"]

# SPDX-License-Identifier: Apache-2.0
"""Check of asynchronous runs: updates that began from a model which is too old."""

from __future__ import annotations

import math

import numpy as np

from fedweave.diagnosis.course import common
from fedweave.diagnosis.rounds import Observed, Vector
from fedweave.diagnosis.run import LEVEL, Run, Verdict, below
from fedweave.diagnosis.testing import between, related, thinned

STEPS = 5
"""Server steps with updates of different staleness, or pairs of steps, from which on they are compared."""

APART, LOST = 0.1, 0.1
"""Stale updates pull away if their mean cosine to the others' is lower than the fresh ones' by the first or more, and at most
the second: they hardly help any more."""

AGREED, BACK = 0.3, -0.1
"""The model swings if the clients of a step agree by the first or more, and what the server does later, once what it did is
known to its clients, has a cosine to it of the second or less."""

REMEDY = (
    "Try half the concurrency, or twice the buffer: staleness is about concurrency over buffer. Or let stale updates count "
    "less: max_staleness, or staleness=polynomial(a=1). The first two cost time, the others what slow clients know."
)


def staleness(run: Run) -> Verdict:
    """Updates that are too old: they point away from those that are not, or the model swings because what the server did is
    heard of too late."""
    check = "staleness"
    parts = [part for part in (_apart(run), _swings(run)) if part is not None]
    if not parts:
        words = (
            f"Needs {STEPS} observed server steps with 4 updates or more of different staleness, or longer stretches of them."
        )
        return Verdict(check, "unknown", words)
    ages = np.concatenate([one.staleness for one in run.observed])
    median, oldest = float(np.median(ages)), int(ages.max())
    numbers: dict[str, object] = {"median": median, "largest": oldest}
    words = f"Updates began from models {int(ages.min())} to {oldest} server steps old (median {median:.0f})."
    for _, _, more in parts:
        numbers |= more
    found = " ".join([words, *(sentence for _, sentence, _ in parts)])
    if any(bad for bad, _, _ in parts):
        return Verdict(check, "found", found, REMEDY, numbers)
    return Verdict(check, "clear", found, numbers=numbers)


Part = tuple[bool, str, dict[str, object]]
"""Whether something is wrong, a sentence, and the numbers behind it."""


def _apart(run: Run) -> Part | None:
    """Whether the older an update's model is, the less it points where the others of its step do."""
    steps = [one for one in thinned(run.with_several(4)) if np.ptp(_sent(one, one.staleness)) > 0]
    if len(steps) < STEPS:
        return None
    ages, cosines = [_sent(one, one.staleness) for one in steps], [_sent(one, one.cosine).astype(float) for one in steps]
    rho, p = related(ages, [-values for values in cosines])
    old = [values > min(float(np.median(values)), values.max() - 1) for values in ages]
    stale = np.array([values[mask].mean() for values, mask in zip(cosines, old, strict=True)])
    fresh = np.array([values[~mask].mean() for values, mask in zip(cosines, old, strict=True)])
    numbers: dict[str, object] = {
        "correlation": -float(rho), "p": p, "cosine_fresh": float(fresh.mean()), "cosine_stale": float(stale.mean()),
    }  # fmt: skip
    bad = p <= LEVEL and between(fresh - stale)[0] >= APART and between(stale)[1] <= LOST
    words = (
        f"The staler half of a step's have a mean cosine of {stale.mean():.2f} to the others', the fresher one of "
        f"{fresh.mean():.2f} (rank correlation with staleness {-rho:.2f}, p {below(p)})"
    )
    return bad, words + (": the stale ones pull away from the model's course." if bad else "."), numbers


def _swings(run: Run) -> Part | None:
    """Whether the model goes back and forth because of the delay.

    A course that is corrected with a delay of tau steps, ``x(t + 1) = x(t) - g x(t - tau)``, swings with a period of about
    ``4 tau`` at the gain at which it begins to: what is done ``2 tau`` steps later is the opposite.
    """
    late = run.observed[len(run.observed) // 2 :]
    shares = np.array([share for one in late if math.isfinite(share := common(one))])
    if len(shares) < STEPS:
        return None
    span = max(float(np.mean([one.number - one.begins + 1 for one in late])), 1.0)
    lag = round(2 * float(np.mean(np.concatenate([one.staleness for one in late]))) / span)
    pairs = list(zip(late, late[lag:], strict=False)) if lag > 1 else []
    whole = [(one, two) for one, two in pairs if len(one.mean) and len(two.mean) and _stretch(one, two, lag * span)]
    cosines = np.array([value for one, two in whole if math.isfinite(value := _cosine(one.mean, two.mean))])
    if len(cosines) < STEPS:
        return None
    found, agreed = float(cosines.mean()), float(shares.mean())
    bad = between(shares)[0] > AGREED and between(cosines)[1] < BACK
    steps = round(lag * span)
    words = f"Clients have {agreed:.0%} of their mean change in common, and what the server does {steps} steps later has "
    words += f"a mean cosine of {found:.2f} to it" + (": the model swings, because it hears too late." if bad else ".")
    return bad, words, {"lag": steps, "agreement": agreed, "later": found}


def _stretch(one: Observed, two: Observed, steps: float) -> bool:
    """Whether nothing is missing between them."""
    return two.number - one.number <= 1.5 * steps


def _cosine(one: Vector, two: Vector) -> float:
    product = float(np.linalg.norm(one) * np.linalg.norm(two))
    return float(one.astype(float) @ two.astype(float)) / product if product > 0 else math.nan


def _sent(one: Observed, values: Vector) -> Vector:
    """Of those clients that have a cosine."""
    found: Vector = values[np.isfinite(one.cosine)]
    return found

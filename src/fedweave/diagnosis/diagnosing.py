# SPDX-License-Identifier: Apache-2.0
"""From a run to its diagnosis."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from fedweave.diagnosis.clients import bad_clients, participation, quantity_skew, unequal_steps
from fedweave.diagnosis.course import label_skew, learning_rate
from fedweave.diagnosis.labels import labels_of
from fedweave.diagnosis.rounds import together
from fedweave.diagnosis.run import Diagnosis, Run
from fedweave.diagnosis.staleness import staleness

TOGETHER = 10
"""Server steps of one update each that are looked at as one round."""


def diagnose(run: Run) -> Diagnosis:
    """All checks, in the order in which causes hide each other: a bad client spoils what the other checks look at, a step that
    is too long what clients have in common, and so do models that are too old."""
    steps = len(run.observed)
    if run.asynchronous and all(len(one) == 1 for one in run.observed):
        run = replace(run, observed=together(run.observed, TOGETHER))
    labels = labels_of(run)
    bad = bad_clients(run, labels)
    verdicts = (
        bad,
        learning_rate(run, [bad], labels),
        *([staleness(run)] if run.asynchronous else []),
        label_skew(run, labels),
        quantity_skew(run),
        unequal_steps(run),
        participation(run),
    )
    return Diagnosis(verdicts, _figures(run), steps)


def _figures(run: Run) -> dict[str, float]:
    """The median of each figure over the observed rounds."""
    found: dict[str, float] = {}
    for name in dict.fromkeys(name for one in run.observed for name in one.figures):
        values = [v for one in run.observed if math.isfinite(v := one.figures.get(name, math.nan))]
        if values:
            found[name] = float(np.median(values))
    return found

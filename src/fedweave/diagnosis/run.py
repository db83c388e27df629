# SPDX-License-Identifier: Apache-2.0
"""What a diagnosis is made from, and what it is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from fedweave.contract import Local
from fedweave.diagnosis.rounds import Observed, Vector
from fedweave.history import Round

LEVEL = 0.01
"""The p-value at or below which something is believed."""


@dataclass(frozen=True)
class Run:
    """A run as far as it is judged.

    Args:
        observed: the rounds that were looked at, ascending.
        history: all rounds.
        start: the evaluation of the initial model, or None.
        status: how it ended.
        algorithm: its text, such as ``"fedprox(mu=0.01)"``.
        local: what clients were asked to do.
        population: number of clients, or None if the split is not at hand.
        labels: [N, C] training examples of each client by label, or None.
        asynchronous: whether clients of a round began from models of different ages.
    """

    observed: Sequence[Observed]
    history: Sequence[Round]
    start: Round | None
    status: str
    algorithm: str
    local: Local
    population: int | None = None
    labels: Vector | None = None
    asynchronous: bool = False

    @property
    def name(self) -> str:
        """The algorithm without its parameters."""
        return self.algorithm.partition("(")[0]

    def with_several(self, least: int) -> list[Observed]:
        """The rounds in which so many clients sent a change of the model."""
        return [one for one in self.observed if np.isfinite(one.cosine).sum() >= least]


@dataclass(frozen=True)
class Verdict:
    """What one check came to.

    Args:
        check: what was looked for, e.g. ``"label skew"``.
        state: ``"found"``, ``"clear"``, or ``"unknown"`` if the data do not suffice.
        words: one or two sentences with the numbers.
        remedy: what to try next, and what it costs; only if found.
        numbers: those behind the words.
    """

    check: str
    state: Literal["found", "clear", "unknown"]
    words: str
    remedy: str = ""
    numbers: Mapping[str, Any] = field(default_factory=dict)


def below(p: float) -> str:
    """A p-value as it stands in a sentence: ``"= 0.012"``, ``"< 0.001"``."""
    return f"= {p:.3f}" if p >= 0.001 else "< 0.001"


@dataclass(frozen=True)
class Diagnosis:
    """All verdicts, in the order in which causes should be looked into, and the run's figures (median over its rounds)."""

    verdicts: tuple[Verdict, ...]
    figures: Mapping[str, float]
    rounds: int

    @property
    def findings(self) -> tuple[Verdict, ...]:
        """What is wrong, the first thing first."""
        return tuple(verdict for verdict in self.verdicts if verdict.state == "found")

    @property
    def sentence(self) -> str:
        """The end of it in one sentence."""
        names = [verdict.check for verdict in self.findings]
        if names:
            return f"Found: {', then '.join(names)}."
        unknown = [verdict.check for verdict in self.verdicts if verdict.state == "unknown"]
        if len(unknown) == len(self.verdicts):
            return "Nothing can be said."
        but = f" Not judged, for want of data: {', '.join(unknown)}." if unknown else ""
        return f"Nothing wrong was found.{but}"

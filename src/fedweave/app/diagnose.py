# SPDX-License-Identifier: Apache-2.0
"""``fedweave diagnose``: why a run does not converge, as text, as JSON and as a part of the report."""

from __future__ import annotations

import math
import textwrap
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from fedweave.app import text
from fedweave.app.page import Page
from fedweave.errors import FedweaveError, StoreError

if TYPE_CHECKING:
    from fedweave.data import Split
    from fedweave.diagnosis.run import Diagnosis, Run
    from fedweave.simulation import Result

CELLS = 50_000_000
"""Clients times labels that are counted at most."""

SHOWN = {
    "pairwise": "mean cosine of two clients' changes",
    "cosine_mean": "mean cosine of a client's change to the others'",
    "signal": "update against the noise floor (1)",
    "diversity": "gradient diversity",
    "dissimilarity": "B-dissimilarity",
    "norm_mean": "norm of a client's change",
    "norm_std": "its spread over clients",
    "update_norm": "norm of the mean change",
    "loss_std": "spread of the loss over clients",
    "steps_cv": "spread of local steps, of their mean",
    "inconsistency": "objective inconsistency",
    "effective": "clients per round, by weight",
    "staleness_max": "largest staleness",
}
"""Figures that are printed, and what they are called."""


def diagnosis_of(result: Result, split: Split | None) -> Diagnosis:
    """The diagnosis of a run that a folder keeps; ``split`` if it is at hand.

    Raises:
        StoreError: there is nothing to read: the run has no folder, or was not observed.
    """
    from fedweave.diagnosis.diagnosing import diagnose

    return diagnose(run_of(result, split))


def run_of(result: Result, split: Split | None) -> Run:
    """What is known of the run."""
    from fedweave.diagnosis.run import Run
    from fedweave.policy import Buffered, policy
    from fedweave.store import RunStore

    if result.folder is None:
        raise StoreError("The run has no folder, so nothing of its clients was noted; run it again with --out.")
    store = RunStore.open(result.folder, reading=True)
    try:
        seen = store.observed(result.history[-1].number if result.history else 0)
    finally:
        store.close()
    if not seen and result.history and not result.config.diagnostics:
        raise StoreError(f"The run in {result.folder} noted nothing of its clients; run it again without --no-diagnostics.")
    labels = None
    if split is not None and seen and split.clients * (split.classes or 0) <= CELLS:
        from fedweave.data.describe import label_counts

        met = np.unique(np.concatenate([one.client for one in seen]))
        if (counts := label_counts(split, met)) is not None:
            labels = np.zeros((split.clients, counts.shape[1]), np.int64)
            labels[met] = counts
    return Run(
        observed=seen,
        history=result.history,
        start=result.start,
        status=result.status,
        algorithm=result.config.algorithm,
        local=result.config.local.value(),
        population=split.clients if split is not None else result.config.clients,
        labels=labels,
        asynchronous=isinstance(policy(result.config.policy), Buffered),
    )


def words_of(found: Diagnosis, width: int = 110) -> str:
    """The diagnosis as text: what is wrong and what to try, what was looked for in vain, the figures."""
    lines = [found.sentence]
    for number, verdict in enumerate(found.findings, 1):
        lines += ["", f"{number}. {verdict.check}"]
        lines += [_wrapped(verdict.words, width), _wrapped(f"Next: {verdict.remedy}", width)]
    for state, heading in (("clear", "Not found"), ("unknown", "Not judged")):
        rest = [verdict for verdict in found.verdicts if verdict.state == state]
        if rest:
            lines += ["", heading] + [_wrapped(f"{verdict.check}: {verdict.words}", width, "  - ") for verdict in rest]
    if rows := figures_of(found):
        lines += ["", f"Median over {found.rounds:,} observed rounds", text.pairs(rows)]
    return "\n".join(lines)


def _wrapped(words: str, width: int, first: str = "   ") -> str:
    return textwrap.fill(words, width, initial_indent=first, subsequent_indent=" " * len(first), break_on_hyphens=False)


def figures_of(found: Diagnosis) -> list[tuple[str, str]]:
    """The figures, named as people read them."""
    rows = [(words, text.number(found.figures[name])) for name, words in SHOWN.items() if name in found.figures]
    if not found.figures.get("staleness_max"):
        rows = [row for row in rows if row[0] != SHOWN["staleness_max"]]
    measured = "of gradients" if found.figures.get("exact") else "of changes in the place of gradients"
    return [(f"{name} ({measured})" if name == SHOWN["dissimilarity"] else name, value) for name, value in rows]


def plain(found: Diagnosis) -> dict[str, Any]:
    """As JSON-ready values."""
    verdicts = [
        {"check": v.check, "state": v.state, "words": v.words, "remedy": v.remedy or None, "numbers": _finite(dict(v.numbers))}
        for v in found.verdicts
    ]
    return {
        "sentence": found.sentence,
        "found": [verdict.check for verdict in found.findings],
        "verdicts": verdicts,
        "figures": _finite(dict(found.figures)),
        "observed_rounds": found.rounds,
    }


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value


def diagnosis_section(page: Page, result: Result, split: Split | None) -> None:
    """The report's part; none if nothing was noted."""
    try:
        found = diagnosis_of(result, split)
    except FedweaveError:
        return
    if not found.rounds:
        return
    parts = [f"<p><b>{escape(found.sentence)}</b></p>"]
    for verdict in found.findings:
        parts.append(f"<p><b>{escape(verdict.check.capitalize())}.</b> {escape(verdict.words)}</p>")
        parts.append(f"<p>Next: {escape(verdict.remedy)}</p>")
    rest = [
        (v.check, {"clear": "not found", "unknown": "not judged"}[v.state], v.words)
        for v in found.verdicts
        if v.state != "found"
    ]
    checks = page.table(("looked for", "", "because"), rest) if rest else ""
    figures = page.table(("figure", "median over rounds"), figures_of(found), right=(1,))
    parts.append(f"<details><summary>All checks and figures</summary>{checks}{figures}</details>")
    note = f"From the updates of {found.rounds:,} observed rounds, by tests with fixed seeds."
    page.section("Why it does or does not converge", *parts, page.note(note))

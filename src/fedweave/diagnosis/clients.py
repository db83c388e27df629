# SPDX-License-Identifier: Apache-2.0
"""Checks of who the clients are: bad ones, unequal amounts of data, unequal steps, unequal turns."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from scipy import stats

from fedweave.diagnosis.rounds import Observed, Vector, inconsistency
from fedweave.diagnosis.run import Run, Verdict
from fedweave.diagnosis.testing import lasting, outlying, related, thinned

LEVEL = 0.01
"""The p-value at or below which something is believed."""

TURNS = 3
"""Rounds in which a client must have been seen before it is called bad."""

FAR = 5.0
"""Robust standard deviations from the other clients at which a bad one begins."""

COSINE_FLOOR, NORM_FLOOR = 0.05, 0.15
"""The smallest spreads between clients that are believed, of cosines (about a sketch's error) and of log norms."""

AGAINST, LONGER = -0.05, 3.0
"""A bad client's mean cosine to the others is at most the first, or its changes are longer by the second factor."""

SKEWED = 1.0
"""The squared coefficient of variation of sizes at which quantity skew begins: half of the clients would do the same."""

UNEVEN = 0.2
"""The same of the part of their work that clients do, not squared, at which steps are unequal."""


def bad_clients(run: Run) -> Verdict:
    """A few clients whose updates point against all others', are far longer, or cannot be used, again and again."""
    check = "bad clients"
    refused = _refused(run)
    rounds = thinned(run.with_several(4))
    if len(rounds) < TURNS and not refused:
        return Verdict(check, "unknown", f"Needs {TURNS} observed rounds with 4 clients or more; there are {len(rounds)}.")
    sentences = [
        f"Updates of client {client} were refused in {count} of its {turns} rounds." for client, count, turns in refused
    ]
    bad = [client for client, _, _ in refused]
    numbers: dict[str, object] = {"refused": {str(client): count for client, count, _ in refused}}
    if len(rounds) >= TURNS:
        who, apart, z, p = outlying(
            [one.client[_heard(one)] for one in rounds], [one.cosine[_heard(one)] for one in rounds], COSINE_FLOOR, TURNS
        )
        cosine = dict(zip(who.tolist(), (apart + _middle(rounds)).tolist(), strict=True))
        numbers["judged"] = len(who)
        against = [i for i in range(len(who)) if z[i] <= -FAR and p[i] <= LEVEL and cosine[int(who[i])] <= AGAINST]
        against = [] if len(against) > len(who) / 3 or _middle(rounds) <= 0 else _unexplained(run, who, against)
        for i in against:
            client = int(who[i])
            bad.append(client)
            sentences.append(
                f"Changes of client {client} point against those of the others: mean cosine {cosine[client]:.2f}, where the middle "
                f"client has {_middle(rounds):.2f} ({-z[i]:.0f} robust standard deviations, p = {p[i]:.3f})."
            )
        longer = _longer(rounds)
        bad += [client for client, _, _ in longer]
        sentences += [
            f"Changes of client {client} are {factor:.1f} times as long as the middle one's, for the same steps (p = {p:.3f})."
            for client, factor, p in longer
        ]
        numbers |= {"cosine": cosine, "longer": {str(c): f for c, f, _ in longer}, "middle_cosine": _middle(rounds)}
    bad = sorted(set(bad))
    numbers["clients"] = bad
    if bad:
        count = len(bad)
        remedy = (
            f"Look at the data and labels of {_named(bad)}. To train on without trusting anybody: a robust reduction, such as "
            f"reduce=trimmed_mean(f={count}) or reduce=multi_krum(f={count}); it costs no bytes, and some accuracy where clients differ."
        )
        return Verdict(check, "found", " ".join(sentences), remedy, numbers)
    words = f"No client lies {FAR:.0f} robust standard deviations from the others over {len(rounds)} rounds."
    return Verdict(check, "clear", words, numbers=numbers)


def _heard(one: Observed) -> Vector:
    heard: Vector = np.isfinite(one.cosine)
    return heard


def _middle(rounds: Sequence[Observed]) -> float:
    return float(np.mean([np.median(one.cosine[_heard(one)]) for one in rounds]))


def _longer(rounds: Sequence[Observed]) -> list[tuple[int, float, float]]:
    """Clients whose changes are too long for their steps: number, factor, p-value."""
    clients, values = [], []
    for one in rounds:
        sent = (one.norm > 0) & (one.steps > 0) & np.isfinite(one.norm)
        if sent.sum() >= 4:
            clients.append(one.client[sent])
            # Between no growth with the steps and growth in proportion: what is too long under both is too long.
            steps = np.log(one.steps[sent] / np.median(one.steps[sent]))
            values.append(np.log(one.norm[sent]) - np.maximum(steps, 0.0))
    if len(values) < TURNS:
        return []
    who, apart, z, p = outlying(clients, values, NORM_FLOOR, TURNS)
    over = [i for i in range(len(who)) if z[i] >= FAR and p[i] <= LEVEL and apart[i] >= math.log(LONGER)]
    return [(int(who[i]), math.exp(apart[i]), float(p[i])) for i in over] if len(over) <= len(who) / 3 else []


def _unexplained(run: Run, who: Vector, against: list[int]) -> list[int]:
    """Those whose labels do not set them apart as well: a client that alone holds a label may be honest."""
    if run.labels is None:
        return against
    held = run.labels[who].astype(float)
    share = held / np.maximum(held.sum(1, keepdims=True), 1)
    whole = held.sum(0) / max(held.sum(), 1)
    distance = np.abs(share - whole).sum(1) / 2
    spread = max(1.4826 * float(np.median(np.abs(distance - np.median(distance)))), 0.02)
    return [i for i in against if (distance[i] - np.median(distance)) / spread < FAR]


def _refused(run: Run) -> list[tuple[int, int, int]]:
    """Clients most of whose updates were refused while those of the others were not: number, how often, of how many."""
    refused = Counter(client for r in run.history for client, _ in r.refused)
    turns = Counter(client for r in run.history for client in r.cohort)
    often = [(c, n, turns[c]) for c, n in sorted(refused.items()) if n >= TURNS and 2 * n > turns[c]]
    return often if 3 * len(often) <= len(turns) else []


def quantity_skew(run: Run) -> Verdict:
    """A few clients that hold most of the examples."""
    check = "quantity skew"
    sizes = _sizes(run)
    if len(sizes) < 2:
        return Verdict(check, "unknown", "Needs two clients that were seen.")
    held = np.array(list(sizes.values()), float)
    variation = float((held.std() / held.mean()) ** 2) if held.mean() > 0 else 0.0
    alike = len(held) / (1 + variation)
    top = np.sort(held)[::-1]
    tenth = max(1, round(len(held) / 10))
    share = float(top[:tenth].sum() / held.sum()) if held.sum() > 0 else 0.0
    numbers: dict[str, object] = {
        "clients": len(held), "smallest": float(held.min()), "median": float(np.median(held)), "largest": float(held.max()),
        "cv_squared": variation, "as_good_as": alike, "top_tenth_share": share,
    }  # fmt: skip
    words = (
        f"The {len(held):,} clients seen hold {held.min():,.0f} to {held.max():,.0f} examples (median {np.median(held):,.0f}); the largest "
        f"{tenth:,} hold {share:.0%}."
    )
    if variation <= SKEWED:
        return Verdict(check, "clear", words, numbers=numbers)
    several = run.with_several(2)
    effective = [one.figures["effective"] / len(one) for one in several if len(one) > 1]
    if effective:
        words += f" By weight, a round counts as {np.mean(effective):.0%} of its clients."
        numbers["effective_share"] = float(np.mean(effective))
    rho, p = related([one.examples for one in thinned(several)], [one.norm for one in thinned(several)])
    numbers |= {"size_norm_correlation": rho, "size_norm_p": p}
    if p <= LEVEL:
        words += f" Who holds more also moves further (rank correlation {rho:.2f}, p = {p:.3f})."
    remedy = (
        "Decide whom the model is for. weighting=uniform lets every client count alike; qfedavg(q=0.1) favours those it serves badly; "
        "local.steps in place of epochs gives all the same steps, or fednova removes their effect. None of them costs bytes; all are "
        "slower for the largest clients."
    )
    return Verdict(check, "found", words, remedy, numbers)


def _sizes(run: Run) -> dict[int, float]:
    sizes: dict[int, float] = {}
    for one in run.observed:
        sizes.update(zip(one.client.tolist(), one.examples.tolist(), strict=True))
    return sizes


def unequal_steps(run: Run) -> Verdict:
    """Clients that do different parts of the work that they were asked for."""
    check = "unequal steps"
    rounds = [one for one in thinned(run.observed) if len(one) > 1]
    if not rounds:
        return Verdict(check, "unknown", "Needs an observed round with two clients.")
    part = [_parts(run, one) for one in rounds]
    uneven = float(np.mean([p.std() / p.mean() if p.mean() > 0 else 0.0 for p in part]))
    chi = float(np.mean([inconsistency(one.weight / max(one.weight.sum(), 1e-30), one.steps) for one in rounds]))
    lowest, highest = min(float(p.min()) for p in part), max(float(p.max()) for p in part)
    numbers: dict[str, object] = {"part_cv": uneven, "part_lowest": lowest, "part_highest": highest, "inconsistency": chi}
    if uneven <= UNEVEN:
        words = f"Clients do {lowest:.2g} to {highest:.2g} times the steps asked for; they differ by {uneven:.0%} within a round."
        return Verdict(check, "clear", words, numbers=numbers)
    rho, p = related([one.steps for one in rounds], [one.norm for one in rounds])
    numbers |= {"steps_norm_correlation": rho, "steps_norm_p": p}
    steps = [int(s) for one in rounds for s in one.steps]
    words = f"Clients that were asked for the same work took {min(steps):,} to {max(steps):,} steps (they differ by {uneven:.0%})"
    if p > LEVEL or rho <= 0:
        return Verdict(check, "clear", f"{words}, but who did more did not move the model further (p = {p:.3f}).", numbers=numbers)
    words += f", and who did more moved further (rank correlation {rho:.2f}, p = {p:.3f}). The objective that they descend is not the one "
    words += f"asked for: chi-squared distance {chi:.2f} of the shares."
    share, again = lasting([one.client for one in rounds], part)
    numbers |= {"lasting_share": share, "lasting_p": again}
    if again <= LEVEL:
        words += f" The same clients do less every time ({share:.0%} of the variance, p = {again:.3f}), so the model is biased against them."
    else:
        words += f" It is not the same clients every time (p = {again:.2f}): this is noise rather than bias."
    remedy = (
        "fednova divides each change by its client's own steps and costs no bytes; fedprox(mu=0.01) to (mu=1) bounds how far the longest "
        "go; local.steps asks all for the same."
    )
    return Verdict(check, "found", words, remedy, numbers)


def _parts(run: Run, one: Observed) -> Vector:
    """Of each client its steps over those that it was asked for."""
    asked = np.array([run.local.steps_for(int(n)) for n in one.examples])
    return one.steps / np.maximum(asked, 1)


def participation(run: Run) -> Verdict:
    """Clients that count in more rounds than chance gives them."""
    check = "unequal participation"
    counts: Counter[int] = Counter()
    for r in run.history:
        out = {client for client, _ in r.refused} | set(r.dropped)
        counts.update(client for client in r.cohort if client not in out)
    population = run.population or (max(counts) + 1 if counts else 0)
    total = sum(counts.values())
    if population < 2 or total < 5 * population:
        words = f"Needs 5 turns per client; {total:,} turns were shared by {population:,} clients."
        return Verdict(check, "unknown", words)
    turns = np.zeros(population)
    turns[list(counts)] = list(counts.values())
    expected = total / population
    p = float(stats.chi2.sf(((turns - expected) ** 2 / expected).sum(), population - 1))
    jain = float(turns.sum() ** 2 / (population * (turns**2).sum()))
    never = int((turns == 0).sum())
    numbers = {"jain": jain, "p": p, "never": never, "fewest": float(turns.min()), "most": float(turns.max())}
    words = f"The updates of a client counted {turns.min():.0f} to {turns.max():.0f} times (Jain's index {jain:.2f}, 1 is even)"
    if p > LEVEL / 10 or jain > 0.9:
        return Verdict(check, "clear", f"{words}, which chance explains or which is even.", numbers=numbers)
    words += f", which chance does not explain (p = {p:.2g}); {never:,} of {population:,} never counted."
    remedy = (
        "The model is of those who take part. Give slow clients less to do (their partial work counts) or a later deadline; with more work "
        "left over, fewer clients per round and more rounds."
    )
    return Verdict(check, "found", words, remedy, numbers)

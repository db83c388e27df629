# SPDX-License-Identifier: Apache-2.0
"""Checks of who the clients are: bad ones, unequal amounts of data, unequal steps, unequal turns."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from scipy.special import chdtrc

from fedweave.diagnosis.labels import Labels
from fedweave.diagnosis.rounds import Observed, Vector, inconsistency
from fedweave.diagnosis.run import LEVEL, Run, Verdict, below
from fedweave.diagnosis.testing import lasting, outlying, related, thinned

TURNS = 3
"""Rounds in which a client must have been seen before it is called bad."""

FAR = 5.0
"""Robust standard deviations from the other clients at which a bad one begins."""

COSINE_FLOOR, NORM_FLOOR = 0.05, 0.15
"""The smallest spreads between clients that are believed, of cosines (about a sketch's error) and of log norms."""

AGAINST, UNEXPLAINED, LONGER = -0.05, -0.2, 3.0
"""A bad client's mean cosine to the others is at most the first, and where labels are skewed the part of it that they leave
unexplained at most the second; or its changes are longer by the third as a factor."""

SKEWED = 1.0
"""The squared coefficient of variation of sizes at which quantity skew begins: half of the clients would do the same."""

UNEVEN = 0.2
"""The same of the part of their work that clients do, not squared, at which steps are unequal."""


def bad_clients(run: Run, labels: Labels | None) -> Verdict:
    """A few clients whose changes point against all others', are far longer, or cannot be used, again and again."""
    check = "bad clients"
    refused = _refused(run)
    rounds = thinned(run.with_several(4))
    if len(rounds) < TURNS and not refused:
        return Verdict(check, "unknown", f"Needs {TURNS} observed rounds with 4 clients or more; there are {len(rounds)}.")
    against, longer = _against(rounds, labels), _longer(rounds)
    words = [f"Updates of client {client} were refused in {count} of its {turns} rounds." for client, count, turns in refused]
    for client, cosine, middle, z, p in against:
        words.append(
            f"Changes of client {client} point against the others': mean cosine {cosine:.2f}, where the middle client has "
            f"{middle:.2f}"
            f"{' and its labels do not explain it' if labels is not None and labels.skewed else ''} "
            f"({z:.0f} robust standard deviations, p {below(p)})."
        )
    for client, factor, p in longer:
        words.append(
            f"Changes of client {client} are {factor:.1f} times as long as the middle one's for the same steps (p {below(p)})."
        )
    bad = sorted({one[0] for one in refused} | {one[0] for one in against} | {one[0] for one in longer})
    numbers = {
        "clients": bad,
        "refused": {str(client): count for client, count, _ in refused},
        "against": {str(client): cosine for client, cosine, *_ in against},
        "longer": {str(client): factor for client, factor, _ in longer},
    }
    if not bad:
        words = [f"Over {len(rounds)} rounds no client points against the others or sends changes out of proportion."]
        return Verdict(check, "clear", words[0], numbers=numbers)
    remedy = f"Look at the data and labels of {_named(bad)}. To train on without trusting anybody: a robust reduction, such as "
    remedy += (
        f"reduce=trimmed_mean(f={len(bad)}) or reduce=multi_krum(f={len(bad)}). It costs no bytes, but some accuracy where "
    )
    remedy += "clients differ."
    return Verdict(check, "found", " ".join(words), remedy, numbers)


def _named(clients: Sequence[int]) -> str:
    shown = ", ".join(str(client) for client in clients[:8]) + (", ..." if len(clients) > 8 else "")
    return f"client {shown}" if len(clients) == 1 else f"the {len(clients)} clients {shown}"


def _against(rounds: Sequence[Observed], labels: Labels | None) -> list[tuple[int, float, float, float, float]]:
    """Clients that point against the others: number, mean cosine to the others, that of the middle client, distance in robust
    standard deviations, p-value.

    Where labels are skewed, clients are compared by what their labels leave unexplained: an honest one that alone holds a
        label points elsewhere too.
    """
    if len(rounds) < TURNS:
        return []
    heard = [np.isfinite(one.cosine) for one in rounds]
    clients = [one.client[sent] for one, sent in zip(rounds, heard, strict=True)]
    cosines = [one.cosine[sent] for one, sent in zip(rounds, heard, strict=True)]
    everyone, place = np.unique(np.concatenate(clients), return_inverse=True)
    mean = dict(zip(everyone.tolist(), np.bincount(place, np.concatenate(cosines)) / np.bincount(place), strict=True))
    middle = float(np.mean([np.median(values) for values in cosines]))
    skewed = labels is not None and labels.skewed
    if labels is not None and skewed:
        clients, cosines = [labels.who[rows] for rows in labels.rows], labels.unexplained()
    who, apart, z, p = outlying(clients, cosines, COSINE_FLOOR, TURNS)
    found = [
        (int(client), float(mean[int(client)]), middle, float(-z[i]), float(p[i]))
        for i, client in enumerate(who)
        if z[i] <= -FAR
        and p[i] <= LEVEL
        and mean[int(client)] <= AGAINST
        and (apart[i] <= UNEXPLAINED if skewed else middle > 0)
    ]
    return found if len(found) <= len(who) / 3 else []


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
        f"The {len(held):,} clients seen hold {held.min():,.0f} to {held.max():,.0f} examples (median "
        f"{np.median(held):,.0f}); the largest {'one holds' if tenth == 1 else f'{tenth:,} hold'} {share:.0%}."
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
        words += f" Who holds more also moves further (rank correlation {rho:.2f}, p {below(p)})."
    remedy = (
        "Decide whom the model is for. weighting='uniform' lets every client count alike; qfedavg(q=0.1) favours those that it "
        "serves badly; local.steps in place of epochs gives all the same steps, or fednova removes their effect. None of them "
        "costs bytes; all learn more slowly from the largest clients."
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
        words = (
            f"Clients do {lowest:.2g} to {highest:.2g} times the steps asked for, and differ by {uneven:.0%} within a round."
        )
        words = "Every client does all the steps that it is asked for." if lowest == highest == 1.0 else words
        return Verdict(check, "clear", words, numbers=numbers)
    rho, p = related([one.steps for one in rounds], [one.norm for one in rounds])
    numbers |= {"steps_norm_correlation": rho, "steps_norm_p": p}
    steps = [int(s) for one in rounds for s in one.steps]
    words = (
        f"Clients that were asked for the same work took {min(steps):,} to {max(steps):,} steps (they differ by {uneven:.0%})"
    )
    if p > LEVEL or rho <= 0:
        return Verdict(
            check, "clear", f"{words}, but who did more did not move the model further (p {below(p)}).", numbers=numbers
        )
    words += f", and who did more moved further (rank correlation {rho:.2f}, p {below(p)}). The objective that they "
    words += f"descend is not the one asked for: chi-squared distance {chi:.2f} of the shares."
    share, again = lasting([one.client for one in rounds], part)
    numbers |= {"lasting_share": share, "lasting_p": again}
    if again <= LEVEL:
        words += (
            f" The same clients do less every time ({share:.0%} of the variance, p {below(again)}), so the model is biased "
        )
        words += "against them."
    else:
        words += f" It is not the same clients every time (p {below(again)}): this is noise rather than bias."
    remedy = (
        "Try fednova, which divides each change by its client's own steps and costs no bytes; or fedprox(mu=0.01) to (mu=1), "
        "which bounds how far the longest go. local.steps asks all for the same."
    )
    return Verdict(check, "found", words, remedy, numbers)


def _parts(run: Run, one: Observed) -> Vector:
    """Of each client its steps over those that it was asked for."""
    asked = np.array([run.local.steps_for(int(n)) for n in one.examples])
    parts: Vector = one.steps / np.maximum(asked, 1)
    return parts


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
    p = float(chdtrc(population - 1, ((turns - expected) ** 2 / expected).sum()))
    jain = float(turns.sum() ** 2 / (population * (turns**2).sum()))
    never = int((turns == 0).sum())
    numbers = {"jain": jain, "p": p, "never": never, "fewest": float(turns.min()), "most": float(turns.max())}
    words = f"The updates of a client counted {turns.min():.0f} to {turns.max():.0f} times (Jain's index {jain:.2f}, 1 is even)"
    if p > LEVEL / 10 or jain > 0.9:
        words += ", which is even enough." if jain > 0.9 else f", which chance explains (p {below(p)})."
        return Verdict(check, "clear", words, numbers=numbers)
    words += f", which chance does not explain (p {below(p)}); {never:,} of {population:,} never counted."
    remedy = (
        "The model is of those who take part. Give slow clients less to do, so that their partial work counts, or wait longer "
        "for them, which costs time."
    )
    return Verdict(check, "found", words, remedy, numbers)

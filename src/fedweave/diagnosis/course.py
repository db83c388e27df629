# SPDX-License-Identifier: Apache-2.0
"""Checks of where the clients pull and how the model moves: label skew, and a learning rate that is too large."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from fedweave.diagnosis.clients import LEVEL
from fedweave.diagnosis.rounds import Observed, Vector
from fedweave.diagnosis.run import Run, Verdict
from fedweave.diagnosis.testing import between, mantel, thinned
from fedweave.randomness import generator

EXCESS = 0.1
"""Label skew begins where the labels of clients are so much further from the whole, in total variation, than a random dealing."""

RELATED = -0.3
"""Correlation between clients' distance in labels and the cosine of their changes from which on labels are to blame."""

DISJOINT = 0.1
"""Clients none of which shares labels with another pull apart if their mean cosine is at most this."""

PAIRS = 5
"""Pairs of neighbouring observed rounds from which on a course is judged."""

AGREED, KEPT = 0.3, 0.25
"""A course overshoots if the clients of a round agree by the first or more, and neighbouring rounds by at most the second of that."""

STUCK = 1.02
"""A loss that stays so many times the initial model's is worse than not to train."""


def label_skew(run: Run) -> Verdict:
    """Clients that hold different labels, and pull apart because of it."""
    check = "label skew"
    if run.labels is None:
        return Verdict(check, "unknown", "The labels of the clients are not at hand.")
    rounds = thinned([one for one in run.observed if np.isfinite(one.cosines).any()])
    who = np.unique(np.concatenate([one.client[one.paired] for one in rounds])) if rounds else np.zeros(0, int)
    who = who[run.labels[who].sum(1) > 0]
    if len(who) < 4:
        return Verdict(check, "unknown", f"Needs 4 clients that were seen beside others; there are {len(who)}.")
    held = run.labels[who].astype(float)
    share = held / held.sum(1, keepdims=True)
    apart = np.abs(share[:, None] - share[None]).sum(-1) / 2
    far, random, p_labels = _beyond_chance(held)
    numbers: dict[str, object] = {"distance": far, "random_distance": random, "labels_p": p_labels, "clients": len(who)}
    words = f"The labels of a client are {far:.2f} from those of all (total variation); a random dealing would give {random:.2f}"
    if p_labels > LEVEL / 10 or far - random <= EXCESS:
        return Verdict(check, "clear", f"{words}.", numbers=numbers)
    words += f" (p = {p_labels:.1g})."
    place = {int(client): i for i, client in enumerate(who)}
    squares, rows = [], []
    for one in rounds:
        known = [i for i, client in enumerate(one.client[one.paired]) if int(client) in place]
        square = one.cosines[np.ix_(known, known)]
        if np.isfinite(square).any():
            squares.append(square)
            rows.append(np.array([place[int(one.client[one.paired[i]])] for i in known]))
    cosine = float(np.mean([np.nanmean(square) for square in squares]))
    numbers["pairwise"] = cosine
    away = apart[np.triu_indices(len(who), 1)]
    if np.ptp(away) < 0.02:
        low, high = between(np.array([np.nanmean(square) for square in squares]))
        numbers["pairwise_interval"] = (low, high)
        if high > DISJOINT:
            return Verdict(check, "clear", f"{words} The changes of two clients still agree: mean cosine {cosine:.2f}.", numbers=numbers)
        words += f" All clients are equally far from each other, and their changes have little in common: mean cosine {cosine:.2f}."
        return Verdict(check, "found", words, _against_skew(run), numbers)
    r, p = mantel(squares, rows, apart)
    numbers |= {"correlation": r, "p": p}
    if p > LEVEL or r > RELATED:
        also = f"{words} But where clients pull does not follow their labels (correlation {r:.2f}, p = {p:.3f})."
        return Verdict(check, "clear", also, numbers=numbers)
    near, distant = _by_distance(squares, rows, apart)
    numbers |= {"cosine_near": near, "cosine_distant": distant}
    words += (
        f" Two clients with labels more alike have a mean cosine of {near:.2f} between their changes, those with labels less alike "
        f"{distant:.2f} (correlation {r:.2f} with the distance of the labels, p = {p:.3f})."
    )
    if (worst := _against(rounds, who, share)) is not None:
        label, value, count = worst
        numbers["against"] = {"label": label, "cosine": value, "clients": count}
        words += f" Most opposed: the changes of the {count} clients with most label {label} point against the others' (cosine {value:.2f})."
    return Verdict(check, "found", words, _against_skew(run), numbers)


def _against_skew(run: Run) -> str:
    steps = "fewer local epochs, which costs more rounds"
    proximal = "fedprox(mu=0.01) to (mu=0.1), which costs no bytes"
    control = "scaffold, which costs a second vector each way"
    tries = {
        "fedprox": f"Try a larger mu; {control}; or {steps}.",
        "scaffold": f"Try more clients per round, so that control variates are fresher; or {steps}.",
        "feddyn": f"Try {control}; or {steps}.",
    }
    return tries.get(run.name, f"Try {proximal}; {control}; or {steps}.")


def _beyond_chance(held: Vector) -> tuple[float, float, float]:
    """Mean total-variation distance of clients' labels from the whole; the same for labels dealt at random to clients of these sizes;
    and the p-value of the chi-squared test of independence."""
    whole = held.sum(0)
    held, whole = held[:, whole > 0], whole[whole > 0]
    share = whole / whole.sum()
    sizes = held.sum(1)
    expected = sizes[:, None] * share
    statistic = float(((held - expected) ** 2 / expected).sum())
    p = float(stats.chi2.sf(statistic, (held.shape[0] - 1) * max(held.shape[1] - 1, 1)))

    def far(counts: Vector) -> float:
        return float((np.abs(counts / sizes[:, None] - share).sum(1) / 2).mean())

    draw = generator(0, "dealt labels")
    random = float(np.mean([far(np.array([draw.multinomial(int(n), share) for n in sizes])) for _ in range(20)]))
    return far(held), random, p


def _by_distance(squares: Sequence[Vector], rows: Sequence[Vector], apart: Vector) -> tuple[float, float]:
    """Mean cosine of the pairs nearer than half way between the least and the largest distance in labels, and of the others."""
    cosines = np.concatenate([square[np.triu_indices(len(square), 1)] for square in squares])
    distances = np.concatenate([apart[np.ix_(r, r)][np.triu_indices(len(r), 1)] for r in rows])
    near = distances < (distances.min() + distances.max()) / 2
    return float(np.nanmean(cosines[near])), float(np.nanmean(cosines[~near]))


def _against(rounds: Sequence[Observed], who: Vector, share: Vector) -> tuple[int, float, int] | None:
    """The label whose clients (it is the most frequent one of theirs) point most against the others', if the bootstrap interval of the
    cosine over rounds lies below 0: label, cosine, number of clients."""
    main = dict(zip(who.tolist(), share.argmax(1).tolist(), strict=True))
    worst: tuple[int, float, int] | None = None
    for label in sorted(set(main.values())):
        by_round = []
        for one in rounds:
            mine = [c for k, c in zip(one.client.tolist(), one.cosine, strict=True) if main.get(k) == label and math.isfinite(c)]
            by_round += [float(np.mean(mine))] if mine else []
        value = float(np.mean(by_round)) if by_round else 0.0
        if len(by_round) >= PAIRS and between(np.array(by_round))[1] < 0 and (worst is None or value < worst[1]):
            worst = (label, value, sum(1 for mine in main.values() if mine == label))
    return worst


def learning_rate(run: Run, others: Sequence[Verdict]) -> Verdict:
    """A step that is too long: the run diverged and no client is to blame, the loss stays above the initial one, or the clients of a
    round agree where to go and those of the next send the model back."""
    check = "too large a learning rate"
    blamed = any(verdict.state == "found" and verdict.check == "bad clients" for verdict in others)
    remedy = f"Try a third of the local learning rate ({_third(run.local.lr)}), then a ninth"
    remedy += ", and a smaller server_lr" if "server_lr" in run.algorithm or run.name in SERVER else ""
    remedy += ". It costs rounds only if the smaller one is too small; --clip-norm bounds each step instead."
    if run.status == "diverged":
        last = run.history[-1].number if run.history else 0
        if blamed:
            return Verdict(check, "unknown", f"The run diverged in round {last}, but bad clients may be why.")
        words = f"The model or its loss was no longer finite in round {last}, and no single client is to blame."
        return Verdict(check, "found", words, remedy, {"diverged": last})
    late = run.observed[len(run.observed) // 2 :] if len(run.observed) >= 4 * PAIRS else run.observed
    agreed, kept = _course(late)
    numbers: dict[str, object] = {"pairs": len(kept)}
    if len(kept) < PAIRS:
        words = f"Needs {PAIRS} pairs of neighbouring observed rounds with two clients or more; there are {len(kept)}."
        return Verdict(check, "unknown", words, numbers=numbers)
    expected, found = float(agreed.mean()), float(kept.mean())
    numbers |= {"agreement": expected, "successive": found}
    course = f"the clients of a round agree by {expected:.2f}, and the changes of neighbouring rounds have a mean cosine of {found:.2f}"
    low, _ = between(agreed)
    _, high = between(kept - KEPT * agreed)
    overshoots = low > AGREED and high < 0
    stuck = _stuck(run, numbers) if found < AGREED else ""
    if overshoots or stuck:
        words = f"The model overshoots: {course}." if overshoots else ""
        return Verdict(check, "found", f"{words} {stuck}".strip(), remedy, numbers)
    return Verdict(check, "clear", f"{course[0].upper()}{course[1:]}.", numbers=numbers)


SERVER = ("fedavgm", "fedadagrad", "fedadam", "fedyogi", "fedsgd")
"""Algorithms whose server has a learning rate that matters as much."""


def _third(lr: float) -> str:
    return f"{lr / 3:.2g}"


def _course(rounds: Sequence[Observed]) -> tuple[Vector, Vector]:
    """For each two neighbouring rounds: what the cosine of their mean changes would be if both had gone where their clients agree,

        1 - 1 / signal, over 1 - sum p_k^2, at most 1: the share of |d|^2 that is not the clients' noise,

    and what it is."""
    agreed, kept = [], []
    for one, two in zip(rounds, rounds[1:], strict=False):
        if two.number != one.number + 1 or not (len(one.mean) and len(two.mean)):
            continue
        shares = [_common(one), _common(two)]
        product = float(np.linalg.norm(one.mean) * np.linalg.norm(two.mean))
        if product > 0 and all(math.isfinite(share) for share in shares):
            agreed.append(math.sqrt(shares[0] * shares[1]))
            kept.append(float(one.mean.astype(float) @ two.mean.astype(float)) / product)
    return np.array(agreed), np.array(kept)


def _common(one: Observed) -> float:
    signal, effective = one.figures["signal"], one.figures["effective"]
    if not (signal > 0 and effective > 1):
        return math.nan
    return min(max((1 - 1 / signal) / (1 - 1 / effective), 0.0), 1.0)


def _stuck(run: Run, numbers: dict[str, object]) -> str:
    """A sentence if the training loss of the second half stays above the initial model's loss."""
    initial = None if run.start is None else run.start.metrics.get("loss", run.start.metrics.get("clients_loss"))
    losses = [r.metrics["train_loss"] for r in run.history if "train_loss" in r.metrics]
    late = np.array(losses[len(losses) // 2 :])
    if initial is None or len(late) < PAIRS:
        return ""
    numbers |= {"initial_loss": initial, "late_loss": float(np.median(late))}
    low, _ = between(late)
    if low <= STUCK * initial:
        return ""
    return f"The training loss of the second half is {np.median(late):.3g}, above the initial model's {initial:.3g}: training makes it worse."

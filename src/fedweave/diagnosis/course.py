# SPDX-License-Identifier: Apache-2.0
"""Checks of where the clients pull and how the model moves: label skew, and a learning rate that is too large."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from fedweave.diagnosis.labels import Labels
from fedweave.diagnosis.rounds import Observed, Vector
from fedweave.diagnosis.run import LEVEL, Run, Verdict, below
from fedweave.diagnosis.testing import between, mantel

RELATED = -0.3
"""Correlation between clients' distance in labels and the cosine of their changes from which on labels are to blame."""

DISJOINT = 0.1
"""Clients none of which shares labels with another pull apart if their mean cosine is at most this."""

PAIRS = 5
"""Pairs of neighbouring observed rounds from which on a course is judged."""

AGREED, KEPT = 0.3, 0.25
"""A course overshoots if the clients of a round agree by the first or more, and neighbouring rounds by at most the second of
that."""

THROWN, SETTLED = 1.5, 0.1
"""Clients whose loss in some round is so many times the initial model's have been thrown up; a course whose neighbouring rounds
have this cosine has settled."""

JITTER, HIGH, DRIFT = 0.1, 0.25, 0.5
"""Steps jitter if what they add to the loss is this part of the initial model's, the loss stays above the second part of it,
and the cosine of neighbouring rounds' changes is below the third: where it is not, clients are under way."""


def label_skew(run: Run, labels: Labels | None) -> Verdict:
    """Clients that hold different labels, and pull apart because of it."""
    check = "label skew"
    if labels is None:
        why = (
            "The labels of the clients are not at hand."
            if run.labels is None
            else "Fewer than 4 clients were seen beside others."
        )
        return Verdict(check, "unknown", why)
    numbers: dict[str, object] = {
        "distance": labels.distance,
        "random_distance": labels.random,
        "labels_p": labels.p,
        "clients": len(labels.who),
    }
    words = f"The labels of a client are {labels.distance:.2f} from those of all (total variation); "
    words += f"a random dealing would give {labels.random:.2f}"
    if not labels.skewed:
        return Verdict(check, "clear", f"{words}.", numbers=numbers)
    words += f" (p {below(labels.p)})."
    cosines, apart = labels.pairs()
    cosine = float(cosines.mean())
    numbers["pairwise"] = cosine
    if np.ptp(apart) < 0.02:
        low, high = between(np.array([np.nanmean(square) for square in labels.squares]))
        numbers["pairwise_interval"] = (low, high)
        if high > DISJOINT:
            words += f" But the changes of two clients agree: mean cosine {cosine:.2f}."
            return Verdict(check, "clear", words, numbers=numbers)
        words += (
            f" All clients are equally far from each other, and their changes have little in common: mean cosine {cosine:.2f}."
        )
        return Verdict(check, "found", words, _against_skew(run), numbers)
    r, p = mantel(labels.squares, labels.rows, labels.apart)
    numbers |= {"correlation": r, "p": p}
    if p > LEVEL or r > RELATED:
        words += f" But where clients pull does not follow their labels (correlation {r:.2f}, p {below(p)})."
        return Verdict(check, "clear", words, numbers=numbers)
    near = apart < (apart.min() + apart.max()) / 2
    alike, unlike = float(cosines[near].mean()), float(cosines[~near].mean())
    numbers |= {"cosine_alike": alike, "cosine_unlike": unlike}
    words += (
        f" The changes of two clients with labels more alike have a mean cosine of {alike:.2f}, of two with labels less alike "
    )
    words += f"{unlike:.2f} (correlation with the distance {r:.2f}, p {below(p)})."
    if (worst := _against(labels)) is not None:
        label, value, count = worst
        numbers["against"] = {"label": label, "cosine": value, "clients": count}
        clients = f"the {count} clients that hold" if count > 1 else "the client that holds"
        words += f" Changes of {clients} mostly label {label} point most against the others' (cosine {value:.2f})."
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


def _against(labels: Labels) -> tuple[int, float, int] | None:
    """The label whose clients (it is the most frequent one of theirs) point most against the others, if the bootstrap interval
    of their
    cosine over rounds lies below 0: label, cosine, number of clients."""
    main = dict(zip(labels.who.tolist(), labels.share.argmax(1).tolist(), strict=True))
    worst: tuple[int, float, int] | None = None
    for label in sorted(set(main.values())):
        by_round = []
        for one in labels.rounds:
            mine = [
                c for k, c in zip(one.client.tolist(), one.cosine, strict=True) if main.get(k) == label and math.isfinite(c)
            ]
            by_round += [float(np.mean(mine))] if mine else []
        value = float(np.mean(by_round)) if by_round else 0.0
        if len(by_round) >= PAIRS and between(np.array(by_round))[1] < 0 and (worst is None or value < worst[1]):
            worst = (label, value, sum(1 for mine in main.values() if mine == label))
    return worst


def learning_rate(run: Run, others: Sequence[Verdict], labels: Labels | None = None) -> Verdict:
    """A step that is too long: the run diverged and no client is to blame, the loss stays above the initial one or as high as
    the steps' own jitter keeps it, or the clients of a round agree where to go and those of the next send the model back."""
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
    course = (
        f"the clients of a round have {expected:.0%} of their mean change in common, and the changes of neighbouring rounds "
    )
    course += f"a mean cosine of {found:.2f}"
    low, _ = between(agreed)
    _, high = between(kept - KEPT * agreed)
    overshoots = low > AGREED and high < 0
    _, most = between(kept)
    raised = [_thrown(run, numbers) if most < SETTLED else "", _stuck(run, numbers) if most < DRIFT else ""]
    # Where labels are skewed a client's own steps go one way, which is drift and no jitter; so is what a bad client sends.
    other = blamed or (labels is not None and labels.skewed)
    raised += [_jitters(run, late, numbers) if most < DRIFT and not other else ""]
    raised = [sentence for sentence in raised if sentence]
    if overshoots or raised:
        words = "The model overshoots" if overshoots else "The model does not settle"
        return Verdict(check, "found", " ".join([f"{words}: {course}.", *raised]), remedy, numbers)
    return Verdict(check, "clear", f"{course[0].upper()}{course[1:]}.", numbers=numbers)


SERVER = ("fedavgm", "fedadagrad", "fedadam", "fedyogi", "fedsgd")
"""Algorithms whose server has a learning rate that matters as much."""


def _third(lr: float) -> str:
    return f"{lr / 3:.2g}"


def _course(rounds: Sequence[Observed]) -> tuple[Vector, Vector]:
    """For each two neighbouring rounds: what the cosine of their mean changes would be if both had gone where their clients
    agree,

        1 - 1 / signal, over 1 - sum p_k^2, at most 1: the share of |d|^2 that is not the clients' noise,

    and what it is."""
    agreed, kept = [], []
    for one, two in pairwise(rounds):
        if two.begins != one.number + 1 or not (len(one.mean) and len(two.mean)):
            continue
        shares = [common(one), common(two)]
        product = float(np.linalg.norm(one.mean) * np.linalg.norm(two.mean))
        if product > 0 and all(math.isfinite(share) for share in shares):
            agreed.append(math.sqrt(shares[0] * shares[1]))
            kept.append(float(one.mean.astype(float) @ two.mean.astype(float)) / product)
    return np.array(agreed), np.array(kept)


def common(one: Observed) -> float:
    """The share of |d|^2 that a round's clients have in common, 0 to 1; NaN if it cannot be told."""
    signal, effective = one.figures["signal"], one.figures["effective"]
    if not (signal > 0 and effective > 1):
        return math.nan
    return min(max((1 - 1 / signal) / (1 - 1 / effective), 0.0), 1.0)


def _initial(run: Run) -> float | None:
    return None if run.start is None else run.start.metrics.get("loss", run.start.metrics.get("clients_loss"))


def _thrown(run: Run, numbers: dict[str, object]) -> str:
    """A sentence if the middle client's loss while it trained was once far above the initial model's."""
    initial = _initial(run)
    if initial is None:
        return ""
    worst, number = max((float(np.median(one.loss)), one.number) for one in run.observed)
    numbers |= {"initial_loss": initial, "worst_loss": worst, "worst_round": number}
    if worst <= THROWN * initial:
        return ""
    return f"In round {number} the loss of the middle client rose to {worst:.3g}, where the initial model's was {initial:.3g}."


def _late(run: Run) -> Vector:
    """The training losses of the second half."""
    losses = [r.metrics["train_loss"] for r in run.history if "train_loss" in r.metrics]
    return np.array(losses[len(losses) // 2 :])


def _stuck(run: Run, numbers: dict[str, object]) -> str:
    """A sentence if the training loss of the second half stays above the initial model's loss."""
    initial, late = _initial(run), _late(run)
    if initial is None or len(late) < PAIRS:
        return ""
    numbers |= {"initial_loss": initial, "late_loss": float(np.median(late))}
    if between(late)[0] <= initial:
        return ""
    return f"The training loss of the second half, {np.median(late):.3g}, is above the initial model's {initial:.3g}."


def jitter(run: Run, one: Observed) -> float:
    """What the jitter of local steps adds to the loss, estimated from a round; NaN if its steps are not of this form.

    SGD that has come to rest in a quadratic valley is above its bottom by ``lr / 4`` times the mean squared gradient of a step
    (from E[w . grad L] = lr / 2 E[|g|^2]: Yaida, "Fluctuation-dissipation relations for stochastic gradient descent", ICLR
    2019). The change of a client whose steps have nothing in common has the squared norm ``n_k^2 = lr^2 tau_k E[|g|^2]``; where
    they turn back within a round, the estimate is too low. What clients have in common, ``pairwise``, is no jitter, and left
    out.
    """
    local, moved = run.local, (one.steps > 0) & np.isfinite(one.norm)
    lr = local.lr * local.lr_decay ** (one.number - 1) / (1 - local.momentum)
    common = one.figures["pairwise"]
    if local.optimizer != "sgd" or not lr > 0 or not moved.any() or not math.isfinite(common):
        return math.nan
    squares = one.norm[moved].astype(float) ** 2 / one.steps[moved]
    # A client that was thrown far is in no valley: the estimate is no more than the whole loss.
    return min(float(squares.mean()) * (1 - max(common, 0.0)) / (4 * lr), float(one.loss.mean()))


def _jitters(run: Run, rounds: Sequence[Observed], numbers: dict[str, object]) -> str:
    """A sentence if the loss stays high, and the steps' own jitter is a large part of it."""
    initial, late = _initial(run), _late(run)
    found = np.array([value for one in rounds if math.isfinite(value := jitter(run, one))])
    if initial is None or len(late) < PAIRS or len(found) < PAIRS:
        return ""
    numbers |= {"initial_loss": initial, "late_loss": float(np.median(late)), "jitter": float(np.median(found))}
    if between(found)[0] <= JITTER * initial or between(late)[0] <= HIGH * initial:
        return ""
    return (
        f"The training loss of the second half stays at {np.median(late):.3g}, where the initial model's was {initial:.3g}; "
        f"the jitter of the clients' steps alone accounts for about {np.median(found):.2g} of it."
    )

# SPDX-License-Identifier: Apache-2.0
"""What bad clients send, to test robust reductions with.

Bad clients work together, know what every client of the round would have sent, and may send anything. All that an update holds
is forged but its ``weight``, which stays what the client would have claimed. Updates of weight 0 count for nobody, and no
attack learns from them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, ClassVar

import numpy as np
from array_api_compat import array_namespace, device, is_array_api_obj

from fedweave import names
from fedweave.errors import UsageError
from fedweave.randomness import generator
from fedweave.reduce.base import Moment, vector
from fedweave.reduce.checks import positive, whole
from fedweave.reduce.mean import Mean
from fedweave.values import Array, Arrays, Update


@dataclass(frozen=True)
class Attack:
    """Bad clients that know what every client of the round would have sent.

    ``flips_labels``: they train on wrong labels, as ``flipped`` makes them.
    """

    paper: ClassVar[str] = ""
    flips_labels: ClassVar[bool] = False

    def flipped(self, labels: Array, classes: int | None) -> Array:
        """The labels [N] that bad clients train on."""
        return labels

    def forge(
        self, own: Sequence[Update], honest: Sequence[Update], moment: Moment, memory: Arrays
    ) -> tuple[list[Update], Arrays]:
        """What each of the bad clients sends.

        Args:
            own: what they would have sent.
            honest: what the honest clients send, one at least.
            moment: addresses random draws.
            memory: what it returned in the round before, empty at first; part of a run's checkpoint.
        """
        return list(own), memory


@dataclass(frozen=True)
class BitFlip(Attack):
    """Each bad client sends the negative of what it would have sent.

    Karimireddy, He, Jaggi, ICLR 2022, arXiv:2006.09365, section 6 (bit flipping); it needs to know nothing of the others.
    """

    paper: ClassVar[str] = "Karimireddy et al., ICLR 2022, arXiv:2006.09365"

    def forge(
        self, own: Sequence[Update], honest: Sequence[Update], moment: Moment, memory: Arrays
    ) -> tuple[list[Update], Arrays]:
        return [update.map(lambda value: -value).replace(weight=update.weight) for update in own], memory


@dataclass(frozen=True)
class LabelFlip(Attack):
    """Each bad client trains honestly on wrong labels: y becomes classes - 1 - y.

    Karimireddy, He, Jaggi, ICLR 2022, arXiv:2006.09365, section 6 (label flipping: 9 - y on MNIST).
    """

    paper: ClassVar[str] = "Karimireddy et al., ICLR 2022, arXiv:2006.09365"
    flips_labels: ClassVar[bool] = True

    def flipped(self, labels: Array, classes: int | None) -> Array:
        """The labels turned round; negative ones, which have no target, stay.

        Raises:
            UsageError: the data's labels are not classes.
        """
        if classes is None:
            raise UsageError("The attack 'label-flip' needs class labels, but the data has none; choose another attack.")
        return array_namespace(labels).where(labels >= 0, classes - 1 - labels, labels)


@dataclass(frozen=True)
class SignFlip(Attack):
    """All bad clients send the negative of the honest clients' mean.

    Allen-Zhu, Ebrahimianghazani, Li, Alistarh, "Byzantine-Resilient Non-Convex Stochastic Gradient Descent", ICLR 2021,
    arXiv:2012.14368 (sign flipping), with the mean in the place of a client's own, as in ByzFL.

    Args:
        scale: how many times the mean, above 0.
    """

    scale: float = 1.0
    paper: ClassVar[str] = "Allen-Zhu et al., ICLR 2021, arXiv:2012.14368"

    def __post_init__(self) -> None:
        positive("scale", self.scale)

    def forge(
        self, own: Sequence[Update], honest: Sequence[Update], moment: Moment, memory: Arrays
    ) -> tuple[list[Update], Arrays]:
        return _sent(own, mean(honest).map(lambda value: -self.scale * value)), memory


@dataclass(frozen=True)
class Gaussian(Attack):
    """Each bad client sends noise of its own, every value drawn from N(0, sigma^2).

    Blanchard, El Mhamdi, Guerraoui, Stainer, NIPS 2017, section 5 (Gaussian Byzantine workers, sigma^2 = 200).

    Args:
        sigma: standard deviation, in units of the updates; above 0.
    """

    sigma: float = 1.0
    paper: ClassVar[str] = "Blanchard et al., NIPS 2017"

    def __post_init__(self) -> None:
        positive("sigma", self.sigma)

    def forge(
        self, own: Sequence[Update], honest: Sequence[Update], moment: Moment, memory: Arrays
    ) -> tuple[list[Update], Arrays]:
        def noise(client: int, update: Update) -> Update:
            draw = generator(moment.seed, "attack", moment.round, client)
            return update.map(lambda value: _noise(value, self.sigma, draw)).replace(weight=update.weight)

        return [noise(client, update) for client, update in enumerate(own)], memory


@dataclass(frozen=True)
class IPM(Attack):
    """All bad clients send -epsilon times the honest clients' mean, so that the inner product with it turns negative.

    Xie, Koyejo, Gupta, "Fall of Empires: Breaking Byzantine-tolerant SGD by Inner Product Manipulation", UAI 2019,
    arXiv:1903.03936. A small epsilon hides among honest clients that differ; a large one is a plain sign flip.

    Args:
        epsilon: above 0.
    """

    epsilon: float = 0.1
    paper: ClassVar[str] = "Xie et al., UAI 2019, arXiv:1903.03936"

    def __post_init__(self) -> None:
        positive("epsilon", self.epsilon)

    def forge(
        self, own: Sequence[Update], honest: Sequence[Update], moment: Moment, memory: Arrays
    ) -> tuple[list[Update], Arrays]:
        return _sent(own, mean(honest).map(lambda value: -self.epsilon * value)), memory


@dataclass(frozen=True)
class ALIE(Attack):
    """All bad clients send mean - z std of the honest clients, value by value: a little, but all to the same side.

    Baruch, Baruch, Goldberg, "A Little Is Enough: Circumventing Defenses For Distributed Learning", NeurIPS 2019,
    arXiv:1902.06156, Algorithm 3. std is that of a sample (n - 1), 0 with a single honest client.

    Args:
        z: how many standard deviations; None takes the paper's largest that still hides, from how many clients there are.
    """

    z: float | None = None
    paper: ClassVar[str] = "Baruch et al., NeurIPS 2019, arXiv:1902.06156"

    def __post_init__(self) -> None:
        if self.z is not None and (
            isinstance(self.z, bool) or not isinstance(self.z, (int, float)) or not math.isfinite(self.z)
        ):
            raise UsageError(f"z is {self.z!r}; it must be a number, or None for the paper's.")

    def forge(
        self, own: Sequence[Update], honest: Sequence[Update], moment: Moment, memory: Arrays
    ) -> tuple[list[Update], Arrays]:
        heard = _heard(honest)
        middle = mean(heard)
        squares = mean([_with(lambda value, centre: (value - centre) ** 2, update, middle) for update in heard])
        n = len(heard)
        # The mean of squares is over n, the sample's variance over n - 1; of a single one all squares are 0.
        factor = n / max(n - 1, 1)
        z = hidden(n + len(_heard(own)), len(_heard(own))) if self.z is None else self.z
        return _sent(own, _with(lambda centre, square: centre - z * (factor * square) ** 0.5, middle, squares)), memory


def hidden(n: int, f: int) -> float:
    """ALIE's z_max of n clients of whom f are bad: the quantile (n - f - s) / (n - f) of the normal distribution, where
    s = floor(n/2 + 1) - f honest clients must be further out than the bad ones to make them the majority (Baruch et al.,
    NeurIPS 2019, equations 1 and 2). Bad clients that have the majority alone are counted as if they needed one more; two
    clients, of whom one is bad, have z = 0.
    """
    supporters = max(n // 2 + 1 - f, 1)
    share = (n - f - supporters) / (n - f)
    return NormalDist().inv_cdf(share) if share > 0.0 else 0.0


@dataclass(frozen=True)
class Mimic(Attack):
    """All bad clients send what one honest client sends, so that it counts for more than the others.

    Karimireddy, He, Jaggi, "Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing", ICLR 2022, arXiv:2006.09365,
    appendix (mimic): in the first rounds they learn the direction z in which honest updates vary most,

        mu <- t/(1+t) mu + 1/(1+t) mean,   z <- t/(1+t) z + 1/(1+t) S z / |S z|, normalised,   S = sum_i (x_i - mu)(x_i - mu)^T,

    and in every round send the update x_i with the largest z.x_i. It cannot be told from an honest client's update, and no rule
    that trusts single clients can refuse it.

    Args:
        warmup: rounds in which z is learnt, from 1 up.
        fixed: after these rounds stay with the client that was copied in the last of them, found by its place among the honest
            ones, as the authors' code does: for runs in which every client takes part in every round. In a round with another
            number of honest clients the largest z.x_i counts.
    """

    warmup: int = 30
    fixed: bool = False
    paper: ClassVar[str] = "Karimireddy et al., ICLR 2022, arXiv:2006.09365"

    def __post_init__(self) -> None:
        whole("warmup", self.warmup, 1)
        if not isinstance(self.fixed, bool):
            raise UsageError(f"fixed is {self.fixed!r}; it must be True or False.")

    def forge(
        self, own: Sequence[Update], honest: Sequence[Update], moment: Moment, memory: Arrays
    ) -> tuple[list[Update], Arrays]:
        heard = _heard(honest)
        # The two conversations of a round are of different things: each is learnt apart.
        topic = "+".join(name for name in heard[0] if name != "weight")
        known: dict[str, Any] = {part: memory.get(f"{part} of {topic}") for part in ("round", "z", "mean", "target", "clients")}
        t: int = known["round"] or 0
        learning = t < self.warmup
        z = known["z"]
        if learning:
            z, centre = _direction(t, z, known["mean"], heard, moment)
        if self.fixed and not learning and known["clients"] == len(heard):
            target: int = known["target"]
        else:
            projected = [_dot(_wide(update), z) for update in heard]
            target = max(range(len(heard)), key=projected.__getitem__)
        if learning:
            learnt = {"round": t + 1, "z": z, "mean": centre, "target": target, "clients": len(heard)}
            memory = memory.replace(**{f"{part} of {topic}": value for part, value in learnt.items()})
        return _sent(own, heard[target]), memory


def _direction(t: int, z: Array, centre: Array, heard: Sequence[Update], moment: Moment) -> tuple[Array, Array]:
    """Mimic's z and mu after one round more, from those after ``t`` rounds."""
    now = _wide(mean(heard))
    if t == 0:
        z, centre = _noise(now, 1.0, generator(moment.seed, "attack", moment.round)), now
    centre = t / (1 + t) * centre + 1 / (1 + t) * now
    apart = [_wide(update) - centre for update in heard]
    spread = sum(_dot(row, z) * row for row in apart)
    return _unit(t / (1 + t) * z + 1 / (1 + t) * _unit(spread, z), z), centre


# What they are made of ---------------------------------------------------------------------------------------------------


def mean(updates: Sequence[Update]) -> Update:
    """The plain mean of what some clients send: each counts once, those of weight 0 not at all."""
    rule = Mean()
    partial = rule.empty()
    for update in _heard(updates):
        partial = rule.add(partial, update.replace(weight=1.0))
    found = rule.result(partial)
    assert found is not None
    return found


def _heard(updates: Sequence[Update]) -> Sequence[Update]:
    """Those that count; all of them if none does."""
    return [update for update in updates if float(update.weight) > 0.0] or updates


def _sent(own: Sequence[Update], forged: Update) -> list[Update]:
    """The same for all bad clients, under the weight that each would have claimed."""
    return [forged.replace(weight=update.weight) for update in own]


def _with(change: Callable[[Array, Array], Array], first: Update, second: Update) -> Update:
    """``change`` of two updates' values, name by name."""
    return Update(**{name: value if name == "weight" else change(value, second[name]) for name, value in first.items()})


def _wide(update: Update) -> Array:
    """All that an update holds but its weight, as one vector [D] in float64."""
    flat = vector(update)
    xp = array_namespace(flat)
    return xp.astype(flat, xp.float64)


def _dot(a: Array, b: Array) -> float:
    return float(array_namespace(a).sum(a * b))


def _unit(value: Array, otherwise: Array) -> Array:
    """The vector of length 1; another one if it has no direction."""
    length = math.sqrt(_dot(value, value))
    return value / length if 0.0 < length < math.inf else otherwise


def _noise(like: Array, sigma: float, draw: np.random.Generator) -> Array:
    """N(0, sigma^2) in the shape, type and place of a value."""
    if not is_array_api_obj(like):
        return sigma * float(draw.standard_normal())
    xp = array_namespace(like)
    return xp.asarray(sigma * draw.standard_normal(tuple(like.shape)), dtype=like.dtype, device=device(like))


ATTACKS: dict[str, type[Attack]] = {
    "bit-flip": BitFlip,
    "label-flip": LabelFlip,
    "sign-flip": SignFlip,
    "gaussian": Gaussian,
    "ipm": IPM,
    "alie": ALIE,
    "mimic": Mimic,
}
"""The attacks by name."""


def attack(choice: str | Attack | None) -> Attack | None:
    """The attack itself, or the one named: ``"ipm(epsilon=0.1)"``.

    Raises:
        UnknownName, UsageError: there is none of that name; an argument is unknown or out of its range.
    """
    return None if choice is None else names.chosen("attack", ATTACKS, Attack, choice)


def spell(value: Attack) -> str:
    """The text that ``attack`` turns back into this value."""
    return names.spelled(ATTACKS, value)

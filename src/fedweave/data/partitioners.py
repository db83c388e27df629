# SPDX-License-Identifier: Apache-2.0
"""Ways to deal a data set out to clients. Each is vectorised, seeded, and uses every example exactly once."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fedweave import names
from fedweave.data.dataset import Dataset
from fedweave.data.dealing import (
    Dealt,
    bounded_shares,
    by_size,
    dirichlet,
    even,
    filled,
    grouped,
    held_out,
    mix,
    numbers,
    room,
    shuffled,
)
from fedweave.data.split import Split, TestsIn
from fedweave.errors import PartitionError, UsageError
from fedweave.randomness import generator


class Partitioner(ABC):
    """A frozen dataclass whose fields say how to split; ``deal`` does it."""

    needs_clients: ClassVar[bool] = True

    @abstractmethod
    def deal(self, data: Dataset, clients: int, seed: int) -> Dealt:
        """Deal all training examples out to ``clients`` clients; called by ``partition`` with checked values."""


@dataclass(frozen=True)
class IID(Partitioner):
    """Shuffle and cut: sizes are equal to within one (McMahan et al. 2017, section 3, "IID")."""

    def deal(self, data: Dataset, clients: int, seed: int) -> Dealt:
        order = shuffled(len(data), generator(seed, "partition/iid"))
        return Dealt(order, even(len(data), clients))


@dataclass(frozen=True)
class Shards(Partitioner):
    """Sort by label, cut into ``clients * per_client`` shards of equal size to within one, give each client ``per_client`` of
    them at random (McMahan et al. 2017, section 3, "pathological non-IID": 60,000 / 100 / 2 is 200 shards of 300).
    """

    per_client: int = 2

    def __post_init__(self) -> None:
        _whole("per_client", self.per_client)

    def deal(self, data: Dataset, clients: int, seed: int) -> Dealt:
        labels = data.labels("Shards")
        shards = clients * self.per_client
        if shards > len(data):
            raise PartitionError(
                f"{clients:,} clients with {self.per_client} shards each need {shards:,} examples, but {data.name} has "
                f"{len(data):,}; use fewer clients or shards."
            )
        by_label = np.argsort(labels, kind="stable").astype(numbers(len(data)))
        cuts = even(len(data), shards)
        owner = np.empty(shards, np.int64)
        owner[generator(seed, "partition/shards").permutation(shards)] = np.repeat(np.arange(clients), self.per_client)
        return Dealt(*grouped(by_label, np.repeat(owner, np.diff(cuts)), clients))


@dataclass(frozen=True)
class Dirichlet(Partitioner):
    """Label skew: the examples of each label are shared among the clients in proportions drawn from a symmetric
    Dirichlet(alpha) over clients, independently per label (Yurochkin et al., ICML 2019, section 4). Small alpha: few labels
    per client and unequal sizes; large alpha: nearly IID.

    A client that draws fewer than ``min_size`` examples is given random examples of the largest clients; the split's notes
    say how many.
    """

    alpha: float
    min_size: int = 1

    def __post_init__(self) -> None:
        _positive("alpha", self.alpha)
        _whole("min_size", self.min_size)

    def deal(self, data: Dataset, clients: int, seed: int) -> Dealt:
        labels = data.labels("Dirichlet")
        room(data, clients, self.min_size)
        rng = generator(seed, "partition/dirichlet")
        examples = shuffled(len(data), rng)
        examples = examples[np.argsort(labels[examples], kind="stable")]
        owner = np.empty(len(data), np.int32)
        start = 0
        for count in np.bincount(labels).tolist():
            if count:
                cuts = np.rint(np.cumsum(dirichlet(self.alpha, clients, rng)) * count).astype(np.int64)
                cuts[-1] = count  # rounding may leave the last sum a hair below one
                owner[start : start + count] = np.repeat(np.arange(clients, dtype=np.int32), np.diff(cuts, prepend=0))
                start += count
        order, offsets = grouped(examples, owner, clients)
        return filled(order, offsets, self.min_size, rng)


@dataclass(frozen=True)
class Classes(Partitioner):
    """Every client holds examples of exactly ``k`` labels. A label is held by as many clients as is proportional to its
    examples, and shared among them equally to within one, so that sizes are as equal as the labels allow; which labels go
    together is random.
    """

    k: int = 2

    def __post_init__(self) -> None:
        _whole("k", self.k)

    def deal(self, data: Dataset, clients: int, seed: int) -> Dealt:
        labels = data.labels("Classes")
        counts = np.bincount(labels)
        present = np.flatnonzero(counts)
        if self.k > len(present):
            raise PartitionError(
                f"k is {self.k}, but {data.name} has {len(present)} different labels; use a k up to {len(present)}."
            )
        if clients * self.k < len(present):
            raise PartitionError(
                f"{clients} clients with {self.k} labels each cannot hold all {len(present)} labels of {data.name}; "
                "use more clients or a larger k."
            )
        most = np.minimum(counts[present], clients)
        if most.sum() < clients * self.k:
            raise PartitionError(
                f"{data.name} has too few examples of some labels for {clients} clients with {self.k} labels each; "
                "use fewer clients or a smaller k."
            )
        rng = generator(seed, "partition/classes")
        slots = bounded_shares(counts[present], clients * self.k, most)
        # Runs of one label are at most `clients` long, so places that are `clients` apart hold different labels.
        mixed = rng.permutation(len(present))
        held = np.repeat(mixed.astype(np.int32), slots[mixed]).reshape(self.k, clients).T.copy()
        mix(held, rng)
        flat, owner = held.reshape(-1), np.repeat(np.arange(clients), self.k)
        by_label = np.lexsort((rng.random(len(flat)), flat))
        rank = np.arange(len(flat)) - np.repeat(np.cumsum(slots) - slots, slots)
        whole, rest = np.divmod(counts[present], slots)
        share = np.repeat(whole, slots) + (rank < np.repeat(rest, slots))
        examples = shuffled(len(data), rng)
        examples = examples[np.argsort(labels[examples], kind="stable")]
        return Dealt(*grouped(examples, np.repeat(owner[by_label], share), clients))


@dataclass(frozen=True)
class LogNormal(Partitioner):
    """Quantity skew: each client gets ``min_size`` examples, and the rest are shared in proportion to exp(sigma * z) for
    standard normal z. The examples themselves are IID.
    """

    sigma: float = 1.0
    min_size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.sigma < math.inf:
            raise PartitionError(f"sigma is {self.sigma}; it must be a number from 0 up.")
        _whole("min_size", self.min_size)

    def deal(self, data: Dataset, clients: int, seed: int) -> Dealt:
        rng = generator(seed, "partition/lognormal")
        drawn = self.sigma * rng.standard_normal(clients)
        return by_size(data, np.exp(drawn - drawn.max()), self.min_size, rng)


@dataclass(frozen=True)
class PowerLaw(Partitioner):
    """Quantity skew by rank (Zipf): each client gets ``min_size`` examples, and the rest are shared in proportion to
    rank ** -exponent, the ranks dealt to the clients at random. The examples themselves are IID.
    """

    exponent: float = 1.0
    min_size: int = 1

    def __post_init__(self) -> None:
        _positive("exponent", self.exponent)
        _whole("min_size", self.min_size)

    def deal(self, data: Dataset, clients: int, seed: int) -> Dealt:
        rng = generator(seed, "partition/powerlaw")
        rank = rng.permutation(clients) + 1.0
        return by_size(data, rank**-self.exponent, self.min_size, rng)


@dataclass(frozen=True)
class ByColumn(Partitioner):
    """Natural clients: all examples with one value of a column are one client's, in their stored order; clients are in the
    order of the sorted values. Where the test set has the column too, each client's own test examples come from it.

    Args:
        column: a name in ``data.columns``; None is the data set's natural one (a play's speaker, a hospital).
        min_size: clients with fewer examples are left out, and the split's notes say so.
    """

    column: str | None = None
    min_size: int = 1
    needs_clients: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _whole("min_size", self.min_size)

    def deal(self, data: Dataset, clients: int, seed: int) -> Dealt:
        values = data.column(self.column)
        name = self.column or data.natural or ""
        if values.dtype.kind == "f" and np.isnan(values).any():
            missing = int(np.isnan(values).sum())
            raise PartitionError(f"The column {name!r} is empty for {missing:,} examples; give each of them a client.")
        ids, owner, sizes = np.unique(values, return_inverse=True, return_counts=True)
        order, offsets = grouped(np.arange(len(data), dtype=numbers(len(data))), owner.astype(np.int32).reshape(-1), len(ids))
        notes: tuple[str, ...] = ()
        keep = sizes >= self.min_size
        if not keep.all():
            if not keep.any():
                raise PartitionError(f"No value of {name!r} has {self.min_size} examples; the most is {sizes.max()}.")
            left = int(sizes[~keep].sum())
            notes = (
                f"{int((~keep).sum()):,} clients with fewer than {self.min_size} examples are left out ({left:,} examples).",
            )
            order = order[np.repeat(keep, sizes)]
            ids, offsets = ids[keep], np.concatenate([[0], np.cumsum(sizes[keep])])
        if clients and clients != len(ids):
            raise PartitionError(
                f"The column {name!r} makes {len(ids):,} clients, but clients is {clients:,}; leave clients out."
            )
        dealt = Dealt(order, offsets, notes, ids)
        tests = data.test_columns.get(name)
        if tests is None:
            return dealt
        place = np.minimum(np.searchsorted(ids, tests), len(ids) - 1)
        known = np.flatnonzero(ids[place] == tests)
        if not len(known):
            return dealt
        if len(known) < len(tests):
            dealt = dealt._replace(notes=(*notes, f"{len(tests) - len(known):,} test examples belong to none of the clients."))
        test_order, test_offsets = grouped(known.astype(numbers(len(tests))), place[known], len(ids))
        return dealt._replace(test_order=test_order, test_offsets=test_offsets)


PARTITIONERS: dict[str, type[Partitioner]] = {
    "iid": IID,
    "shards": Shards,
    "dirichlet": Dirichlet,
    "classes": Classes,
    "lognormal": LogNormal,
    "powerlaw": PowerLaw,
    "bycolumn": ByColumn,
}
"""The partitions that can be chosen by name, e.g. ``"dirichlet(alpha=0.3)"``."""


def partitioner(how: str | Partitioner) -> Partitioner:
    """The partitioner itself, or the one named; ``"natural"`` is ``ByColumn()``.

    Raises:
        UnknownName: there is none of that name.
        UsageError: an argument is unknown or out of its range.
    """
    if isinstance(how, Partitioner):
        return how
    if not isinstance(how, str):
        raise UsageError(
            f"The partition is {how!r}; give a partitioner such as IID() or its text such as 'dirichlet(alpha=0.3)'."
        )
    head, bracket, tail = how.partition("(")
    plain = head.replace("-", "").replace("_", "").strip().lower()
    return names.build("partition", PARTITIONERS | {"natural": ByColumn}, plain + bracket + tail)


def spelled(how: Partitioner) -> str | None:
    """The text that ``partitioner`` turns back into ``how``; None for a partitioner that is in no registry."""
    for name, kind in PARTITIONERS.items():
        if type(how) is kind:
            return names.spell(name, how)
    return None


def partition(
    data: Dataset, how: str | Partitioner, *, clients: int | None = None, seed: int = 0, holdout: float = 0.0
) -> Split:
    """Deal a data set's training examples out to clients.

    Args:
        data: a ``Dataset``, e.g. from ``load``.
        how: a partitioner or its text, e.g. ``Dirichlet(alpha=0.3)`` or ``"dirichlet(alpha=0.3)"``.
        clients: how many; not needed for ``ByColumn``, whose column says it.
        seed: one seed, one split.
        holdout: the fraction of each client's own examples that it keeps as its private test set and does not train on,
            rounded to the nearest number; at least one is left to train on.

    Raises:
        PartitionError: the data cannot be split so.
        UnknownName: no such partition or column.
        UsageError: a value is out of its range.
    """
    if not isinstance(data, Dataset):
        raise UsageError(
            f"partition() splits a Dataset, not {type(data).__name__}; make one with fedweave.data.load or from_arrays."
        )
    made = partitioner(how)
    if not 0 <= holdout < 1:
        raise UsageError(f"holdout is {holdout}; it must be in [0, 1).")
    if clients is None:
        if made.needs_clients:
            raise PartitionError(f"{type(made).__name__} needs the number of clients; give e.g. clients=10.")
        count = 0
    else:
        whole = isinstance(clients, (int, np.integer)) and not isinstance(clients, bool)
        if not whole or clients < 1:
            raise PartitionError(f"clients is {clients!r}; it must be a whole number from 1 up.")
        count = int(clients)
        if count > len(data):
            raise PartitionError(f"{data.name} has {len(data):,} examples, too few for {count:,} clients; use fewer clients.")
    generator(seed, "partition")  # refuses a bad seed before any work is done
    dealt = made.deal(data, count, int(seed))
    tests_in: TestsIn = "test"
    if holdout:
        dealt, tests_in = held_out(dealt, holdout, generator(seed, "partition/holdout")), "train"
    text = spelled(made)
    spec: dict[str, Any] | None = None
    if data.source is not None and text is not None:
        spec = {
            "source": data.source,
            "partition": text,
            "clients": clients and int(clients),
            "seed": int(seed),
            "holdout": holdout,
        }
    return Split(
        data=data,
        order=dealt.order,
        offsets=dealt.offsets,
        test_order=dealt.test_order,
        test_offsets=dealt.test_offsets,
        tests_in=tests_in,
        ids=dealt.ids,
        spec=spec,
        notes=dealt.notes,
    )


def _whole(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise PartitionError(f"{name} is {value!r}; it must be a whole number from 1 up.")


def _positive(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not 0 < value < math.inf:
        raise PartitionError(f"{name} is {value!r}; it must be a number above 0.")

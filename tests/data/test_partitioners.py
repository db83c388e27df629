# SPDX-License-Identifier: Apache-2.0
"""Laws of every partition over random data, and what each one promises, against slow and obvious references."""

from __future__ import annotations

import collections
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import fedweave as fw
from fedweave.data import PARTITIONERS, Dataset, Partitioner, Split, dealing, from_arrays, partition, partitioner
from fedweave.data.describe import label_counts
from fedweave.data.partitioners import spelled
from fedweave.errors import PartitionError, UnknownName, UsageError

quick = settings(max_examples=60, deadline=None)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Dataset, Partitioner, int, int]:
    """Data, a partition of it that is possible, a number of clients and a seed."""
    clients = draw(st.integers(1, 40))
    labels = np.array(draw(st.lists(st.integers(0, draw(st.integers(0, 12))), min_size=clients, max_size=400)))
    present = len(set(labels.tolist()))
    least = draw(st.integers(1, max(1, min(3, len(labels) // clients))))
    kinds: list[Partitioner] = [
        fw.IID(),
        fw.Shards(per_client=draw(st.integers(1, max(1, min(4, len(labels) // clients))))),
        fw.Dirichlet(alpha=draw(st.sampled_from([1e-6, 1e-3, 0.1, 1.0, 100.0, 1e9])), min_size=least),
        fw.LogNormal(sigma=draw(st.floats(0, 5)), min_size=least),
        fw.PowerLaw(exponent=draw(st.floats(0.01, 20)), min_size=least),
    ]
    most = np.minimum(np.bincount(labels), clients).sum()
    if (possible := [k for k in range(1, present + 1) if present <= clients * k <= most]) != []:
        kinds.append(fw.Classes(k=draw(st.sampled_from(possible))))
    x = np.arange(len(labels), dtype=np.float32)[:, None]
    return from_arrays(x, labels), draw(st.sampled_from(kinds)), clients, draw(st.integers(0, 2**40))


def same(a: Split, b: Split) -> bool:
    return np.array_equal(a.order, b.order) and np.array_equal(a.offsets, b.offsets)


@quick
@given(cases())
def test_every_example_is_held_exactly_once_and_nobody_is_empty(case: tuple[Dataset, Partitioner, int, int]) -> None:
    data, how, clients, seed = case
    split = partition(data, how, clients=clients, seed=seed)
    assert split.clients == clients
    assert sorted(split.order.tolist()) == list(range(len(data)))
    assert split.offsets[0] == 0
    assert split.offsets[-1] == len(data)
    assert split.sizes.min() >= getattr(how, "min_size", 1)
    for k in range(clients):
        x, y = split.client(k)
        assert x[:, 0].astype(int).tolist() == split.indices(k).tolist()
        assert y.tolist() == data.y_train[split.indices(k)].tolist()


@quick
@given(cases())
def test_one_seed_one_split_and_the_text_makes_the_same_one(case: tuple[Dataset, Partitioner, int, int]) -> None:
    data, how, clients, seed = case
    first = partition(data, how, clients=clients, seed=seed)
    text = spelled(how)
    assert text is not None
    assert partitioner(text) == how
    again = partition(data, text, clients=clients, seed=seed)
    assert same(first, again)
    assert first.fingerprint == again.fingerprint


@pytest.mark.parametrize("text", ["iid", "shards", "dirichlet(alpha=0.5)", "classes", "lognormal", "powerlaw"])
def test_another_seed_is_another_split(text: str) -> None:
    data = from_arrays(np.zeros((500, 1)), np.arange(500) % 10)
    seen = {partition(data, text, clients=10, seed=seed).fingerprint for seed in range(5)}
    assert len(seen) == 5


@quick
@given(cases())
def test_label_counts_are_those_of_a_loop(case: tuple[Dataset, Partitioner, int, int]) -> None:
    data, how, clients, seed = case
    split = partition(data, how, clients=clients, seed=seed)
    counts = label_counts(split)
    assert counts is not None
    for k in range(clients):
        slow = collections.Counter(int(data.y_train[i]) for i in split.indices(k))
        assert {label: n for label, n in enumerate(counts[k].tolist()) if n} == dict(slow)


@quick
@given(cases())
def test_each_partition_keeps_its_promise(case: tuple[Dataset, Partitioner, int, int]) -> None:
    data, how, clients, seed = case
    split = partition(data, how, clients=clients, seed=seed)
    labels = [set(data.y_train[split.indices(k)].tolist()) for k in range(clients)]
    match how:
        case fw.IID():
            assert np.ptp(split.sizes) <= 1
        case fw.Shards(per_client=per_client):
            # Slow reference: cut the sorted examples by hand; a client's examples are whole pieces.
            by_label = sorted(range(len(data)), key=lambda i: (int(data.y_train[i]), i))
            shards = clients * per_client
            size, rest = divmod(len(data), shards)
            pieces, start = set(), 0
            for s in range(shards):
                stop = start + size + (s < rest)
                pieces.add(frozenset(by_label[start:stop]))
                start = stop
            for k in range(clients):
                mine = set(split.indices(k).tolist())
                whole = [piece for piece in pieces if piece <= mine]
                assert len(whole) == per_client
                assert sum(map(len, whole)) == len(mine)
        case fw.Classes(k=k):
            assert all(len(held) == k for held in labels)
        case fw.LogNormal(sigma=0):
            assert np.ptp(split.sizes) <= 1


def test_shards_of_the_fedavg_paper() -> None:
    rng = np.random.default_rng(0)
    data = from_arrays(np.zeros((60000, 1)), rng.permutation(np.repeat(np.arange(10), 6000)))
    split = partition(data, fw.Shards(per_client=2), clients=100, seed=1)
    assert (split.sizes == 600).all()
    counts = label_counts(split)
    assert counts is not None
    assert (counts % 300 == 0).all()
    assert ((counts > 0).sum(1) <= 2).all()
    assert len({tuple(row) for row in (counts > 0).tolist()}) > 20  # which labels go together is random


def test_classes_share_labels_evenly_and_mix_them() -> None:
    data = from_arrays(np.zeros((60000, 1)), np.arange(60000) % 10)
    split = partition(data, fw.Classes(k=2), clients=100, seed=0)
    assert (split.sizes == 600).all()
    counts = label_counts(split)
    assert counts is not None
    assert set(counts.reshape(-1).tolist()) == {0, 300}
    pairs = collections.Counter(tuple(np.flatnonzero(row).tolist()) for row in counts)
    assert len(pairs) > 30  # of 45


def test_classes_give_a_frequent_label_more_clients() -> None:
    labels = np.repeat(np.arange(3), [8000, 1000, 1000])
    split = partition(from_arrays(np.zeros((10000, 1)), labels), fw.Classes(k=1), clients=10, seed=0)
    assert (split.sizes == 1000).all()


@pytest.mark.parametrize("alpha", [0.1, 1.0, 10.0])
def test_dirichlet_proportions_have_the_moments_of_the_distribution(alpha: float) -> None:
    clients, per_label, labels = 20, 20000, 50
    data = from_arrays(np.zeros((per_label * labels, 1)), np.repeat(np.arange(labels), per_label))
    counts = label_counts(partition(data, fw.Dirichlet(alpha=alpha), clients=clients, seed=3))
    assert counts is not None
    share = counts / per_label
    # Dirichlet(alpha, ..., alpha) over N: mean 1/N, variance (1/N)(1 - 1/N) / (N alpha + 1).
    mean = 1 / clients
    variance = mean * (1 - mean) / (clients * alpha + 1)
    error = math.sqrt(variance / share.size)
    assert abs(share.mean() - mean) < 1e-9
    assert share.var() == pytest.approx(variance, rel=0.35)
    assert np.abs(share.mean(1) - mean).max() < 5 * error * math.sqrt(clients)


def test_a_huge_alpha_is_nearly_iid_and_a_tiny_one_gives_each_label_to_one_client() -> None:
    data = from_arrays(np.zeros((10000, 1)), np.arange(10000) % 10)
    even = label_counts(partition(data, fw.Dirichlet(alpha=1e8), clients=10, seed=0))
    assert even is not None
    assert np.abs(even - 100).max() <= 2
    tiny = partition(data, fw.Dirichlet(alpha=1e-8), clients=10, seed=0)
    counts = label_counts(tiny)
    assert counts is not None
    assert (counts.max(0) >= 1000 - 10).all()
    assert "were moved" in tiny.notes[0]


@quick
@given(st.integers(1, 30), st.floats(0, 3), st.integers(0, 1000))
def test_quantity_skew_follows_its_law(clients: int, sigma: float, seed: int) -> None:
    total = 100_000
    data = from_arrays(np.zeros((total, 1)), np.zeros(total, int))
    split = partition(data, fw.PowerLaw(exponent=1.5), clients=clients, seed=seed)
    ranks = 1.0 / np.arange(1, clients + 1) ** 1.5
    expected = 1 + ranks / ranks.sum() * (total - clients)
    assert np.abs(np.sort(split.sizes)[::-1] - expected).max() <= 1
    drawn = partition(data, fw.LogNormal(sigma=sigma), clients=clients, seed=seed).sizes
    assert drawn.sum() == total


def test_log_normal_sizes_have_that_spread() -> None:
    data = from_arrays(np.zeros((4_000_000, 1)), np.zeros(4_000_000, int))
    sizes = partition(data, fw.LogNormal(sigma=0.7), clients=4000, seed=0).sizes
    assert np.log(sizes).std() == pytest.approx(0.7, rel=0.05)


@quick
@given(st.lists(st.sampled_from(["a", "b", "c", "dd"]), min_size=1, max_size=60), st.data())
def test_by_column_is_a_group_by(column: list[str], more: st.DataObject) -> None:
    tests = more.draw(st.lists(st.sampled_from(["a", "c", "zz"]), max_size=20))
    x = np.arange(len(column), dtype=np.float32)[:, None]
    data = from_arrays(
        x,
        np.zeros(len(column), int),
        test=(np.zeros((len(tests), 1), np.float32), np.zeros(len(tests), int)),
        columns={"who": column},
        test_columns={"who": np.array(tests, dtype="U2")},
    )
    split = partition(data, fw.ByColumn("who"))
    groups: dict[str, list[int]] = {}
    for i, value in enumerate(column):
        groups.setdefault(value, []).append(i)
    assert split.names == sorted(groups)
    assert [split.indices(k).tolist() for k in range(split.clients)] == [groups[name] for name in sorted(groups)]
    if not set(tests) & set(groups):
        assert split.test_indices(0) is None
    else:
        for k, name in enumerate(sorted(groups)):
            held = split.test_indices(k)
            assert held is not None
            assert held.tolist() == [i for i, value in enumerate(tests) if value == name]


def test_by_column_can_leave_out_small_clients_and_says_so() -> None:
    data = from_arrays(np.zeros((6, 1)), np.zeros(6, int), columns={"who": [1, 1, 1, 2, 3, 3]})
    split = partition(data, fw.ByColumn("who", min_size=2))
    assert split.names == ["1", "3"]
    assert split.order.tolist() == [0, 1, 2, 4, 5]
    assert "1 clients with fewer than 2 examples are left out (1 examples)" in split.describe()


@quick
@given(cases(), st.floats(0, 0.99))
def test_holdout_is_each_clients_own_and_disjoint(case: tuple[Dataset, Partitioner, int, int], fraction: float) -> None:
    data, how, clients, seed = case
    assume(fraction > 0)
    whole = partition(data, how, clients=clients, seed=seed)
    split = partition(data, how, clients=clients, seed=seed, holdout=fraction)
    for k in range(clients):
        kept, away = split.indices(k), split.test_indices(k)
        assert away is not None
        assert sorted([*kept.tolist(), *away.tolist()]) == sorted(whole.indices(k).tolist())
        size = whole.sizes[k]
        assert len(away) == min(math.floor(size * fraction + 0.5), size - 1)
        held = split.test_client(k)
        assert held is not None
        assert held[0][:, 0].astype(int).tolist() == away.tolist()
    assert split.x_private is data.x_train


@quick
@given(st.lists(st.integers(0, 30), min_size=1, max_size=30), st.integers(1, 3), st.integers(0, 99))
def test_filling_takes_from_the_largest_only(sizes: list[int], least: int, seed: int) -> None:
    assume(sum(sizes) >= least * len(sizes))
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    dealt = dealing.filled(np.arange(sum(sizes)), offsets, least, np.random.default_rng(seed))
    after = np.diff(dealt.offsets)
    assert sorted(dealt.order.tolist()) == list(range(sum(sizes)))
    assert after.min() >= least
    # Slow reference: move one at a time from whoever holds most.
    slow = list(sizes)
    for k, size in enumerate(sizes):
        for _ in range(max(0, least - size)):
            slow[slow.index(max(slow))] -= 1
            slow[k] += 1
    assert sorted(after.tolist()) == sorted(slow)


@quick
@given(st.lists(st.integers(1, 1000), min_size=1, max_size=20), st.data())
def test_bounded_shares_stay_within_their_bounds(weights: list[int], more: st.DataObject) -> None:
    most = np.array([more.draw(st.integers(1, 50)) for _ in weights])
    total = more.draw(st.integers(len(weights), int(most.sum())))
    share = dealing.bounded_shares(np.array(weights), total, most)
    assert share.sum() == total
    assert (share >= 1).all()
    assert (share <= most).all()


@pytest.mark.parametrize(
    ("how", "options", "said"),
    [
        (lambda: fw.Dirichlet(alpha=0), {}, "alpha is 0"),
        (lambda: fw.Dirichlet(alpha=-1.0), {}, "alpha is -1.0"),
        (lambda: fw.Dirichlet(alpha=float("nan")), {}, "alpha is nan"),
        (lambda: fw.Shards(per_client=0), {}, "per_client is 0"),
        (lambda: fw.Classes(k=0), {}, "k is 0"),
        (lambda: fw.LogNormal(sigma=-1), {}, "sigma is -1"),
        (lambda: fw.PowerLaw(exponent=0), {}, "exponent is 0"),
        (lambda: fw.IID(), {"clients": 0}, "clients is 0"),
        (lambda: fw.IID(), {"clients": 2.5}, "clients is 2.5"),
        (lambda: fw.IID(), {"clients": 101}, "too few for 101 clients"),
        (lambda: fw.IID(), {"clients": None}, "needs the number of clients"),
        (lambda: fw.Shards(per_client=60), {}, "need 120 examples"),
        (lambda: fw.Classes(k=11), {}, "k is 11"),
        (lambda: fw.Classes(k=2), {}, "cannot hold all 10 labels"),
        (lambda: fw.Classes(k=2), {"clients": 60}, "too few examples"),
        (lambda: fw.Dirichlet(alpha=1, min_size=51), {}, "need 102"),
        (lambda: fw.ByColumn("who"), {"clients": 3}, "makes 4 clients"),
        (lambda: fw.ByColumn(), {"clients": None}, "no natural clients"),
        (lambda: fw.ByColumn("who", min_size=90), {"clients": None}, "has 90 examples"),
    ],
)
def test_an_impossible_split_is_one_clear_sentence(how: Any, options: dict[str, Any], said: str) -> None:
    data = from_arrays(np.zeros((100, 1)), np.arange(100) % 10, columns={"who": np.arange(100) % 4})
    with pytest.raises(PartitionError, match=said) as caught:
        partition(data, how(), **{"clients": 2, **options})
    assert "\n" not in str(caught.value)


def test_unknown_names_are_answered_with_the_nearest() -> None:
    data = from_arrays(np.zeros((8, 1)), np.zeros(8, int), columns={"hospital": np.arange(8) % 2})
    with pytest.raises(UnknownName, match="Did you mean 'hospital'"):
        partition(data, fw.ByColumn("hospitl"))
    with pytest.raises(UnknownName, match="Did you mean 'dirichlet'"):
        partition(data, "dirchlet(alpha=1)", clients=2)
    with pytest.raises(UsageError, match="alhpa"):
        partition(data, "dirichlet(alpha=1, alhpa=1)", clients=2)
    with pytest.raises(UsageError, match="seed is -1"):
        partition(data, "iid", clients=2, seed=-1)
    with pytest.raises(UsageError, match="holdout is 1"):
        partition(data, "iid", clients=2, holdout=1)
    with pytest.raises(UsageError, match="splits a Dataset"):
        partition("mnist", "iid", clients=2)  # type: ignore[arg-type]


def test_label_partitions_refuse_targets_that_are_not_labels() -> None:
    for data in (from_arrays(np.zeros((9, 1)), np.linspace(0, 1, 9)), from_arrays(np.zeros((9, 2)), np.zeros((9, 2), int))):
        for how in (fw.Dirichlet(alpha=1), fw.Shards(), fw.Classes()):
            with pytest.raises(PartitionError, match="needs one label per example"):
                partition(data, how, clients=3)
        assert partition(data, fw.IID(), clients=3).sizes.tolist() == [3, 3, 3]


def test_names_may_be_spelled_with_dashes() -> None:
    assert partitioner("log-normal(sigma=2.0)") == fw.LogNormal(sigma=2.0)
    assert partitioner("By_Column(column='x')") == fw.ByColumn("x")
    assert partitioner("natural") == fw.ByColumn()
    assert set(PARTITIONERS) == {"iid", "shards", "dirichlet", "classes", "lognormal", "powerlaw", "bycolumn"}

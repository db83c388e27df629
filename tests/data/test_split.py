# SPDX-License-Identifier: Apache-2.0
"""Splits in words, as a picture and in a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fedweave as fw
from fedweave.data import Dataset, Split, from_arrays, from_clients, load, load_split, partition
from fedweave.errors import DataError, UsageError


def own(clients: int = 12, examples: int = 300, seed: int = 0) -> Split:
    rng = np.random.default_rng(seed)
    data = from_arrays(
        rng.normal(size=(examples, 3)),
        rng.integers(0, 4, examples),
        test=(rng.normal(size=(20, 3)), rng.integers(0, 4, 20)),
        columns={"site": rng.choice(["north", "south"], examples)},
    )
    return partition(data, fw.Dirichlet(alpha=0.5), clients=clients, seed=seed, holdout=0.1)


def same(a: Split, b: Split) -> None:
    for name in (
        "order",
        "offsets",
        "test_order",
        "test_offsets",
        "ids",
        "x_train",
        "y_train",
        "x_test",
        "y_test",
        "x_private",
    ):
        left, right = getattr(a, name), getattr(b, name)
        assert (left is None) == (right is None), name
        if left is not None:
            np.testing.assert_array_equal(left, right)
            assert left.dtype == right.dtype
    assert (a.spec, a.notes, a.tests_in, a.classes, a.name) == (b.spec, b.notes, b.tests_in, b.classes, b.name)
    assert a.fingerprint == b.fingerprint
    assert a.describe() == b.describe()


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 20), st.integers(0, 2**32))
def test_a_saved_split_of_own_arrays_comes_back_equal(
    tmp_path_factory: pytest.TempPathFactory, clients: int, seed: int
) -> None:
    split, folder = own(clients, seed=seed), tmp_path_factory.mktemp("split")
    split.save(folder, arrays=True)
    back = load_split(folder)
    same(split, back)
    assert isinstance(back.x_train, np.memmap)
    assert back.data.columns["site"].tolist() == split.data.columns["site"].tolist()
    # The identity that was written down is the one that the bytes give.
    assert Dataset(**_fields(back.data)).identity == split.data.identity


def _fields(data: Dataset) -> dict[str, Any]:
    return {name: getattr(data, name) for name in data.__dataclass_fields__} | {"key": None}


def test_clients_tests_of_their_own_come_back_too(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def pair(n: int) -> tuple[Any, Any]:
        return rng.normal(size=(n, 2)), rng.integers(0, 2, n)

    for k, options in enumerate(
        [{}, {"test": pair(5)}, {"tests": [pair(1), pair(2)]}, {"test": pair(5), "tests": [pair(1), pair(0)]}]
    ):
        split = from_clients([pair(3), pair(4)], **options)
        split.save(tmp_path / str(k))
        same(split, load_split(tmp_path / str(k)))


def test_a_split_of_a_named_set_needs_no_arrays(tmp_path: Path) -> None:
    split = partition(load("digits"), "shards", clients=10, seed=1)
    split.save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["offsets.npy", "order.npy", "split.json"]
    same(split, load_split(tmp_path))
    split.save(tmp_path / "all", arrays=True)
    same(split, load_split(tmp_path / "all"))
    split.save(tmp_path)  # over the old one
    same(split, load_split(tmp_path))


def test_the_spec_makes_the_split_again() -> None:
    split = partition(load("synthetic(alpha=0.5, beta=0.5, clients=7)"), fw.ByColumn("client"), holdout=0.25, seed=9)
    assert split.spec == {
        "source": "synthetic(alpha=0.5, beta=0.5, clients=7)",
        "partition": "bycolumn(column='client')",
        "clients": None,
        "seed": 9,
        "holdout": 0.25,
    }
    spec = split.spec
    again = partition(
        load(spec["source"]), spec["partition"], clients=spec["clients"], seed=spec["seed"], holdout=spec["holdout"]
    )
    same(split, again)
    json.dumps(dict(spec))
    assert own().spec is None


def test_own_arrays_can_be_given_instead_of_saved(tmp_path: Path) -> None:
    split = own()
    split.save(tmp_path, arrays=False)
    same(split, load_split(tmp_path, split.data))
    with pytest.raises(DataError, match="without its data"):
        load_split(tmp_path)
    with pytest.raises(DataError, match="are not those"):
        load_split(tmp_path, own(seed=5).data)


def test_load_makes_a_data_set_of_a_folder_with_who_held_what(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pairs = [(rng.normal(size=(n, 2)), rng.integers(0, 2, n)) for n in (3, 1, 5)]
    split = from_clients(pairs, tests=pairs)
    split.save(tmp_path)
    again = partition(load(tmp_path), fw.ByColumn())
    for k in range(3):
        for mine, theirs in zip(again.client(k), split.client(k), strict=True):
            np.testing.assert_array_equal(mine, theirs)
        assert again.test_indices(k).tolist() == split.test_indices(k).tolist()  # type: ignore[union-attr]
    assert load(tmp_path).identity == load(tmp_path).identity
    iid = partition(from_arrays(np.arange(10.0), np.arange(10)), "iid", clients=3)
    iid.save(tmp_path / "iid")
    back = partition(load(str(tmp_path / "iid")), "natural")
    for k in range(3):
        assert sorted(back.indices(k).tolist()) == sorted(iid.indices(k).tolist())


@pytest.mark.parametrize("name", ["order.npy", "offsets.npy", "0.npy", "split.json"])
@pytest.mark.parametrize("harm", ["gone", "short", "changed", "empty"])
def test_a_damaged_folder_is_said(tmp_path: Path, name: str, harm: str) -> None:
    own().save(tmp_path)
    file = tmp_path / name
    raw = bytearray(file.read_bytes())
    if harm == "gone":
        file.unlink()
    elif harm == "short":
        file.write_bytes(raw[:-5])
    elif harm == "empty":
        file.write_bytes(b"")
    else:
        raw[len(raw) // 2] ^= 1 if name != "split.json" else 255
        file.write_bytes(raw)
    with pytest.raises(DataError) as caught:
        load_split(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_folder_that_is_none_and_one_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no saved split"):
        load_split(tmp_path / "nothing")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="cannot be written"):
        own().save(tmp_path / "file" / "inside")


def test_no_pickle_is_read_from_a_folder(tmp_path: Path) -> None:
    own().save(tmp_path)
    about = json.loads((tmp_path / "split.json").read_text())
    np.save(tmp_path / "order.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    from fedweave.data.files import sha256

    about["files"]["order.npy"] = sha256(tmp_path / "order.npy")
    (tmp_path / "split.json").write_text(json.dumps(about))
    with pytest.raises(DataError, match=r"order\.npy"):
        load_split(tmp_path)


def test_the_fingerprint_depends_on_every_byte_and_on_who_holds_what() -> None:
    base = own()
    seen = {base.fingerprint, own(seed=1).fingerprint, own(clients=11).fingerprint}
    for name, array in base.data.arrays().items():
        changed = array.copy()
        changed.flat[-1] = "other" if changed.dtype.kind == "U" else changed.flat[-1] + 1
        fields = _fields(base.data)
        if name.startswith("columns/"):
            fields["columns"] = {"site": changed}
        else:
            fields[name] = changed
        seen.add(Split(Dataset(**fields), base.order, base.offsets, base.test_order, base.test_offsets, "train").fingerprint)
    assert len(seen) == 3 + len(base.data.arrays())
    assert base.fingerprint == own().fingerprint
    wide = Split(base.data, base.order.astype(np.int64), base.offsets, base.test_order, base.test_offsets, "train")
    assert wide.fingerprint == base.fingerprint


def test_describe_counts_what_is_there() -> None:
    x = np.zeros((6, 2), np.float32)
    split = from_clients([(x[:4], np.array([0, 0, 1, 1])), (x[4:], np.array([2, 2]))], test=(x, np.arange(6) % 3))
    text = split.describe()
    lines = {line.split("  ")[0]: line for line in text.splitlines()}
    assert "min 2, median 3, max 4, mean 3.0" in lines["examples per client"]
    assert "min 1, median 2, max 2, mean 1.5" in lines["labels per client"]
    # Labels of all: 1/3 each. Client 0: |1/2-1/3| + |1/2-1/3| + 1/3 = 2/3, halved 1/3. Client 1: 2/3.
    assert "mean 0.500, max 0.667" in lines["label distance"]
    assert text.splitlines()[-2:] == ["0              4  0 (2), 1 (2)", "1              2  2 (2)"]
    assert "and 2 more" in partition(split.data, "iid", clients=3).describe(rows=1)
    assert (
        partition(split.data, "iid", clients=3).describe(rows=0).endswith(partition(split.data, "iid", clients=3).fingerprint)
    )


def test_the_picture_shows_each_clients_share_of_each_label() -> None:
    x = np.zeros((6, 2), np.float32)
    split = from_clients([(x[:4], np.array([0, 0, 1, 1])), (x[4:], np.array([2, 2]))])
    bars, picture = split.figure().data
    assert list(bars.y) == [4, 2]
    np.testing.assert_allclose(picture.z, [[0.5, 0], [0.5, 0], [0, 1]])


@pytest.mark.parametrize("clients", [200, 201, 1000])
def test_the_picture_of_many_clients_is_binned_and_says_so(clients: int) -> None:
    data = from_arrays(np.zeros((5000, 1)), np.arange(5000) % 3)
    drawn = partition(data, fw.LogNormal(sigma=1), clients=clients).figure()
    assert len(drawn.data[0].y) == 200
    assert np.array(drawn.data[1].z).shape == (3, 200)
    np.testing.assert_allclose(np.array(drawn.data[1].z).sum(0), 1)
    assert ("each column the mean" in drawn.layout.title.text) == (clients > 200)


def test_a_picture_without_labels_and_one_in_a_file(tmp_path: Path) -> None:
    data = from_arrays(np.zeros((50, 1)), np.linspace(0, 1, 50))
    split = partition(data, "iid", clients=5)
    assert len(split.figure().data) == 1
    split.plot(tmp_path / "new" / "picture.html")
    page = (tmp_path / "new" / "picture.html").read_text("utf-8")
    assert "Plotly.newPlot" in page
    assert "<script src=" not in page  # it opens without a network
    with pytest.raises(UsageError, match=r"picture\.html"):
        split.plot(tmp_path / "picture.png")


def test_a_client_that_does_not_exist() -> None:
    for number in (-1, 12):
        with pytest.raises(UsageError, match=f"no client {number}; the clients are numbered 0 to 11"):
            own().client(number)

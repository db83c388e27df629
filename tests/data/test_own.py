# SPDX-License-Identifier: Apache-2.0
"""A user's own data: arrays, clients, torch and Hugging Face data sets, tables; and the sentences that refuse them."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedweave as fw
from fedweave.data import from_arrays, from_clients, from_huggingface, from_torch, load, partition
from fedweave.errors import DataError, FedweaveError, MismatchError, UnknownName, UsageError


def pair(n: int, width: int = 3, seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, width)), rng.integers(0, 5, n)


def test_arrays_become_ready_to_train_on() -> None:
    data = from_arrays([[1.0, 2.0], [3.0, 4.0]], [0, 4], test=([[5.0, 6.0]], [5]))
    assert data.x_train.dtype == np.float32
    assert data.y_train.dtype == np.int64
    assert data.classes == 6
    assert data.source is None
    assert from_arrays(np.ones(3), [0.5, 1, 2]).classes is None
    assert from_arrays(np.ones(3), [0.5, 1, 2]).x_train.shape == (3, 1)
    assert from_arrays(np.ones((3, 2), bool), np.array([[0], [1], [1]])).y_train.shape == (3,)
    tokens = from_arrays(np.ones((3, 7), np.int16), np.full((3, 7), -100))
    assert tokens.x_train.dtype.kind == "i"
    assert tokens.y_train.min() == -100


def test_clients_keep_what_they_brought() -> None:
    clients = [pair(5, seed=1), pair(1, seed=2), pair(9, seed=3)]
    test = pair(4, seed=4)
    split = from_clients(clients, test=test)
    assert split.clients == 3
    assert split.sizes.tolist() == [5, 1, 9]
    for k, (x, y) in enumerate(clients):
        np.testing.assert_array_equal(split.client(k)[0], x.astype(np.float32))
        np.testing.assert_array_equal(split.client(k)[1], y)
    np.testing.assert_array_equal(split.x_test, test[0].astype(np.float32))
    assert split.test_indices(0) is None
    assert split.test_client(0) is None


@pytest.mark.parametrize("central", [False, True])
def test_clients_may_bring_tests_of_their_own(central: bool) -> None:
    clients, tests = [pair(5), pair(6)], [pair(2, seed=7), pair(0)]
    split = from_clients(clients, test=pair(9, seed=8) if central else None, tests=tests)
    assert split.x_test is not None
    assert len(split.x_test) == (9 if central else 2)
    for k, (x, y) in enumerate(tests):
        held = split.test_client(k)
        assert held is not None
        np.testing.assert_array_equal(held[0], x.astype(np.float32))
        np.testing.assert_array_equal(held[1], y)


NAN = pair(4)[0].copy()
NAN[2, 1] = np.nan
NAN[3, 0] = np.inf


@pytest.mark.parametrize(
    ("clients", "options", "said"),
    [
        ([], {}, "no clients"),
        ("mnist", {}, "takes a list"),
        (5, {}, "takes a list"),
        ([pair(3), 7], {}, "client 1 is int; give a pair"),
        ([pair(3), (np.ones((2, 3)), [0])], {}, "x of client 1 holds 2 examples, but y of client 1 holds 1"),
        ([pair(3), pair(3, width=4)], {}, r"features of client 1 have shape \(4,\), but those of client 0 have \(3,\)"),
        ([pair(3), pair(0)], {}, "Client 1 holds no examples"),
        ([(np.array([[{}], [{}]], object), [0, 1])], {}, "x of client 0 holds object values"),
        ([(np.array([["a"], ["b"]]), [0, 1])], {}, "not numbers"),
        ([([[1.0], [1.0, 2.0]], [0, 1])], {}, "rows of different lengths"),
        ([pair(4), (NAN, [0, 1, 1, 0])], {}, r"x of client 1 holds 2 values that are NaN or infinite, the first at \[2, 1\]"),
        ([(np.ones((2, 1)), [0, -1])], {}, "y of client 0 holds the label -1"),
        ([(np.ones((2, 1)), [0.0, np.nan])], {}, "y of client 0 holds 1 values that are NaN"),
        ([pair(3), (np.ones((2, 3)), [0.5, 0.5])], {}, "targets of client 1 are float32"),
        ([(3.0, 1)], {}, "one number"),
        ([pair(3)], {"test": pair(2, width=5)}, "features of the test set"),
        ([pair(3)], {"tests": [pair(2), pair(2)]}, "1 clients but 2 tests"),
        ([pair(3)], {"tests": [pair(2, width=9)]}, "features of the test of client 0"),
    ],
)
def test_what_cannot_be_used_is_one_clear_sentence(clients: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        from_clients(clients, **options)
    assert "\n" not in str(caught.value)


def test_arrays_that_do_not_fit() -> None:
    with pytest.raises(MismatchError, match="x holds 2 examples, but y holds 3"):
        from_arrays(np.ones((2, 1)), [0, 1, 2])
    with pytest.raises(UsageError, match="no examples"):
        from_arrays(np.ones((0, 1)), np.ones(0))
    with pytest.raises(MismatchError, match="classes is 2, but there is a label 2"):
        from_arrays(np.ones((3, 1)), [0, 1, 2], classes=2)
    with pytest.raises(MismatchError, match="Column 'a'"):
        from_arrays(np.ones((3, 1)), [0, 1, 2], columns={"a": [1, 2]})
    with pytest.raises(UsageError, match="Column 'a' holds objects"):
        from_arrays(np.ones((3, 1)), [0, 1, 2], columns={"a": np.array([1, None, "x"], object)})


def test_a_torch_data_set() -> None:
    import torch
    from torch.utils.data import Dataset, TensorDataset

    class Squares(Dataset[Any]):
        def __len__(self) -> int:
            return 6

        def __getitem__(self, i: int) -> Any:
            if i >= 6:
                raise IndexError
            return torch.full((1, 2, 2), float(i)), i % 3

    data = from_torch(Squares(), test=Squares(), columns={"who": [0, 0, 0, 1, 1, 1]})
    np.testing.assert_array_equal(data.x_train[:, 0, 0, 0], np.arange(6))
    assert data.y_train.tolist() == [0, 1, 2, 0, 1, 2]
    assert data.x_test is not None
    assert partition(data, fw.ByColumn("who")).sizes.tolist() == [3, 3]
    x = torch.arange(6.0).reshape(3, 2)
    fast = from_torch(TensorDataset(x, torch.tensor([1, 0, 1])))
    np.testing.assert_array_equal(fast.x_train, x.numpy())
    x[0, 0] = 99
    assert fast.x_train[0, 0] == 0  # a copy
    with pytest.raises(UsageError, match="without length"):
        from_torch(iter([1]))
    with pytest.raises(UsageError, match="Item 0 of dataset is int"):
        from_torch([1, 2])
    with pytest.raises(MismatchError, match="different shapes"):
        from_torch([(np.ones(1), 0), (np.ones(2), 0)])


def test_a_hugging_face_data_set() -> None:
    datasets = pytest.importorskip("datasets")
    rows = {
        "text": ["a", "b", "c"],
        "v": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]],
        "w": [1, 2, 3],
        "y": [0, 1, 0],
        "user": ["u", "t", "u"],
    }
    made = datasets.Dataset.from_dict(rows)
    data = from_huggingface(made, x="v", y="y", test=made, client="user")
    np.testing.assert_array_equal(data.x_train, rows["v"])
    assert data.y_train.tolist() == rows["y"]
    split = partition(data, fw.ByColumn())
    assert split.names == ["t", "u"]
    assert split.test_sizes is not None
    assert split.test_sizes.tolist() == [1, 2]
    assert from_huggingface(made, x=["w", "y"], y="y").x_train.tolist() == [[1, 0], [2, 1], [3, 0]]
    with pytest.raises(UnknownName, match="no column called 'z'"):
        from_huggingface(made, x="z", y="y")
    with pytest.raises(UsageError, match="Column 'text'"):
        from_huggingface(made, x="text", y="y")
    with pytest.raises(UsageError, match="choose one of its splits"):
        from_huggingface(datasets.DatasetDict({"train": made}), x="v", y="y")


class Image:
    """Named as the feature type of pictures is."""


class Rows:
    """What of a Hugging Face data set is used, with pictures as arrays."""

    def __init__(self, pictures: list[Any], labels: list[int]) -> None:
        self.held = {"image": pictures, "label": labels}
        self.column_names = list(self.held)
        self.features = {"image": Image(), "label": int}

    def with_format(self, kind: None) -> dict[str, Any]:
        return self.held


def test_pictures_of_one_and_of_three_channels() -> None:
    grey = np.random.default_rng(0).integers(0, 256, (3, 4, 5), dtype=np.uint8)
    data = from_huggingface(Rows(list(grey), [0, 1, 0]), x="image", y="label")
    np.testing.assert_allclose(data.x_train, grey[:, None] / 255, rtol=1e-6)
    colour = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), dtype=np.uint8)
    data = from_huggingface(Rows(list(colour), [0, 1, 0]), x="image", y="label")
    np.testing.assert_allclose(data.x_train, colour.transpose(0, 3, 1, 2) / 255, rtol=1e-6)
    with pytest.raises(MismatchError, match="different sizes"):
        from_huggingface(Rows([grey[0], grey[1, :2]], [0, 1]), x="image", y="label")


def test_hugging_face_pictures_become_channels_first() -> None:
    datasets = pytest.importorskip("datasets")
    pictures = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 3), dtype=np.uint8)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog", "eel"])})
    made = datasets.Dataset.from_dict(
        {"image": [pictures.fromarray(p) for p in pixels], "label": [0, 1, 1, 0]}, features=features
    )
    data = from_huggingface(made, x="image", y="label")
    assert data.x_train.shape == (4, 3, 5, 6)
    np.testing.assert_allclose(data.x_train, pixels.transpose(0, 3, 1, 2) / 255, rtol=1e-6)
    assert data.classes == 3


TABLE = "site,age,size,kind\nnorth,1,0.5,cat\nsouth,2,1.5,dog\nnorth,3,2.5,cat\nsouth,4,3.5,dog\n"


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_a_table(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("pyarrow")
    file = tmp_path / f"My_Table{suffix}"
    if suffix == ".parquet":
        import pyarrow.csv
        import pyarrow.parquet

        (tmp_path / "t.csv").write_text(TABLE)
        pyarrow.parquet.write_table(pyarrow.csv.read_csv(tmp_path / "t.csv"), file)
    else:
        file.write_text(TABLE.replace(",", "\t") if suffix == ".tsv" else TABLE)
    data = load(file, label="kind", client="site")
    np.testing.assert_array_equal(data.x_train, [[1, 0.5], [2, 1.5], [3, 2.5], [4, 3.5]])
    assert data.y_train.tolist() == [0, 1, 0, 1]
    assert data.notes == ("Labels are numbered: cat is 0, dog is 1.",)
    split = partition(data, "natural")
    assert split.names == ["north", "south"]
    assert split.spec is not None
    again = load(split.spec["source"])
    assert again.source == data.source
    assert partition(again, split.spec["partition"]).fingerprint == split.fingerprint


def test_a_table_with_tests(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "train.csv").write_text("x,y\n" + "".join(f"{i},{i % 2}\n" for i in range(100)))
    (tmp_path / "test.csv").write_text("y,x\n1,7\n")
    data = load(f"{tmp_path}/train.csv(label='y', test='{tmp_path}/test.csv')")
    assert data.x_test is not None
    assert data.x_test.tolist() == [[7]]
    part = load(tmp_path / "train.csv", label="y", test=0.2)
    assert part.x_test is not None
    assert sorted(np.concatenate([part.x_train, part.x_test])[:, 0].tolist()) == list(range(100))
    assert len(part.x_test) == 20
    assert part.identity == load(tmp_path / "train.csv", label="y", test=0.2).identity
    assert load(tmp_path / "train.csv", label="y", task="regression").classes is None
    assert load(tmp_path / "train.csv", label="y").classes == 2


def test_a_changed_table_is_another_data_set(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    file = tmp_path / "t.csv"
    file.write_text("x,y\n1,0\n2,1\n")
    split = partition(load(file, label="y"), "iid", clients=2)
    split.save(tmp_path / "split")
    assert fw.data.load_split(tmp_path / "split").fingerprint == split.fingerprint
    file.write_text("x,y\n1,0\n3,1\n")
    with pytest.raises(DataError, match="are not those"):
        fw.data.load_split(tmp_path / "split")


@pytest.mark.parametrize(
    ("content", "options", "error", "said"),
    [
        (TABLE, {"label": "kind"}, UsageError, "Column 'site' holds string, not numbers"),
        (TABLE, {}, UsageError, "give label="),
        (TABLE, {"label": "knd", "client": "site"}, UnknownName, "Did you mean 'kind'"),
        (TABLE, {"label": "kind", "clients": "site"}, UsageError, "no option 'clients'"),
        (TABLE, {"label": "kind", "drop": ["site", "age", "size"]}, UsageError, "no columns left"),
        (TABLE, {"label": "kind", "drop": ["site"], "task": "regression"}, UsageError, "no regression"),
        (TABLE, {"label": "kind", "drop": ["site"], "task": "x"}, UsageError, "task is 'x'"),
        (TABLE, {"label": "kind", "drop": ["site"], "test": 1.5}, UsageError, "test is 1.5"),
        (TABLE, {"label": "kind", "drop": ["site"], "test": 0.01}, UsageError, "leave some for both"),
        (TABLE, {"label": "kind", "drop": ["site"], "test": "nowhere.csv"}, DataError, "no file .*nowhere.csv"),
        ("x,y\n1,0\n,1\n", {"label": "y"}, UsageError, "Column 'x' is empty in 1 rows"),
        ("x,y\n1,0\n2\n", {"label": "y"}, DataError, "cannot be read as a table"),
        ("", {"label": "y"}, DataError, "cannot be read as a table"),
    ],
)
def test_a_table_that_cannot_be_used(tmp_path: Path, content: str, options: dict[str, Any], error: type, said: str) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(error, match=said) as caught:
        load(tmp_path / "t.csv", **options)
    assert "\n" not in str(caught.value)


def test_without_pyarrow_the_command_that_installs_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t.csv").write_text(TABLE)
    plain = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.split(".")[0] == "pyarrow":
            raise ImportError(name)
        return plain(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DataError, match=r"pip install 'fedweave\[data\]'"):
        load(tmp_path / "t.csv", label="kind")


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("minst", {}, "Did you mean 'mnist'"),
        ("digits", {"size": 3}, "size"),
        ("synthetic(alpha=)", {}, "Cannot read"),
        ("nowhere/at/all", {}, "no file or folder"),
        ("nowhere.csv", {"label": "y"}, "no file 'nowhere.csv'"),
        (None, {}, "from_arrays"),
    ],
)
def test_a_name_that_cannot_be_loaded(name: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(FedweaveError, match=said) as caught:
        load(name, **options)
    assert "\n" not in str(caught.value)


def test_a_loaded_data_set_is_itself() -> None:
    data = from_arrays(np.ones(3), [0, 1, 0])
    assert load(data) is data
    with pytest.raises(UsageError, match="loaded already"):
        load(data, crop=3)

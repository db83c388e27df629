# SPDX-License-Identifier: Apache-2.0
"""The named sets: decoders on small made-up files, and on the real files the facts that are published about them."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import fedweave as fw
from fedweave.data import heart, load, mnist, partition, shakespeare
from fedweave.errors import DataError, UsageError


def total(x: np.ndarray) -> tuple[float, float]:
    return float(x.mean(dtype=np.float64)), float(x.std(dtype=np.float64))


# digits


def test_digits_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    theirs, data = load_digits(), load("digits")
    assert data.x_test is not None
    assert data.y_test is not None
    assert data.x_train.shape == (1442, 1, 8, 8)
    assert data.x_train.dtype == np.float32
    # Slow reference of the rule: the fifth, tenth ... of each label is a test example.
    seen, train, test = dict.fromkeys(range(10), 0), [], []
    for i, label in enumerate(theirs.target.tolist()):
        seen[label] += 1
        (test if seen[label] % 5 == 0 else train).append(i)
    np.testing.assert_array_equal(data.x_train.reshape(-1, 64) * 16, theirs.data[train])
    np.testing.assert_array_equal(data.x_test.reshape(-1, 64) * 16, theirs.data[test])
    np.testing.assert_array_equal(data.y_train, theirs.target[train])
    np.testing.assert_array_equal(data.y_test, theirs.target[test])


def test_digits_fall_back_on_scikit_learns_own_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    first = load("digits").identity
    monkeypatch.setattr(Path, "exists", lambda self: False)
    assert load("digits").identity == first


# idx files


def idx(array: np.ndarray, code: int = 8) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, code, array.ndim, *array.shape) + array.tobytes()


@settings(max_examples=40, deadline=None)
@given(hnp.arrays(st.sampled_from([">u1", ">i2", ">i4", ">f4"]), hnp.array_shapes(max_dims=4, max_side=6)), st.booleans())
def test_an_idx_file_comes_back(tmp_path_factory: pytest.TempPathFactory, array: np.ndarray, zipped: bool) -> None:
    raw = idx(array, {"u1": 8, "i2": 11, "i4": 12, "f4": 13}[array.dtype.str[1:]])
    file = tmp_path_factory.mktemp("idx") / "file"
    file.write_bytes(gzip.compress(raw) if zipped else raw)
    np.testing.assert_array_equal(mnist.read_idx(file), array)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\0\0\x08",
        b"\0\1\x08\1\0\0\0\0",
        b"\0\0\x07\1\0\0\0\0",
        idx(np.zeros((3, 2), np.uint8))[:-1],
        idx(np.zeros((3, 2), np.uint8)) + b"x",
        gzip.compress(idx(np.zeros(3, np.uint8)), mtime=0)[:-4],
        b"\x1f\x8bnot really",
        gzip.compress(idx(np.zeros(99, np.uint8)), mtime=0)[:12] + b"\xff" * 20,
    ],
)
def test_a_broken_idx_file_is_said(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "broken").write_bytes(raw)
    with pytest.raises(DataError, match="broken"):
        mnist.read_idx(tmp_path / "broken")


@pytest.mark.parametrize(
    ("name", "mean", "deviation", "train", "test"),
    [("mnist", 0.1307, 0.3081, [5, 0, 4, 1, 9], [7, 2, 1, 0, 4]), ("fashion-mnist", 0.2860, 0.3530, [9, 0, 0, 3, 0], None)],
)
def test_real_idx_sets(real: Path, name: str, mean: float, deviation: float, train: list[int], test: list[int] | None) -> None:
    data = load(name)
    assert data.x_test is not None
    assert data.y_test is not None
    assert data.x_train.shape == (60000, 1, 28, 28)
    assert data.x_test.shape == (10000, 1, 28, 28)
    assert total(data.x_train) == pytest.approx((mean, deviation), abs=5e-5)
    assert (data.x_train.min(), data.x_train.max()) == (0, 1)
    assert data.y_train[:5].tolist() == train
    if test:
        assert data.y_test[:5].tolist() == test
    else:
        assert np.bincount(data.y_train).tolist() == [6000] * 10
        assert np.bincount(data.y_test).tolist() == [1000] * 10
    assert isinstance(data.x_train, np.memmap)
    assert not data.x_train.flags.writeable
    assert data.source == name


def test_the_real_writers_of_mnist(real: Path) -> None:
    data = load("mnist")
    split = partition(data, fw.ByColumn("writer"))
    assert split.clients == 539
    assert (split.sizes.min(), np.median(split.sizes), split.sizes.max()) == (19, 116, 131)
    assert all(len(set(split.client(k)[1].tolist())) >= 8 for k in range(539))
    tests = set(data.test_columns["writer"].tolist())
    assert len(tests) == 297
    assert not tests & set(data.columns["writer"].tolist())
    assert split.test_indices(0) is None


def test_mnist_without_the_writers_files_says_so(real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mnist").symlink_to(real / "mnist")
    monkeypatch.setenv("FEDWEAVE_DATA", str(tmp_path))
    data = load("mnist")
    assert not data.columns
    assert "writer of each image is not known, as FEDWEAVE_DATA lacks qmnist-writers/qmnist-train" in data.notes[0]
    with pytest.raises(fw.FedweaveError, match="has no columns"):
        partition(data, fw.ByColumn("writer"))


# shakespeare

PLAY = """<?xml version="1.0"?>
<!DOCTYPE PLAY SYSTEM "play.dtd">
<PLAY><TITLE>T</TITLE><ACT><SCENE>
<SPEECH><SPEAKER>ANNE</SPEAKER><LINE>One</LINE><LINE><STAGEDIR>Aside</STAGEDIR> Two</LINE>
<LINE>Th<STAGEDIR>x</STAGEDIR>ree</LINE></SPEECH>
<SPEECH><SPEAKER>ANNE</SPEAKER><SPEAKER>BOB  C</SPEAKER><LINE>Four &amp; \u00e9</LINE><LINE></LINE></SPEECH>
<SPEECH><SPEAKER>ANNE</SPEAKER><LINE>Five</LINE><LINE>Six</LINE></SPEECH>
<SPEECH><SPEAKER></SPEAKER><LINE>Nobody</LINE></SPEECH>
</SCENE></ACT></PLAY>"""


def test_a_plays_lines_are_those_spoken(tmp_path: Path) -> None:
    (tmp_path / "dream.xml").write_text(PLAY, "utf-8")
    assert shakespeare.read_play(tmp_path / "dream.xml") == {
        "dream/ANNE": ["One", "Two", "Three", "Four & \u00e9", "Five", "Six"],
        "dream/BOB C": ["Four & \u00e9"],
    }
    (tmp_path / "bad.xml").write_text(PLAY[:-9])
    with pytest.raises(DataError, match=r"bad\.xml is not a play"):
        shakespeare.read_play(tmp_path / "bad.xml")


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200), st.integers(1, 30))
def test_every_byte_is_predicted_once_from_the_one_before(text: bytes, length: int) -> None:
    x, y = shakespeare.sequences(text, length)
    assert x.shape == y.shape == (-(-len(text) // length), length)
    stream, targets = x.reshape(-1).tolist(), y.reshape(-1).tolist()
    assert bytes(target for target in targets if target != -100) == text
    for i, byte in enumerate(text):
        assert targets[i] == byte
        assert stream[i] == (shakespeare.START if i == 0 else text[i - 1])
    assert stream[len(text) :] == [shakespeare.PAD] * (len(stream) - len(text))
    assert targets[len(text) :] == [-100] * (len(stream) - len(text))


def test_the_real_plays(real: Path) -> None:
    data = load("shakespeare")
    assert data.y_test is not None
    split = partition(data, "natural")
    assert split.clients == 1241
    assert split.test_sizes is not None
    assert split.test_sizes.min() >= 1
    # The paper, of another edition: 1146 clients, 3,564,579 training and 870,014 test characters.
    assert int((data.y_train >= 0).sum()) == pytest.approx(3_564_579, rel=0.05)
    assert int((data.y_test >= 0).sum()) == pytest.approx(870_014, rel=0.01)
    assert split.names is not None
    hamlet = split.names.index("hamlet/HAMLET")
    own = split.test_client(hamlet)
    assert own is not None
    train = _text(split.client(hamlet)[1])
    assert "To be, or not to be: that is the question:\n" in train
    lines = train.count("\n"), _text(own[1]).count("\n")
    assert lines[1] == -(-sum(lines) // 5)
    assert "The rest is silence." in _text(own[1])


def _text(targets: np.ndarray) -> str:
    return bytes(targets[targets >= 0].astype(np.uint8)).decode()


def test_shakespeares_options(real: Path) -> None:
    data = load("shakespeare", length=20, min_lines=100)
    assert data.x_train.shape[1] == 20
    assert data.source == "shakespeare(length=20, min_lines=100)"
    assert partition(data, "natural").clients < 1241
    for options in ({"length": 0}, {"min_lines": 1}, {"length": 2.5}):
        with pytest.raises(UsageError, match=next(iter(options))):
            load("shakespeare", **options)


# heart-disease


def rows(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.column_stack([rng.integers(1, 9, (n, 13)), np.arange(n) % 5]).astype(float)


def test_missing_values_are_filled_by_the_training_median() -> None:
    table = rows(40)
    table[:, 5] = np.nan
    table[3, 5], table[7, 5] = 10, 20
    table[11, 4] = 0  # no living patient's cholesterol
    made = heart.prepared({"a": table}, "indicate")
    plain = heart.prepared({"a": table}, "fill")
    assert made.x_train.shape[1] == 15
    assert plain.x_train.shape[1] == 13
    assert "38 values are missing and 1 blood pressures or cholesterols are 0" in plain.notes[0]
    np.testing.assert_allclose(plain.x_train.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(plain.x_train.std(0), 1, atol=1e-5)
    # Slow reference for the column of mostly missing values, in standardised units.
    y = table[:, 13] > 0
    seen, train = {True: 0, False: 0}, []
    for i in range(40):
        seen[bool(y[i])] += 1
        if seen[bool(y[i])] % 5:
            train.append(i)
    known = [table[i, 5] for i in train if not np.isnan(table[i, 5])]
    filled = np.array([np.median(known) if np.isnan(table[i, 5]) else table[i, 5] for i in train])
    np.testing.assert_allclose(plain.x_train[:, 5], (filled - filled.mean()) / filled.std(), rtol=1e-4)


def test_rows_with_missing_values_can_be_dropped() -> None:
    table = rows(20)
    table[2, 0] = np.nan
    table[:, 12] = np.nan
    made = heart.prepared({"a": table}, "drop")
    assert made.x_train.shape[1] == 10
    assert made.x_test is not None
    assert len(made) + len(made.x_test) == 19
    assert "slope, ca, thal are left out, and then 1 of 20 patients" in made.notes[0]


def test_a_hospitals_table(tmp_path: Path) -> None:
    file = tmp_path / "processed.data"
    file.write_text("63.0,1,1,145,233,1,2,150,0,2.3,3,0,?,0\n\n67,1,4,160,286,0,2,108,1,-.5,2,3,3,2\n")
    table = heart.read_table(file)
    assert table.shape == (2, 14)
    assert np.isnan(table[0, 12])
    assert table[1, 9] == -0.5
    for content, said in (("1,2\n", "Line 1 .* 2 values"), ("a" + ",1" * 13, "Line 1 .* not a row"), ("\n", "empty")):
        file.write_text(content)
        with pytest.raises(DataError, match=said):
            heart.read_table(file)


def test_the_real_hospitals(real: Path) -> None:
    data = load("heart-disease")
    assert data.x_test is not None
    assert data.y_test is not None
    hospitals = np.concatenate([data.columns["hospital"], data.test_columns["hospital"]])
    sick = np.concatenate([data.y_train, data.y_test])
    counts = {name: (int((hospitals == name).sum()), int(sick[hospitals == name].sum())) for name in heart.HOSPITALS}
    assert counts == {"cleveland": (303, 139), "hungarian": (294, 106), "switzerland": (123, 115), "va": (200, 149)}
    assert data.notes[0].startswith(f"{6 + 782 + 273 + 698:,} values are missing")
    split = partition(data, fw.ByColumn("hospital"))
    assert split.names == ["cleveland", "hungarian", "switzerland", "va"]
    assert split.test_sizes is not None
    for k in range(4):
        assert split.test_sizes[k] == pytest.approx(0.2 * (split.sizes[k] + split.test_sizes[k]), abs=2)
    assert data.x_train.shape == (740, 13)
    assert np.isfinite(data.x_train).all()
    assert load("heart-disease", missing="drop").x_train.shape[1] == 10
    with pytest.raises(UsageError, match="missing is 'mean'"):
        load("heart-disease", missing="mean")

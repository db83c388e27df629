# SPDX-License-Identifier: Apache-2.0
"""``digits``: 1,797 real handwritten digits of 8x8 pixels that ship inside scikit-learn; nothing is downloaded.

E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998 (its test half: 13 writers).
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from fedweave.data.dataset import AnyArray, Dataset
from fedweave.errors import DataError


def digits() -> Dataset:
    """1,442 training and 355 test images [N, 1, 8, 8] float32 in [0, 1], labels 0 to 9.

    The split is fixed and stratified: of each label, in stored order, every fifth example is a test example.

    Raises:
        DataError: scikit-learn is not installed.
    """
    rows = _rows()
    x = (rows[:, :64] / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    y = rows[:, 64].astype(np.int64)
    test = every_fifth(y)
    return Dataset("digits", x[~test], y[~test], x[test], y[test], classes=10)


def every_fifth(groups: AnyArray) -> AnyArray:
    """[N] bool: the fifth, tenth, fifteenth ... example of each group, in stored order."""
    order = np.argsort(groups, kind="stable")
    _, starts, counts = np.unique(groups[order], return_index=True, return_counts=True)
    chosen = np.empty(len(groups), bool)
    chosen[order] = (np.arange(len(groups)) - np.repeat(starts, counts)) % 5 == 4
    return chosen


def _rows() -> AnyArray:
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise DataError("The data set 'digits' is part of scikit-learn, which is not installed: pip install scikit-learn.")
    # The file itself is read because importing scikit-learn takes a second.
    stored = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    if stored.exists():
        rows: AnyArray = np.loadtxt(stored, delimiter=",")
        if rows.shape == (1797, 65):
            return rows
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return np.column_stack([bunch.data, bunch.target])

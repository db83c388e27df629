# SPDX-License-Identifier: Apache-2.0
"""``heart-disease``: UCI's Heart Disease data of four hospitals, a small set with real differences between its clients.

A. Janosi, W. Steinbrunn, M. Pfisterer, R. Detrano, UCI, 1988. As a federated set: Ogier du Terrail et al., "FLamby",
NeurIPS 2022 Datasets and Benchmarks, Fed-Heart-Disease.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from fedweave.data import files
from fedweave.data.dataset import AnyArray, Dataset
from fedweave.data.digits import every_fifth
from fedweave.data.files import Remote
from fedweave.errors import DataError, UsageError

_URL = "https://archive.ics.uci.edu/ml/machine-learning-databases/heart-disease/"
HOSPITALS = {
    "cleveland": (18461, "a74b7efa387bc9d108d7d0115d831fe9b414b29ae7124f331b622b4efa0427c8"),
    "hungarian": (10263, "d1ad108f785768cd3d7e82dc522e6f5a61eea93cccfb3a46ee8076f73fc3d796"),
    "switzerland": (4109, "834a405ccf5b66ab4056bb77794adc8df0b7125186454c0a1d002d33c6c3b314"),
    "va": (6737, "e7c93d8d0d2acdadfa4c5e8de768e2191e7f618b952e29623f1f0d5949ff6b8f"),
}
FEATURES = (
    "age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang", "oldpeak", "slope", "ca", "thal",
)  # fmt: skip
_NEVER_ZERO = ("trestbps", "chol")
_SPARSE = ("slope", "ca", "thal")


def heart_disease(missing: str = "fill") -> Dataset:
    """920 patients, features [N, 13] float32, label 1 where a vessel is narrowed by half (num > 0); column ``"hospital"``.

    In every hospital and class, in stored order, each fifth patient is a test example. Features are standardised by the mean
    and the standard deviation over all training patients.

    Args:
        missing: what becomes of missing values ("?", and a blood pressure or cholesterol of 0, which no living patient has).
            ``"fill"``: the median over all training patients who have the value. ``"indicate"``: the same, and for each feature
            with missing values a further column that is 1 where it was missing. ``"drop"``: the three features that whole
            hospitals lack (slope, ca, thal) are left out, and then the patients with a missing value.

    Raises:
        DataError: a file is damaged or cannot be had.
        UsageError: missing is none of these.
    """
    if missing not in ("fill", "indicate", "drop"):
        raise UsageError(f"missing is {missing!r}; it must be 'fill', 'indicate' or 'drop'.")
    tables = []
    for hospital, (size, sha) in HOSPITALS.items():
        name = f"processed.{hospital}.data"
        tables.append(read_table(files.locate(Remote("heart-disease", name, size, sha, (_URL + name,)))))
    content = hashlib.sha256("".join(sha for _, sha in HOSPITALS.values()).encode()).hexdigest()[:16]
    made = prepared(dict(zip(HOSPITALS, tables, strict=True)), missing)
    return replace(made, key=f"heart-disease-1-{content}-{missing}")


def prepared(tables: dict[str, AnyArray], missing: str) -> Dataset:
    """The data set of some hospitals' tables [n, 14] float64 with NaN for missing; see ``heart_disease``."""
    rows = np.concatenate(list(tables.values()))
    hospital = np.repeat(np.array(list(tables)), [len(table) for table in tables.values()])
    x, y = rows[:, :13].copy(), (rows[:, 13] > 0).astype(np.int64)
    unknown = int(np.isnan(x).sum())
    zero = np.zeros_like(x, bool)
    for feature in _NEVER_ZERO:
        zero[:, FEATURES.index(feature)] = x[:, FEATURES.index(feature)] == 0
    x[zero] = np.nan
    found = f"{unknown:,} values are missing and {int(zero.sum()):,} blood pressures or cholesterols are 0"
    if missing == "drop":
        x = np.delete(x, [FEATURES.index(feature) for feature in _SPARSE], axis=1)
        whole = ~np.isnan(x).any(1)
        x, y, hospital = x[whole], y[whole], hospital[whole]
        note = f"{found}: {', '.join(_SPARSE)} are left out, and then {int((~whole).sum()):,} of {len(whole):,} patients."
    else:
        note = f"{found}: each is filled with the training patients' median."
    _, group = np.unique(hospital, return_inverse=True)
    test = every_fifth(2 * group + y)
    lacks = np.isnan(x)
    x = np.where(lacks, np.nanmedian(x[~test], axis=0), x)
    deviation = x[~test].std(0)
    x = (x - x[~test].mean(0)) / np.where(deviation > 0, deviation, 1)
    if missing == "indicate":
        some = lacks.any(0)
        x = np.column_stack([x, lacks[:, some]])
        note += f" {int(some.sum())} further columns say where."
    x = x.astype(np.float32)
    return Dataset(
        "heart-disease",
        x[~test],
        y[~test],
        x[test],
        y[test],
        classes=2,
        columns={"hospital": hospital[~test]},
        test_columns={"hospital": hospital[test]},
        natural="hospital",
        notes=(note,),
    )


def read_table(path: Path) -> AnyArray:
    """[n, 14] float64, NaN where the file has "?".

    Raises:
        DataError: a row has not 14 values, or one of them is no number.
    """
    rows = []
    for number, line in enumerate(path.read_text("ascii", errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = [float("nan") if value.strip() == "?" else float(value) for value in line.split(",")]
        except ValueError as error:
            raise DataError(f"Line {number} of {path} is not a row of numbers ({error}); replace it by a good copy.") from None
        if len(row) != 14:
            raise DataError(f"Line {number} of {path} has {len(row)} values, expected 14; replace it by a good copy.")
        rows.append(row)
    if not rows:
        raise DataError(f"{path} is empty; replace it by a good copy.")
    return np.array(rows)

# SPDX-License-Identifier: Apache-2.0
"""The workloads that every peer trains: models, cohorts, made-up data that can be learned, and the arithmetic they come to.

Needs NumPy alone, so that every peer's environment can import it. Data are made on demand in the folder ``FEDWEAVE_BENCH``
(``~/.cache/fedweave-bench`` unless set), from fixed seeds.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Array = Any


class Data(NamedTuple):
    """Client k holds ``x[offsets[k]:offsets[k + 1]]``."""

    x: Array
    y: Array
    offsets: Array
    x_test: Array
    y_test: Array


@dataclass(frozen=True)
class Workload:
    """FedAvg with SGD: ``cohort`` clients a round, ``epochs`` passes in batches of ``batch``.

    ``warmup`` rounds are not timed, because compilers and caches need them; ``rounds`` are, unless told otherwise.
    """

    name: str
    title: str
    data: str
    model: str
    lr: float
    cohort: int
    epochs: int = 1
    batch: int = 10
    warmup: int = 2
    rounds: int = 10

    @cached_property
    def held(self) -> Data:
        return load(self.data)

    @property
    def clients(self) -> int:
        return len(self.held.offsets) - 1

    @property
    def classes(self) -> int:
        return 80 if self.model == "lstm" else 10

    def images(self, x: Array) -> Array:
        """What the model takes: [N, 1, 28, 28] for a convolution."""
        return x.reshape(-1, 1, 28, 28) if self.model == "cnn" else x

    def client(self, k: int) -> tuple[Array, Array]:
        first, last = self.held.offsets[k], self.held.offsets[k + 1]
        return self.images(self.held.x[first:last]), self.held.y[first:last]

    def sampled(self, round: int) -> list[int]:
        """The cohort of a round, counted from 0."""
        found: list[int] = np.random.default_rng((1234, round)).choice(self.clients, self.cohort, replace=False).tolist()
        return found

    def flops_per_example(self) -> int:
        """Two for each multiply-add: forward, weight gradients and input gradients, but none for the data's own gradient."""
        first, rest = {
            "mlp": (784 * 200, 200 * 200 + 200 * 10),
            "cnn": (28 * 28 * 25 * 32, 14 * 14 * 25 * 32 * 64 + 3136 * 512 + 512 * 10),
            "logistic": (60 * 10, 0),
            "lstm": (0, 80 * (4 * 256 * (8 + 256) + 4 * 256 * 512 + 256 * 80)),
        }[self.model]
        return 2 * (2 * first + 3 * rest)

    def flops_per_round(self) -> float:
        """Of the mean timed round."""
        sizes = np.diff(self.held.offsets)
        rounds = range(self.warmup, self.warmup + self.rounds)
        return float(np.mean([sizes[self.sampled(r)].sum() for r in rounds])) * self.epochs * self.flops_per_example()


WORKLOADS = {
    w.name: w
    for w in (
        Workload("W1", "MLP 784-200-200-10, 10 of 100 clients", "images", "mlp", 0.05, 10, rounds=8),
        Workload("W2", "the FedAvg paper's CNN, 10 of 100 clients", "images", "cnn", 0.05, 10, warmup=1, rounds=1),
        Workload("W3", "logistic 60-10, 100 of 1000 clients", "tiny", "logistic", 0.05, 100, rounds=10),
        Workload("W3E20", "the same, 20 local epochs", "tiny", "logistic", 0.05, 100, epochs=20, warmup=1, rounds=2),
        Workload("W4", "character LSTM 2 x 256, 10 of 100 clients", "chars", "lstm", 0.8, 10, warmup=1, rounds=2),
    )
}


# Data --------------------------------------------------------------------------------------------------------------------


def images(draw: np.random.Generator, clients: int = 100, each: int = 600, test: int = 2000) -> Data:
    """28 x 28 noise around a smooth mean of each of 10 classes; a client's classes are Dirichlet(0.5)."""
    means = draw.normal(0, 1, (10, 784)).astype(np.float32).reshape(10, 28, 28)
    for _ in range(3):  # a convolution needs local structure
        means = (means + np.roll(means, 1, 1) + np.roll(means, -1, 1) + np.roll(means, 1, 2) + np.roll(means, -1, 2)) / 5
    means = (means / means.std()).reshape(10, 784) * 0.12
    xs, ys = [], []
    for _ in range(clients):
        y = draw.choice(10, each, p=draw.dirichlet(np.full(10, 0.5)))
        xs.append((means[y] + draw.normal(0, 1, (each, 784))).astype(np.float32))
        ys.append(y.astype(np.int64))
    y_test = draw.integers(0, 10, test)
    x_test = (means[y_test] + draw.normal(0, 1, (test, 784))).astype(np.float32)
    return _joined(xs, ys, x_test, y_test)


def tiny(draw: np.random.Generator, clients: int = 1000, test: int = 2000) -> Data:
    """60 features, labels of one linear teacher; 20 to 100 examples a client, each with a shift of its own."""
    sizes = np.clip(np.exp(draw.normal(3.7, 0.5, clients)).astype(np.int64), 20, 100)
    teacher, scale = draw.normal(0, 1, (60, 10)), np.arange(1, 61) ** -0.6

    def sample(count: int, shift: Array) -> tuple[Array, Array]:
        x = draw.normal(0, 1, (count, 60)) * scale + shift
        y = (x @ teacher + 0.3 * draw.normal(0, 1, (count, 10))).argmax(1)
        return x.astype(np.float32), y.astype(np.int64)

    parts = [sample(int(size), draw.normal(0, 0.3, 60) * scale) for size in sizes]
    return _joined([x for x, _ in parts], [y for _, y in parts], *sample(test, np.zeros(60)))


def chars(draw: np.random.Generator, clients: int = 100, each: int = 40, test: int = 200) -> Data:
    """Sequences of 80 out of a sparse Markov chain on 80 symbols; the target at each place is the next symbol."""
    chain = draw.dirichlet(np.full(80, 0.01), 80).cumsum(1)

    def sequences(count: int) -> Array:
        found = np.zeros((count, 81), np.int64)
        found[:, 0] = draw.integers(0, 80, count)
        for t in range(1, 81):
            found[:, t] = np.minimum((chain[found[:, t - 1]] < draw.random(count)[:, None]).sum(1), 79)
        return found

    train, held = [sequences(each) for _ in range(clients)], sequences(test)
    return _joined([s[:, :80] for s in train], [s[:, 1:] for s in train], held[:, :80], held[:, 1:])


def _joined(xs: list[Array], ys: list[Array], x_test: Array, y_test: Array) -> Data:
    offsets = np.cumsum([0, *map(len, xs)])
    parts = (np.concatenate(xs), np.concatenate(ys), offsets, x_test, y_test.astype(np.int64))
    return Data(*(np.ascontiguousarray(part) for part in parts))


SOURCES: dict[str, tuple[Callable[[np.random.Generator], Data], int]] = {
    "images": (images, 1),
    "tiny": (tiny, 2),
    "chars": (chars, 3),
}
"""How each data set is made, and from which seed."""


def root() -> Path:
    """Where environments, data and records are kept."""
    return Path(os.environ.get("FEDWEAVE_BENCH") or "~/.cache/fedweave-bench").expanduser()


def load(name: str) -> Data:
    """A data set, made first if it is not there."""
    folder = root() / "data" / name
    if not folder.is_dir():
        make(name, folder)
    return Data(*(np.load(folder / f"{part}.npy") for part in Data._fields))


def make(name: str, folder: Path) -> None:
    """Write a data set; the folder appears when it is complete."""
    source, seed = SOURCES[name]
    folder.parent.mkdir(parents=True, exist_ok=True)
    partly = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f"{name}."))
    try:
        for part, array in source(np.random.default_rng(seed))._asdict().items():
            np.save(partly / f"{part}.npy", array)
        with contextlib.suppress(OSError):  # somebody else was faster
            partly.rename(folder)
    finally:
        shutil.rmtree(partly, ignore_errors=True)


def make_all(names: Iterable[str]) -> None:
    for name in names:
        folder = root() / "data" / name
        if not folder.is_dir():
            print(f"making the data set {name} in {folder}", flush=True)
            make(name, folder)

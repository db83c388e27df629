# SPDX-License-Identifier: Apache-2.0
"""A stack that is reduced in one piece is what its clients would have been one by one, to the bit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

import fedweave as fw
from fedweave import heap
from fedweave.app.diagnose import diagnosis_of
from fedweave.engines.performing import Performer
from fedweave.engines.vectorized import Vectorized
from fedweave.result import Result


def clients(sizes: list[int]) -> fw.data.Split:
    draw = np.random.default_rng(0)
    offsets = np.cumsum([0, *sizes])
    x = draw.normal(size=(offsets[-1], 6)).astype(np.float32)
    data = fw.data.from_arrays(x, (x @ draw.normal(size=(6, 4))).argmax(1), test=None)
    return fw.data.Split(data, draw.permutation(len(x)), offsets)


def two_layers() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))


def run(split: fw.data.Split, out: Path | None = None, **changes: Any) -> Result:
    arguments: dict[str, Any] = {
        "model": two_layers, "data": split, "cohort": 37, "rounds": 4, "local": fw.Local(lr=0.1, batch_size=4, epochs=1.5),
        "engine": "vectorized", "workers": 1, "evaluate_every": 0, "out": out,
    }  # fmt: skip
    return fw.simulate(**(arguments | changes))


ALIKE = [4 + k % 17 for k in range(40)]


class Counting:
    """How many units were reduced in one piece."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pieces, rows = 0, Performer._rows

        def counted(performer: Performer, *given: Any) -> Any:
            self.pieces += 1
            return rows(performer, *given)

        monkeypatch.setattr(Performer, "_rows", counted)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"algorithm": "fedprox(mu=0.1)"},
        {"algorithm": "fedadam", "local": fw.Local(lr=0.1, batch_size=4, momentum=0.9)},
        {"algorithm": "fedavg(weighting='uniform')", "cohort": 16},
        {"algorithm": "fednova"},
        {"algorithm": "qfedavg(q=0.5)"},
        {"algorithm": "fedsgd"},
        {"algorithm": "scaffold"},
        {"algorithm": fw.FedAvg(reduce=fw.Median())},
        {"effort": "stragglers(share=0.5, drop=True)"},
        {"local": fw.Local(lr=0.1, batch_size=4, steps=3)},
        {"local": fw.Local(lr=0.1, batch_size=None, epochs=2)},
        {"local": fw.Local(lr=0.1, batch_size=7, epochs=0.4)},
        {"workers": 2},
    ],
)
def test_in_one_piece_or_client_by_client_it_is_the_same_to_the_bit(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    split = clients(ALIKE)
    found = run(split, tmp_path / "found", **changes)
    monkeypatch.setattr(Vectorized, "together", lambda self, tasks: None)
    expected = run(split, tmp_path / "expected", **changes)
    assert found.model_hash == expected.model_hash
    for a, b in zip(found.history, expected.history, strict=True):
        for name in ("cohort", "bytes_down", "bytes_up", "examples", "steps", "refused", "dropped", "metrics"):
            assert getattr(a, name) == getattr(b, name), name


def test_who_is_like_the_others_is_reduced_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    counting = Counting(monkeypatch)
    run(clients(ALIKE))
    assert counting.pieces == 4


@pytest.mark.parametrize("sizes", [[0, *ALIKE[1:]], [1, *ALIKE[1:]]])
def test_who_is_not_is_not(sizes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    counting = Counting(monkeypatch)
    whole = run(clients(sizes), cohort=40)
    assert counting.pieces == 0
    assert whole.history[-1].examples == sum(sizes)


def test_what_is_not_finite_is_refused_from_a_stack_too(monkeypatch: pytest.MonkeyPatch) -> None:
    split = clients(ALIKE)
    split.x_train[split.indices(3)] = 1e30
    found = run(split, cohort=40, rounds=2)
    monkeypatch.setattr(Vectorized, "together", lambda self, tasks: None)
    expected = run(split, cohort=40, rounds=2)
    assert [client for client, _ in found.history[0].refused] == [3]
    assert found.history[0].refused == expected.history[0].refused
    assert found.model_hash == expected.model_hash


def test_what_is_noted_of_clients_is_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    split = clients(ALIKE)
    found = diagnosis_of(run(split, tmp_path / "found", cohort=40), split)
    monkeypatch.setattr(Vectorized, "together", lambda self, tasks: None)
    expected = diagnosis_of(run(split, tmp_path / "expected", cohort=40), split)
    assert found.figures.keys() == expected.figures.keys()
    assert found.figures
    for name, value in expected.figures.items():
        assert found.figures[name] == pytest.approx(value, rel=1e-5, nan_ok=True), name


@pytest.mark.parametrize(
    ("cohort", "local", "units"),
    [
        (40, fw.Local(lr=0.1, batch_size=4, epochs=50), 1),
        (48, fw.Local(lr=0.1, batch_size=4, epochs=50), 2),
        (90, fw.Local(lr=0.1, batch_size=4, steps=64), 2),
        (90, fw.Local(lr=0.1, batch_size=4, steps=63), 1),
        (90, fw.Local(lr=0.1, batch_size=4, epochs=1), 1),
    ],
)
def test_a_cohort_that_trains_for_long_is_two_units(
    cohort: int, local: fw.Local, units: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = Counting(monkeypatch)
    split = clients([8 + k % 9 for k in range(90)])
    one = run(split, cohort=cohort, local=local, rounds=1)
    assert counting.pieces == units
    assert run(split, cohort=cohort, local=local, rounds=1, workers=2).model_hash == one.model_hash


STEPS = """
import resource, sys
import torch
from fedweave import heap
if sys.argv[1] == "keep":
    assert heap.keep_freed()
layer = torch.nn.LSTM(8, 128, num_layers=2)
x = torch.randn(60, 10, 8)
def step():
    torch.autograd.grad(layer(x)[0].sum(), list(layer.parameters()))
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's heap")
def test_freed_memory_is_kept_for_the_next_step() -> None:
    environment = {name: value for name, value in os.environ.items() if name not in heap.NAMES} | {"OMP_NUM_THREADS": "1"}

    def faults(how: str) -> int:
        ran = subprocess.run([sys.executable, "-c", STEPS, how], env=environment, capture_output=True, text=True, check=True)
        return int(ran.stdout)

    assert faults("keep") * 10 < faults("leave")


@pytest.mark.parametrize("name", heap.NAMES)
def test_a_heap_that_is_set_up_is_left_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1")
    assert not heap.keep_freed()

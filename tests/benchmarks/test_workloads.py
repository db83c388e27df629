# SPDX-License-Identifier: Apache-2.0
"""The peers' workloads: the same data for everyone, that can be learned, and the arithmetic of a round."""

from __future__ import annotations

import threading
from pathlib import Path

import harness
import modules
import numpy as np
import pytest
import torch
import workloads
from torch.utils.flop_counter import FlopCounterMode
from workloads import WORKLOADS, Data


def few(name: str, seed: int = 7) -> Data:
    draw = np.random.default_rng(seed)
    if name == "images":
        return workloads.images(draw, clients=20, each=100, test=50)
    return workloads.tiny(draw, clients=20, test=50) if name == "tiny" else workloads.chars(draw, clients=20, each=3, test=50)


@pytest.mark.parametrize("name", list(workloads.SOURCES))
def test_one_seed_makes_one_data_set(name: str) -> None:
    first, again, other = few(name), few(name), few(name, seed=8)
    for part in Data._fields:
        np.testing.assert_array_equal(getattr(first, part), getattr(again, part))
    assert not np.array_equal(first.x_test, other.x_test)
    assert first.offsets[0] == 0
    assert first.offsets[-1] == len(first.x) == len(first.y)
    assert (np.diff(first.offsets) > 0).all()
    assert len(first.offsets) == 21


def test_images_and_tiny_can_be_learned() -> None:
    for name in ("images", "tiny"):
        data = few(name)
        x = np.c_[data.x, np.ones(len(data.x))].astype(np.float64)
        ridge = np.linalg.solve(x.T @ x + 100 * np.eye(x.shape[1]), x.T @ np.eye(10)[data.y])
        guessed = (np.c_[data.x_test, np.ones(len(data.x_test))] @ ridge).argmax(1)
        assert (guessed == data.y_test).mean() > 0.3  # a guess is right in one of ten


def test_next_symbol_depends_on_the_last() -> None:
    data = few("chars")
    np.testing.assert_array_equal(data.x[:, 1:], data.y[:, :-1])
    table = np.zeros((80, 80))
    np.add.at(table, (data.x, data.y), 1)
    assert (table.argmax(1)[data.x_test] == data.y_test).mean() > 0.5


def test_a_data_set_is_made_once_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDWEAVE_BENCH", str(tmp_path))
    monkeypatch.setitem(workloads.SOURCES, "tiny", (lambda draw: workloads.tiny(draw, clients=20, test=10), 2))
    at_once = [threading.Thread(target=workloads.load, args=("tiny",)) for _ in range(4)]
    for thread in at_once:
        thread.start()
    for thread in at_once:
        thread.join()
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["tiny"]
    loaded, fresh = workloads.load("tiny"), workloads.tiny(np.random.default_rng(2), clients=20, test=10)
    for part in Data._fields:
        np.testing.assert_array_equal(getattr(loaded, part), getattr(fresh, part))


def test_cohorts_are_without_repeats_and_the_same_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workloads, "load", lambda name: few("tiny"))
    w = workloads.Workload("w", "", "tiny", "logistic", 0.1, 10)
    assert w.sampled(3) == w.sampled(3) != w.sampled(4)
    assert len(set(w.sampled(3))) == 10


@pytest.mark.parametrize(("name", "parameters"), [("W1", 199_210), ("W2", 1_663_370), ("W3", 610)])
def test_arithmetic_is_torchs_own_count(name: str, parameters: int) -> None:
    w = WORKLOADS[name]
    model = modules.module(w.model)
    assert sum(p.numel() for p in model.parameters()) == parameters
    x = torch.zeros(5, *((1, 28, 28) if w.model == "cnn" else (784,) if w.model == "mlp" else (60,)))
    with FlopCounterMode(display=False) as counter:
        torch.nn.functional.cross_entropy(model(x), torch.zeros(5, dtype=torch.int64)).backward()
    assert w.flops_per_example() * 5 == counter.get_total_flops()


def test_arithmetic_of_the_lstm() -> None:
    """Torch does not count a fused LSTM, so its products are written out: 4 gates of 256 for input and state, in two layers."""
    model, places = modules.module("lstm"), 80
    weights = sum(p.numel() for name, p in model.named_parameters() if "weight" in name and "embedding" not in name)
    assert WORKLOADS["W4"].flops_per_example() == 2 * 3 * places * weights


def test_round_has_the_cohorts_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workloads, "load", lambda name: few("images"))
    w = workloads.Workload("w", "", "images", "mlp", 0.1, 5, epochs=3)
    assert w.flops_per_round() == pytest.approx(5 * 100 * 3 * w.flops_per_example())


def test_line_is_found_among_noise() -> None:
    bench = harness.Bench("someone", [], argv=["--workload", "W3", "--rounds", "2"])
    bench.marks = [10.0, 12.0, 12.5, 13.0, 14.0]
    line = bench.line(0.25, 2.0, "threads: 1")
    assert line["seconds"] == [2.0, 0.5, 0.5, 1.0]
    assert line["warmup"] == 2
    printed = f'warning: {{}}\n{harness.json.dumps(line)}\n{{"peer": cut off\nbye'
    assert harness.parse(printed) == line
    assert harness.parse("Traceback\nValueError: no") is None
    bench.marks.pop()
    with pytest.raises(RuntimeError, match="4 marks for 4 rounds"):
        bench.line(0.25, 2.0, "")


def test_start_is_when_the_process_began(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(harness.BEGAN, raising=False)
    bench = harness.Bench("someone", [], argv=["--workload", "W3", "--rounds", "0"])
    now = harness.time.time()
    bench.marks = [now - 1, now, now]
    began = now - bench.line(0, 0, "")["startup_s"]
    assert began == pytest.approx(harness._started(), abs=0.5)
    assert 0 < now - began < 24 * 3600

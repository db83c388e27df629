# SPDX-License-Identifier: Apache-2.0
"""What is deployed ends as what is simulated, to the bit."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deploying import joined, served

import fedweave as fw
from fedweave import blocks, data
from fedweave.config import Config
from fedweave.data import Split
from fedweave.history import Round
from fedweave.net import opening
from fedweave.net.prepare import CONFIG, prepare
from fedweave.net.serving import Serving
from fedweave.net.training import Evaluator, TorchWorker
from fedweave.simulation import load_result


@pytest.fixture(scope="module")
def split() -> Split:
    return data.partition(data.load("synthetic(alpha=1, beta=1)"), "iid", clients=4, seed=3)


class InTurn:
    """A worker among others in one process: torch's and our own random streams are one for all of its threads."""

    lock = threading.Lock()
    own_training = False

    def __init__(self, worker: Any) -> None:
        self.worker, self.examples = worker, worker.examples

    def begin(self, settings: Any, client: int) -> None:
        with self.lock:
            self.worker.begin(settings, client)

    def perform(self, *given: Any) -> Any:
        with self.lock:
            return self.worker.perform(*given)


def workers(split: Split, evaluates: bool) -> list[Any]:
    found: list[Any] = [Evaluator(split)] if evaluates else []
    for client in range(split.clients):
        indices = np.asarray(split.indices(client))
        found.append(TorchWorker(split.x_train[indices], split.y_train[indices]))
    return [InTurn(worker) for worker in found]


def deployed(config: Config, split: Split, folder: Path, **serving: Any) -> Any:
    """The result of a deployment, its clients threads of this process."""
    evaluates = config.evaluate_every > 0
    prepare(config, folder / "prepared", split)
    ready = Config.read(folder / "prepared" / CONFIG)
    with served(ready, folder / "run", Serving(evaluator=evaluates, **serving)) as (address, wait):
        with joined(address, workers(split, evaluates), folder / "work", 0 if evaluates else 1) as ended:
            pass
        assert all(isinstance(end, str) for end in ended), ended
        wait()
    return load_result(folder / "run")


def settled(record: Round) -> Round:
    """A record without the clock."""
    return replace(record, seconds=0.0, seconds_evaluating=0.0)


def both(values: dict[str, Any], split: Split, folder: Path) -> tuple[Any, Any]:
    config = Config.make(
        {"model": "logistic", "rounds": 4, "cohort": 1.0, "engine": "eager", "seed": 5, "clients": 4, **values}
    )
    arguments = config.model_dump(exclude={"data", "partition", "clients", "holdout", "split_seed", "local", "initial"})
    simulated = fw.simulate(**arguments, data=split, local=config.local.value())
    return simulated, deployed(config, split, folder)


ALGORITHMS = ["fedavg", "fedprox(mu=0.1, adaptive=True)", "scaffold", "fedadam(server_lr=0.03)", "mime"]
OTHERS = [
    "fedprox(mu=0.1)", "scaffold(option=1)", "fedyogi(server_lr=0.03)", "fedadagrad(server_lr=0.1)", "fedavgm(momentum=0.9)",
    "fednova", "feddyn(alpha=0.1)", "qfedavg(q=0.5)", "mime-lite", "fedsgd(server_lr=0.1)", "fedavg(reduce=median)",
    "fedavg(weighting='uniform')", "fedavg(reduce=krum(f=0))",
]  # fmt: skip
BLOCKS = [
    "fedadam(server_lr=0.03)", "mime",
    *(pytest.param(f"fedavg{how}", marks=pytest.mark.slow) for how in ("", "(reduce=median)", "(reduce=krum(f=0))")),
    pytest.param("scaffold", marks=pytest.mark.slow),
]  # fmt: skip
CASES = [*ALGORITHMS, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]


@pytest.mark.parametrize("algorithm", CASES)
def test_same_bits_as_the_simulation(algorithm: str, split: Split, tmp_path: Path) -> None:
    simulated, real = both({"algorithm": algorithm}, split, tmp_path)
    assert real.model_hash == simulated.model_hash
    assert [settled(r) for r in real.history] == [settled(r) for r in simulated.history]
    assert settled(real.start) == settled(simulated.start)


@pytest.mark.parametrize("algorithm", BLOCKS)
def test_same_bits_of_a_model_that_lies_in_files(
    algorithm: str, split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one from 8 MiB up does, in blocks."""
    monkeypatch.setattr(opening, "LARGE", 0)
    monkeypatch.setattr(blocks, "VALUES", 100)
    simulated, real = both({"algorithm": algorithm}, split, tmp_path)
    assert real.model_hash == simulated.model_hash
    assert [settled(r) for r in real.history] == [settled(r) for r in simulated.history]
    for name, value in simulated.weights.items():
        assert np.array_equal(value, real.weights[name]), name


def test_same_bits_when_cohorts_are_drawn_and_some_work_is_lost(split: Split, tmp_path: Path) -> None:
    values = {"cohort": 2, "effort": "stragglers(share=0.5, drop=True)", "rounds": 6}
    simulated, real = both(values, split, tmp_path)
    assert real.model_hash == simulated.model_hash
    assert any(r.dropped for r in real.history)
    assert [settled(r) for r in real.history] == [settled(r) for r in simulated.history]


def test_same_bits_of_a_model_with_buffers(tmp_path: Path) -> None:
    split = data.partition(data.load("digits"), "iid", clients=3, seed=1)
    values = {"model": "2nn-bn", "rounds": 2, "clients": 3, "local": {"batch_size": 50}}
    simulated, real = both(values, split, tmp_path)
    assert real.model_hash == simulated.model_hash
    for name, value in simulated.weights.items():
        assert np.array_equal(value, real.weights[name]), name

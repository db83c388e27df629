# SPDX-License-Identifier: Apache-2.0
"""Engines that are tried, and where a run's time goes."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fedweave as fw
from fedweave.app.report import write_report
from fedweave.app.settings import amend
from fedweave.driver.tuning import tuned
from fedweave.engines import Block, Job, calibrating
from fedweave.engines.calibrating import Candidate, Timing, calibrate, candidates
from fedweave.errors import UsageError
from fedweave.simulation import load_result


class Clock:
    """A clock that moves when somebody works."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Slow:
    """An engine that takes so many seconds for each client, and some more for the first job."""

    name = "slow"
    memory = fw.Arrays()

    def __init__(self, clock: Clock, each: float, first: float = 0.0) -> None:
        self.clock, self.each, self.first = clock, each, first
        self.closed = False
        self.about = f"{each} s a client"

    def train(self, job: Job) -> Iterator[Block]:
        self.clock.now += self.each * len(job.clients) + self.first
        self.first = 0.0
        assert len(job.clients) == len(job.efforts)
        yield Block(0, len(job.clients), None, None)  # type: ignore[arg-type]

    def evaluate(self, state: Any, buffers: Any) -> dict[str, float]:
        return {}

    def close(self) -> None:
        self.closed = True


def job(clients: int) -> Job:
    numbers = np.arange(clients)
    return Job(1, numbers, fw.FedAvg(), fw.State(weights=np.zeros(1)), np.zeros(0), [fw.Local()] * clients)


@given(
    each=st.lists(st.floats(1e-4, 2.0), min_size=1, max_size=4, unique=True),
    first=st.floats(0, 5),
    clients=st.integers(1, 300),
    seconds=st.floats(0.1, 20),
)
def test_the_fastest_comes_first_and_counts_a_whole_round(
    each: list[float], first: float, clients: int, seconds: float
) -> None:
    clock, made = Clock(), dict[Candidate, Slow]()
    patch = pytest.MonkeyPatch()
    patch.setattr(calibrating, "time", clock)
    try:
        tried = [Candidate("eager", k + 1) for k in range(len(each))]

        def make(candidate: Candidate) -> Any:
            made[candidate] = Slow(clock, each[candidate.workers - 1], first)
            return made[candidate]

        found = list(calibrate(make, job(clients), tried, seconds))
    finally:
        patch.undo()
    assert [t.candidate.workers for t in found] == [1 + k for k in np.argsort(each, kind="stable")]
    for timing in found:
        assert timing.seconds == pytest.approx(each[timing.candidate.workers - 1] * clients, rel=1e-6)
    assert all(engine.closed for engine in made.values())


def test_what_cannot_be_had_comes_last_with_its_reason() -> None:
    tried = [Candidate("vectorized", 1), Candidate("eager", 1)]
    clock = Clock()
    found = list(calibrate(lambda c: "no" if c.engine == "vectorized" else Slow(clock, 1.0), job(2), tried, 0.01))  # type: ignore[arg-type, return-value]
    assert [t.candidate for t in found] == [tried[1], tried[0]]
    assert found[1] == Timing(tried[0], None, "no")


@pytest.mark.parametrize(("most", "counts"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])])
def test_processes_that_are_tried(most: int, counts: list[int]) -> None:
    assert [c.workers for c in candidates(["eager"], most)] == counts


def digits() -> fw.data.Split:
    return fw.data.partition(fw.data.load("digits"), fw.IID(), clients=20, seed=0)


def test_a_measured_run_tries_with_its_own_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is fastest with another number of threads may be slow in the run."""
    seen: list[int] = []

    def tried(*arguments: Any) -> list[Timing]:
        seen.append(torch.get_num_threads())
        return tuned(*arguments, 0.05)

    monkeypatch.setattr("fedweave.driver.run.tuned", tried)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        fw.simulate(model="logistic", data=digits(), cohort=4, rounds=1, engine="measure", threads=1)
    finally:
        torch.set_num_threads(before)
    assert seen == [1]


def test_a_measured_run_names_what_was_found_and_goes_on_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedweave.driver.tuning.SECONDS", 0.05)
    told: list[Any] = []
    arguments: dict[str, Any] = {"model": "logistic", "data": digits(), "cohort": 8, "algorithm": "scaffold", "rounds": 2}
    result = fw.simulate(engine="measure", out=tmp_path / "run", observer=told.append, **arguments)
    assert result.config.engine in ("eager", "vectorized")
    assert result.config.workers is not None
    assert "measured: " in told[0].engine
    named = tomllib.loads((tmp_path / "run" / "config.toml").read_text())
    assert (named["engine"], named["workers"]) == (result.config.engine, result.config.workers)
    again = fw.simulate(engine=result.config.engine, **arguments)
    assert again.model_hash == result.model_hash
    more = fw.resume(tmp_path / "run", rounds=4)
    assert more.model_hash == fw.simulate(engine=result.config.engine, **(arguments | {"rounds": 4})).model_hash


CONFIG = """# my run
data = "digits"  # bundled
clients = 10
model = "logistic"
cohort = 4

[local]
lr = 0.1
engine = "not this one"
"""


def test_a_configuration_is_amended_and_else_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(CONFIG)
    amend(path, {"engine": "eager", "workers": 2})
    text = path.read_text()
    assert text == CONFIG.replace("cohort = 4\n", 'cohort = 4\nengine = "eager"\nworkers = 2\n')
    amend(path, {"engine": "vectorized", "workers": 1})
    assert path.read_text() == text.replace('"eager"', '"vectorized"').replace("workers = 2", "workers = 1")
    bare = tmp_path / "bare.toml"
    bare.write_text("clients = 3")
    amend(bare, {"workers": 1})
    assert tomllib.loads(bare.read_text()) == {"clients": 3, "workers": 1}


def test_a_profile_is_all_of_the_time_and_in_the_report(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"model": "2nn", "data": digits(), "cohort": 8, "rounds": 3, "algorithm": "fedprox(mu=0.1)"}
    result = fw.simulate(profile=True, out=tmp_path / "run", engine="eager", **arguments)
    assert result.model_hash == fw.simulate(engine="eager", **arguments).model_hash
    parts = result.profile
    assert parts is not None
    assert {"local steps", "correct", "data", "reduce", "evaluation", "store", "everything else"} <= set(parts)
    assert all(seconds >= 0 for seconds in parts.values())
    assert list(parts.values()) == sorted(parts.values(), reverse=True)
    assert all(parts[name] > 0 for name in ("local steps", "correct", "data", "reduce", "server step", "evaluation", "store"))
    assert parts["local steps"] > parts["reduce"]
    assert load_result(tmp_path / "run").profile == pytest.approx(parts, abs=1e-6)
    assert "Where the time went" in write_report(tmp_path / "run").read_text()
    plain = fw.simulate(profile=True, engine="vectorized", **(arguments | {"algorithm": "fedavg", "model": "logistic"})).profile
    assert plain is not None
    assert plain["correct"] == 0
    assert plain["local steps"] > 0
    assert fw.simulate(**arguments).profile is None


def test_what_is_measured_must_be_possible() -> None:
    with pytest.raises(UsageError, match="threads is 2 and workers is 2"):
        fw.simulate(model="logistic", data=digits(), engine="measure", threads=2, workers=2)

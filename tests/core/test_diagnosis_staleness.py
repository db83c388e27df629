# SPDX-License-Identifier: Apache-2.0
"""Asynchronous runs are looked at as synchronous ones are, and what staleness does to them is named."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fedweave as fw
from fedweave.app.diagnose import diagnosis_of, run_of
from fedweave.diagnosis import Observed, Seen, observed
from fedweave.diagnosis.diagnosing import diagnose
from fedweave.diagnosis.rounds import together
from fedweave.diagnosis.run import Run, Verdict
from fedweave.diagnosis.staleness import staleness
from fedweave.store import RunStore

EVEN = "population(speed=100, jitter=lognormal(median=1, sigma=0.3))"


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(20, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.line(x)


def squares(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return ((output[:, 0] - y) ** 2).mean()


def lines(clients: int = 30) -> fw.data.Split:
    """Clients that all know the same line, with noise: nothing is wrong with them."""
    draw = np.random.default_rng(8)
    truth, held = draw.normal(size=20), []
    for _ in range(clients):
        x = draw.normal(size=(40, 20)).astype(np.float32)
        held.append((x, (x @ truth + 0.3 * draw.normal(size=40)).astype(np.float32)))
    return fw.data.from_clients(held)


def run(out: Path | None, policy: str, **options: Any) -> fw.Result:
    settings: dict[str, Any] = {
        "model": Line, "data": lines(), "loss": squares, "population": EVEN, "cohort": 10, "rounds": 40, "threads": 1,
        "engine": "vectorized", "local": fw.Local(lr=0.03, epochs=5, batch_size=None), "evaluate_every": 0,
        "initial": {"line.weight": np.zeros((1, 20), np.float32)},
    }  # fmt: skip
    return fw.simulate(policy=policy, **(settings | options), out=out)


def kept(folder: Path) -> list[Observed]:
    store = RunStore.open(folder, reading=True)
    try:
        return store.observed(10**6)
    finally:
        store.close()


@pytest.mark.parametrize("policy", ["fedbuff(buffer=3, max_staleness=4)", "fedasync(alpha=0.5)"])
@pytest.mark.parametrize("reduce", ["mean", "median"])
def test_to_look_changes_no_bit_and_sees_what_entered_each_step(tmp_path: Path, policy: str, reduce: str) -> None:
    uneven = {"population": "population(speed=lognormal(median=100, sigma=1), dropout=0.1)", "rounds": 12}
    if reduce != "mean":
        uneven["algorithm"] = f"fedavg(reduce={reduce})"
    looked = run(tmp_path / "looked", policy, **uneven)
    blind = run(None, policy, **uneven)
    off = run(tmp_path / "off", policy, diagnostics=False, **uneven)
    assert [r.model_hash for r in looked.history] == [r.model_hash for r in blind.history]
    assert off.model_hash == blind.model_hash
    assert kept(tmp_path / "off") == []
    rounds = kept(tmp_path / "looked")
    assert [one.number for one in rounds] == list(range(1, 13))
    for one, record in zip(rounds, looked.history, strict=True):
        assert one.client.tolist() == list(record.cohort)
        assert one.staleness.tolist() == list(record.staleness)
        assert int(one.steps.sum()) == record.steps
        assert int(one.examples.sum()) == record.examples
        weighted = float(one.examples @ one.loss.astype(float)) / record.examples
        assert weighted == pytest.approx(record.metrics["train_loss"], rel=1e-5)
        assert (one.norm > 0).all()
    assert max(int(one.staleness.max()) for one in rounds) > 0


def test_an_update_is_seen_as_it_was_sent(tmp_path: Path) -> None:
    """The first step of FedBuff is the mean of its clients' changes; each of FedAsync mixes alpha of the one."""
    begun = run(tmp_path / "buff", "fedbuff(buffer=4)", rounds=1)
    moved = float(np.linalg.norm(begun.weights["line.weight"]))
    assert kept(tmp_path / "buff")[0].figures["update_norm"] == pytest.approx(moved, rel=1e-4)
    begun = run(tmp_path / "async", "fedasync(alpha=0.5)", rounds=1)
    moved = float(np.linalg.norm(begun.weights["line.weight"]))
    assert 0.5 * kept(tmp_path / "async")[0].norm[0] == pytest.approx(moved, rel=1e-4)


def test_what_was_trained_ahead_of_a_stop_is_seen_after_it(tmp_path: Path) -> None:
    run(tmp_path / "whole", "fedbuff(buffer=3)", rounds=8)
    run(tmp_path / "parts", "fedbuff(buffer=3)", rounds=3)
    fw.resume(tmp_path / "parts", model=Line, loss=squares, rounds=8)
    parts, whole = ([(one.number, one.packed()) for one in kept(tmp_path / name)] for name in ("parts", "whole"))
    assert parts == whole


@pytest.mark.parametrize("policy", ["fedbuff(buffer=5, concurrency=25, staleness=constant())"])
def test_a_model_that_swings_because_it_hears_too_late_is_named(tmp_path: Path, policy: str) -> None:
    late = run(tmp_path / "late", policy)
    found = diagnosis_of(late, late.split)
    assert [verdict.check for verdict in found.findings] == ["staleness"]
    verdict = found.findings[0]
    assert verdict.numbers["later"] < -0.3
    assert "the model swings" in verdict.words
    assert "concurrency" in verdict.remedy
    # The remedy is one: with fewer clients at work, nothing is wrong and the loss is lower.
    cured = run(tmp_path / "cured", "fedbuff(buffer=5, concurrency=6, staleness=constant())")
    assert [v.check for v in diagnosis_of(cured, cured.split).findings] == []
    assert cured.history[-1].metrics["train_loss"] < late.history[-1].metrics["train_loss"] / 3


def test_steps_of_one_update_are_looked_at_together(tmp_path: Path) -> None:
    result = run(tmp_path / "run", "fedasync(alpha=0.3, concurrency=5)", rounds=60)
    found = diagnosis_of(result, result.split)
    assert found.rounds == 60
    assert found.findings == ()
    assert {v.check: v.state for v in found.verdicts}["bad clients"] == "clear"
    whole = together(kept(tmp_path / "run"), 10)
    assert [one.begins for one in whole] == [1, *(one.number + 1 for one in whole[:-1])]
    assert whole[-1].number == 60
    assert all(len(set(one.client.tolist())) == len(one) <= 10 for one in whole)
    for one in whole:
        parts = [step for step in kept(tmp_path / "run") if one.begins <= step.number <= one.number]
        assert sorted(one.client.tolist()) == sorted(int(step.client[0]) for step in parts)
        mean = sum(step.weight[0] * step.mean.astype(float) for step in parts) / sum(step.weight[0] for step in parts)
        np.testing.assert_allclose(one.mean, mean, rtol=1e-4, atol=1e-6)
    gap = [one for one in kept(tmp_path / "run") if one.number != 3]
    assert together(gap, 10)[0].number == 2


# Updates by hand ---------------------------------------------------------------------------------------------------------


def planted(pull: float, steps: int = 20, seed: int = 0, noise: float = 1.0) -> Run:
    """Steps of eight updates, each along the course, and the stale ones of them along ``pull`` of it."""
    draw, rows = np.random.default_rng(seed), []
    course = draw.normal(size=251) / np.sqrt(251)
    for number in range(1, steps + 1):
        ages = draw.permutation([0, 0, 1, 1, 9, 9, 10, 12])
        seen = []
        for k, age in enumerate(ages.tolist()):
            sketch = (pull if age > 5 else 1.0) * course + noise * draw.normal(size=251) / np.sqrt(251)
            norm = float(np.linalg.norm(sketch))
            seen.append(Seen(8 * (number % 3) + k, 1.0, 5, 10, 1.0, norm, sketch.astype(np.float32), staleness=age))
        rows.append(observed(number, seen, 0))
    return Run(rows, [], None, "rounds", "fedavg", fw.Local(), asynchronous=True)


def verdict_of(run: Run) -> Verdict:
    return {v.check: v for v in diagnose(run).verdicts}["staleness"]


def test_stale_updates_that_pull_away_or_against_are_named() -> None:
    # Of seven others four go along the course and three along pull; all have noise of the course's length.
    for pull in (-0.5, 0.0):
        others = (4 + 3 * pull) / 7
        cosine = pull * others / math.sqrt((pull**2 + 1) * (others**2 + 1 / 7))
        verdict = verdict_of(planted(pull))
        assert verdict.state == "found"
        assert "pull away" in verdict.words
        assert verdict.numbers["p"] == pytest.approx(0.001)
        assert verdict.numbers["cosine_stale"] == pytest.approx(cosine, abs=0.05)
        assert verdict.numbers["largest"] == 12


@pytest.mark.parametrize("noise", [0.3, 1.0, 5.0])
def test_stale_updates_that_go_along_are_not_blamed(noise: float) -> None:
    for seed in range(10):
        assert verdict_of(planted(1.0, seed=seed, noise=noise)).state == "clear"


def test_where_updates_are_equally_old_or_few_nothing_is_said() -> None:
    run = planted(-0.5)
    even = [replace(one, staleness=np.zeros_like(one.staleness)) for one in run.observed]
    assert staleness(replace(run, observed=even)).state == "unknown"
    assert staleness(replace(run, observed=run.observed[:3])).state == "unknown"
    assert "staleness" not in {v.check for v in diagnose(replace(run, asynchronous=False)).verdicts}


def test_of_a_run_it_is_known_whether_it_is_asynchronous(tmp_path: Path) -> None:
    flows = run(tmp_path / "flows", "fedbuff(buffer=3)", rounds=1)
    rounds = run(tmp_path / "rounds", "synchronous", rounds=1)
    assert run_of(flows, flows.split).asynchronous
    assert not run_of(rounds, rounds.split).asynchronous

# SPDX-License-Identifier: Apache-2.0
"""To look at a run changes nothing of it, and what was seen is kept as its rounds are, across kills and resumes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedweave as fw
from fedweave.diagnosis import Observed
from fedweave.store import RunStore

KILLING = Path(__file__).parent / "killing_observed.py"


def digits(how: Any = fw.Dirichlet(alpha=0.5), clients: int = 20) -> fw.data.Split:
    return fw.data.partition(fw.data.load("digits"), how, clients=clients, seed=1)


def begin(out: Path | None, **options: Any) -> fw.Result:
    arguments = {"model": "logistic", "data": digits(), "local": fw.Local(lr=0.1), "cohort": 5, "rounds": 6, "threads": 1}
    return fw.simulate(**(arguments | {"checkpoint_every": 0.0} | options), out=out)


def kept(folder: Path, until: int = 10**6) -> list[Observed]:
    store = RunStore.open(folder, reading=True)
    try:
        return store.observed(until)
    finally:
        store.close()


def columns(rounds: list[Observed]) -> list[Any]:
    return [(one.number, one.packed(), dict(one.figures)) for one in rounds]


ALGORITHMS = ["fedavg", "fedprox(mu=0.1)", "scaffold", "fedsgd", "mime", "mime-lite", "fednova", "fedadam", "qfedavg", "ditto"]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_to_look_changes_no_bit(tmp_path: Path, algorithm: str) -> None:
    looked = begin(tmp_path / "looked", algorithm=algorithm, rounds=2)
    blind = begin(None, algorithm=algorithm, rounds=2)
    assert [r.model_hash for r in looked.history] == [r.model_hash for r in blind.history]
    rounds = kept(tmp_path / "looked")
    assert [one.number for one in rounds] == [1, 2]
    for one, record in zip(rounds, looked.history, strict=True):
        assert one.client.tolist() == list(record.cohort)
        assert int(one.steps.sum()) == record.steps
        assert int(one.examples.sum()) == record.examples
        if record.steps:
            weighted = float(one.examples @ one.loss.astype(float)) / record.examples
            assert weighted == pytest.approx(record.metrics["train_loss"], rel=1e-5)
        assert np.isfinite(one.cosine).all()
        assert (one.figures["exact"] == 1.0) == (algorithm in ("fedsgd", "mime-lite"))


def test_it_can_be_turned_off(tmp_path: Path) -> None:
    blind = begin(tmp_path / "blind", rounds=2, diagnostics=False)
    assert kept(tmp_path / "blind") == []
    assert begin(tmp_path / "looked", rounds=2).model_hash == blind.model_hash


def test_what_is_seen_is_what_was_sent(tmp_path: Path) -> None:
    """A forged update is seen as it was forged."""
    flipped = begin(tmp_path / "run", data=digits(fw.IID(), 6), cohort=6, attack="bit-flip", byzantine=1, rounds=3)
    clean = begin(tmp_path / "clean", data=digits(fw.IID(), 6), cohort=6, rounds=3)
    bad = [one.client[np.argmin(one.cosine)] for one in kept(tmp_path / "run")]
    assert len(set(bad)) == 1
    first, honest = kept(tmp_path / "run")[0], kept(tmp_path / "clean")[0]
    place = int(np.flatnonzero(first.client == bad[0])[0])
    assert first.norm == pytest.approx(honest.norm)
    assert first.cosine[place] == pytest.approx(-honest.cosine[place], abs=1e-5)
    assert flipped.model_hash != clean.model_hash


def test_moved_as_far_as_was_seen(tmp_path: Path) -> None:
    start = begin(None, rounds=0).weights
    end = begin(tmp_path / "run", rounds=1).weights
    moved = np.concatenate([(end[name] - start[name]).ravel() for name in start])
    # The norm of a sketch is off by about sqrt(2 / 251) / 2 of it.
    assert kept(tmp_path / "run")[0].figures["update_norm"] == pytest.approx(float(np.linalg.norm(moved)), rel=0.2)


def test_refused_and_dropped_clients_are_not_seen(tmp_path: Path) -> None:
    result = begin(tmp_path / "run", effort="stragglers(share=0.5, drop=True)", rounds=2)
    for one, record in zip(kept(tmp_path / "run"), result.history, strict=True):
        assert record.dropped
        assert set(one.client.tolist()) == set(record.cohort) - set(record.dropped)


def test_an_algorithm_whose_vectors_cannot_be_compared_is_seen_without_them(tmp_path: Path) -> None:
    begin(tmp_path / "run", data=digits(fw.IID(), 3), model="2nn", algorithm="fedma(communicate=False)", cohort=3, rounds=3)
    for one in kept(tmp_path / "run"):
        assert len(one.mean) == 0
        assert np.isnan(one.norm).all()
        assert one.steps.sum() > 0


def test_a_prolonged_run_has_the_columns_of_one_that_was_not(tmp_path: Path) -> None:
    begin(tmp_path / "whole", rounds=6)
    begin(tmp_path / "parts", rounds=2)
    fw.resume(tmp_path / "parts", rounds=4)
    fw.resume(tmp_path / "parts", rounds=6)
    assert columns(kept(tmp_path / "parts")) == columns(kept(tmp_path / "whole"))


def test_rounds_after_the_last_checkpoint_are_not_read_twice(tmp_path: Path) -> None:
    """A round that is trained again replaces what was seen of it."""
    whole = begin(tmp_path / "whole", rounds=5)
    begin(tmp_path / "run", rounds=5)
    store = RunStore.open(tmp_path / "run")
    from fedweave.store import ledger

    with store._engine.begin() as connection:
        connection.execute(ledger._checkpoints.delete().where(ledger._checkpoints.c.round == 5))
    store.close()
    assert [one.number for one in kept(tmp_path / "run", 4)] == [1, 2, 3, 4]
    again = fw.resume(tmp_path / "run")
    assert again.model_hash == whole.model_hash
    assert columns(kept(tmp_path / "run")) == columns(kept(tmp_path / "whole"))


def test_kills_and_the_same_columns(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(KILLING), str(tmp_path), "5"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["kills"] >= 5
    assert all(disturbed == found["whole"] for disturbed in found["runs"])


def test_the_figures_are_kept_as_json_that_other_tools_read(tmp_path: Path) -> None:
    begin(tmp_path / "run", cohort=1, rounds=2)
    import sqlite3

    with sqlite3.connect(tmp_path / "run" / "ledger.sqlite3") as connection:
        rows = connection.execute("SELECT number, figures FROM observed ORDER BY number").fetchall()
    assert [number for number, _ in rows] == [1, 2]
    figures = json.loads(rows[0][1], parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert figures["pairwise"] is None
    assert figures["effective"] == 1.0

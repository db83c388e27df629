# SPDX-License-Identifier: Apache-2.0
"""A run that is killed, interrupted or prolonged ends with the same bits as one that was left alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from torch import nn

import fedweave as fw
from fedweave.config import Config
from fedweave.errors import MismatchError, StoreError, UsageError
from fedweave.simulation import load_result, run

KILLING = Path(__file__).parent / "killing.py"


@pytest.mark.parametrize(("kind", "kills"), [("synchronous", 50), ("asynchronous", 25)])
def test_many_kills_and_the_same_bits(kind: str, kills: int, tmp_path: Path) -> None:
    seed = int.from_bytes(os.urandom(4))
    print(f"seed {seed}")
    done = subprocess.run(
        [sys.executable, str(KILLING), str(tmp_path), str(kills), str(seed), kind], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["kills"] == kills
    assert sum(r["kills"] > 0 for r in found["runs"]) >= kills / 10
    for disturbed in found["runs"]:
        assert disturbed["hash"] == found["hash"]
        assert disturbed["history"] == disturbed["lines"] == found["history"]
        assert disturbed["metrics"] == found["metrics"]
        assert disturbed["status"] == "rounds"


def digits(clients: int = 10) -> fw.data.Split:
    return fw.data.partition(fw.data.load("digits"), fw.IID(), clients=clients, seed=0)


def begin(out: Path | None, **options) -> fw.Result:
    arguments = {"model": "logistic", "data": digits(), "local": fw.Local(lr=0.1), "cohort": 3, "rounds": 4, "threads": 1}
    return fw.simulate(**(arguments | options), out=out)


INTERRUPTED = """
import sys, fedweave as fw
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_resume import begin
result = begin(Path(sys.argv[1]), rounds=10**6, observer=lambda e: print(type(e).__name__, flush=True))
print(result.status, result.message)
"""


def test_control_c_finishes_the_round_and_says_how_to_go_on(tmp_path: Path) -> None:
    code = INTERRUPTED.format(tests=str(Path(__file__).parent))
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "run")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        while process.stdout.readline().strip() != "RoundStarted":
            pass
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "interrupted Interrupted after round" in rest
    assert f"fedweave resume {tmp_path / 'run'}" in rest
    stopped = load_result(tmp_path / "run")
    assert stopped.status == "interrupted"
    done = len(stopped.history)
    whole = begin(None, rounds=done + 3)
    went_on = fw.resume(tmp_path / "run", rounds=done + 3)
    assert went_on.model_hash == whole.model_hash
    assert [r.model_hash for r in went_on.history] == [r.model_hash for r in whole.history]


def test_a_finished_run_can_be_prolonged(tmp_path: Path) -> None:
    short = begin(tmp_path / "run", rounds=3, evaluate_every=2)
    again = fw.resume(tmp_path / "run")
    assert again.model_hash == short.model_hash
    assert again.status == "rounds"
    longer = fw.resume(tmp_path / "run", rounds=6)
    assert longer.model_hash == begin(None, rounds=6).model_hash
    assert load_result(tmp_path / "run").config.rounds == 6
    assert run(Config.read(tmp_path / "run" / "config.toml")).model_hash == longer.model_hash


def test_the_folder_holds_what_it_should(tmp_path: Path) -> None:
    result = begin(tmp_path / "run")
    assert (
        {"config.toml", "rounds.jsonl", "final.safetensors", "ledger.sqlite3", "blobs"}
        <= {path.name for path in (tmp_path / "run").iterdir()}
    )  # fmt: skip
    final = safetensors.numpy.load((tmp_path / "run" / "final.safetensors").read_bytes())
    assert set(final) == set(result.weights)
    assert all(np.array_equal(final[name], value) for name, value in result.weights.items())
    lines = [json.loads(line) for line in (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()]
    assert [line["number"] for line in lines] == [0, 1, 2, 3, 4]
    read = load_result(tmp_path / "run")
    assert read.history == result.history
    assert read.start == result.start
    assert (read.model_hash, read.status, read.message) == (result.model_hash, result.status, result.message)
    with pytest.raises(UsageError, match="without its model"):
        read.module()


def test_running_the_written_configuration_gives_the_same_model(tmp_path: Path) -> None:
    split = fw.data.partition(fw.data.load("digits"), fw.Dirichlet(alpha=0.5), clients=12, seed=5)
    local = fw.Local(lr=0.05, momentum=0.5, batch_size=None)
    result = begin(tmp_path / "first", data=split, local=local, seed=3, cohort=0.25, target=("accuracy", 0.99))
    again = run(Config.read(tmp_path / "first" / "config.toml"), out=tmp_path / "second")
    assert again.model_hash == result.model_hash
    first, second = (tmp_path / name / "config.toml" for name in ("first", "second"))
    assert first.read_text() == second.read_text()


def test_data_and_start_weights_of_ones_own_are_kept_with_the_run(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    held = []
    for size in (11, 17, 5):
        x = draw.normal(size=(size, 4)).astype(np.float32)
        held.append((x, (x.sum(1) > 0).astype(np.int64)))
    data = fw.data.from_clients(held, test=held[0])
    start = {k: v + 1 for k, v in begin(None, data=data, rounds=0).weights.items()}
    options = {"data": data, "initial": start}
    whole = begin(None, **options, rounds=6)
    begin(tmp_path / "run", **options, rounds=3)
    assert fw.resume(tmp_path / "run", rounds=6).model_hash == whole.model_hash
    rerun = run(Config.read(tmp_path / "run" / "config.toml").model_copy(update={"rounds": 6}))
    assert rerun.model_hash == whole.model_hash


def factory() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def test_python_objects_that_no_text_can_name_are_asked_for_again(tmp_path: Path) -> None:
    begin(tmp_path / "named", model=factory, rounds=1)
    assert fw.resume(tmp_path / "named", rounds=2).model_hash == begin(None, model=factory, rounds=2).model_hash
    begin(tmp_path / "nameless", model=lambda: factory(), rounds=1)
    with pytest.raises(UsageError, match="pass it again as model="):
        fw.resume(tmp_path / "nameless", rounds=2)
    with pytest.raises(UsageError, match="run it from Python"):
        run(load_result(tmp_path / "nameless").config)
    assert (
        fw.resume(tmp_path / "nameless", rounds=2, model=factory).model_hash == begin(None, model=factory, rounds=2).model_hash
    )
    with pytest.raises(MismatchError, match="Pass the same model="):
        fw.resume(tmp_path / "named", rounds=3, model="2nn")
    with pytest.raises(MismatchError, match="Pass the same split"):
        fw.resume(tmp_path / "named", rounds=3, data=digits(11))


def test_a_folder_with_a_run_is_not_written_over(tmp_path: Path) -> None:
    first = begin(tmp_path / "run", rounds=1)
    with pytest.raises(StoreError, match="already holds a run"):
        begin(tmp_path / "run", rounds=2)
    assert load_result(tmp_path / "run").model_hash == first.model_hash


def test_folders_that_hold_no_run(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no run"):
        fw.resume(tmp_path)
    (tmp_path / "ledger.sqlite3").write_bytes(b"no ledger at all, but long enough to be looked at" * 40)
    with pytest.raises(StoreError, match="cannot be read"):
        fw.resume(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        begin(tmp_path / "file" / "run")


def damage(folder: Path) -> list[Path]:
    blobs = sorted((folder / "blobs").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    for blob in blobs[-1:]:
        content = bytearray(blob.read_bytes())
        content[-5] ^= 1
        blob.write_bytes(content)
    return blobs


def test_a_damaged_checkpoint_is_named_and_its_removal_goes_back_to_the_one_before(tmp_path: Path) -> None:
    whole = begin(None, rounds=9)
    begin(tmp_path / "run", rounds=6, checkpoint_every=0.0)
    blobs = damage(tmp_path / "run")
    assert len(blobs) == 2
    with pytest.raises(StoreError, match="is corrupt") as caught:
        fw.resume(tmp_path / "run", rounds=9)
    assert str(blobs[-1]) in str(caught.value)
    blobs[-1].unlink()
    assert fw.resume(tmp_path / "run", rounds=9).model_hash == whole.model_hash


def test_without_any_checkpoint_it_says_so(tmp_path: Path) -> None:
    begin(tmp_path / "run", rounds=1)
    for blob in (tmp_path / "run" / "blobs").iterdir():
        blob.unlink()
    with pytest.raises(StoreError, match="no checkpoint left"):
        fw.resume(tmp_path / "run")


def test_a_round_that_comes_out_otherwise_is_told(tmp_path: Path) -> None:
    import sqlalchemy as sa

    begin(tmp_path / "run", rounds=4, checkpoint_every=0.0)
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'run' / 'ledger.sqlite3'}")
    with engine.begin() as connection:
        connection.execute(sa.text("DELETE FROM checkpoints WHERE round = 4"))
        connection.execute(sa.text("UPDATE rounds SET model_hash = 'else', record = json_set(record, '$.model_hash', 'else')"))
    engine.dispose()
    with pytest.warns(UserWarning, match="Round 4 came out otherwise"):
        fw.resume(tmp_path / "run")


def test_one_process_at_a_time(tmp_path: Path) -> None:
    from fedweave.store import RunStore

    begin(tmp_path / "run", rounds=1)
    store = RunStore.open(tmp_path / "run")
    try:
        with pytest.raises(StoreError, match="open in another process"):
            fw.resume(tmp_path / "run")
        assert len(load_result(tmp_path / "run").history) == 1
    finally:
        store.close()
    fw.resume(tmp_path / "run")
    unfinished = RunStore.open(tmp_path / "run")
    unfinished.rewind(1)
    unfinished.close()
    read = load_result(tmp_path / "run")
    assert (read.status, "In progress, or killed, after round 1" in read.message) == ("interrupted", True)

# SPDX-License-Identifier: Apache-2.0
"""Disks that are full, and an fsync that fails: nobody is told of what may not be on disk, and all goes on by itself."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checking import check
from deploying import Pull, configured, expected, joined, line, served

from fedweave.errors import StoreError
from fedweave.net import core
from fedweave.net.client import Session
from fedweave.net.own import OwnWorker

TIMES = int(os.environ.get("FEDWEAVE_KILLS", "20")) // 10
"""How often each thing goes wrong in a run."""
SEED = int(os.environ.get("FEDWEAVE_SEED", "0"))


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 8 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "fedweave-test", str(folder)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        why = getattr(error, "stderr", b"").decode().strip() or str(error)
        pytest.skip(f"a small tmpfs cannot be mounted, which takes root: {why}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> None:
    """Leave not a byte."""
    with (folder / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return int(answer.status) == 200
    except urllib.error.HTTPError:
        return False


def until(met: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not met():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


@pytest.mark.parametrize("size", [30, 40_000])
def test_a_disk_that_is_full_for_a_while(size: int, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small updates lie in the ledger, large ones in files, as what is sent does; with a checkpoint after each round."""
    monkeypatch.setattr(core, "PAUSE", 0.02)
    draw = np.random.default_rng(SEED)
    rounds, run = 20 + 30 * TIMES, small / "run"
    pulls = [Pull(k, size) for k in range(3)]
    degraded = 0
    with served(configured(tmp_path, size, 3, rounds), run) as (address, wait):
        port = json.loads((run / "serving.json").read_text())["http"]
        with joined(address, [OwnWorker(pull) for pull in pulls], tmp_path / "work") as ended:
            for _ in range(TIMES):
                goal = len(pulls[0].trained) + int(draw.integers(2, 20))
                assert until(lambda goal=goal: len(pulls[0].trained) >= goal, 60)
                time.sleep(float(draw.uniform(0, 0.05)))
                fill(small)
                degraded += until(lambda: not healthy(port), 2.0)
                trained = [list(pull.trained) for pull in pulls]
                time.sleep(0.1)
                # One more task may have been handed out before the disk was full, and none after.
                assert all(len(pull.trained) <= len(before) + 1 for pull, before in zip(pulls, trained, strict=True))
                (small / "filler").unlink()
                assert until(lambda: healthy(port), 10), "it does not go on by itself"
        assert all(isinstance(end, str) for end in ended), ended
        wait()
    assert degraded > TIMES // 2
    assert all(pull.trained == list(range(1, rounds + 1)) for pull in pulls)
    folders = {k: tmp_path / "work" / f"c{k + 1}" for k in range(3)}
    check(run, folders, rounds, dict.fromkeys(range(3), 10), lambda who: expected(pulls, rounds, who))
    lines = [json.loads(text) for text in (run / "rounds.jsonl").read_text().splitlines()]
    assert [one["number"] for one in lines] == list(range(1, rounds + 1))
    print(f"disk full {TIMES} times in {rounds} rounds of {size} values, noticed {degraded} times: 0 failures")


@pytest.mark.parametrize("size", [15_000, 400_000])
def test_a_clients_disk_that_is_full(size: int, small: Path, tmp_path: Path) -> None:
    """It ends and says why; the same command goes on once there is room. Updates lie in its journal, or large ones in files."""
    rounds, pull, stop = 6, Pull(0, size), threading.Event()
    with served(configured(tmp_path, size, 1, rounds), tmp_path / "run") as (address, wait):

        def live() -> str:
            session = Session(line(address, "c1", stop), OwnWorker(pull), small / "work", 1)
            try:
                return session.work()
            finally:
                session.line.channel.close()

        train = pull.train

        def filling(weights: Any, turn: Any) -> Any:
            if turn.round == 3:
                fill(small)
            return train(weights, turn)

        pull.train = filling  # type: ignore[method-assign]
        with pytest.raises(StoreError, match="cannot be written: No space left on device"):
            live()
        pull.train = train  # type: ignore[method-assign]
        with pytest.raises(StoreError, match="No space left on device"):
            live()
        (small / "filler").unlink()
        assert "6 rounds" in live()
        wait()
    # What was trained when the disk was full is trained again: nothing of it had left the machine.
    assert sorted({*pull.trained}) == list(range(1, rounds + 1))
    assert rounds < len(pull.trained) <= rounds + 2
    check(tmp_path / "run", {0: small / "work"}, rounds, {0: 10}, lambda who: expected([pull], rounds, who))


class Failing:
    """os.fsync, which fails now and then once it is told to."""

    def __init__(self, share: float) -> None:
        self.draw, self.share, self.failed = np.random.default_rng(SEED), share, 0
        self.lock, self.plain, self.armed = threading.Lock(), os.fsync, threading.Event()

    def __call__(self, file: int) -> None:
        with self.lock:
            fails = self.armed.is_set() and self.draw.random() < self.share
            self.failed += fails
        if fails:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self.plain(file)


@pytest.mark.parametrize("size", [30, 40_000])
def test_an_fsync_that_fails(size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On either side. A client whose journal cannot be written ends and says so; started again, it goes on."""
    monkeypatch.setattr(core, "PAUSE", 0.02)
    broken = Failing(0.1)
    monkeypatch.setattr(os, "fsync", broken)
    rounds, run = 10 * TIMES, tmp_path / "run"
    pulls = [Pull(k, size) for k in range(3)]
    stop, restarts = threading.Event(), [0, 0, 0]
    said: list[str] = []

    def live(k: int) -> None:
        while True:
            session = Session(line(address, f"c{k + 1}", stop), OwnWorker(pulls[k]), tmp_path / "work" / f"c{k + 1}", k + 1)
            try:
                session.work()
            except StoreError as error:
                said.append(str(error))
                restarts[k] += 1
            except KeyboardInterrupt:
                return
            else:
                return
            finally:
                session.line.channel.close()

    with served(configured(tmp_path, size, 3, rounds), run) as (address, wait):
        broken.armed.set()
        threads = [threading.Thread(target=live, args=(k,), daemon=True) for k in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        stop.set()
        wait()
    assert broken.failed > 3 * TIMES
    assert sum(restarts) > 0
    assert all("cannot be written: Input/output error" in text and "the same command goes on" in text for text in said)
    folders = {k: tmp_path / "work" / f"c{k + 1}" for k in range(3)}
    found = check(run, folders, rounds, dict.fromkeys(range(3), 10), lambda who: expected(pulls, rounds, who))
    assert found["acknowledged"] == 3 * rounds
    print(f"{broken.failed} fsyncs failed in {rounds} rounds of {size} values, {sum(restarts)} clients ended: 0 failures")


SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>
/* Fails one time in 25 while the file FAILING is there, and notes it there with a byte. */
static int fails(void) {
    int file = open(getenv("FAILING"), O_WRONLY | O_APPEND);
    if (file < 0) return 0;
    int now = drand48() < 0.04 && write(file, ".", 1) == 1;
    close(file);
    errno = EIO;
    return now;
}
int fsync(int file) { return fails() ? -1 : ((int (*)(int)) dlsym(RTLD_NEXT, "fsync"))(file); }
int fdatasync(int file) { return fails() ? -1 : ((int (*)(int)) dlsym(RTLD_NEXT, "fdatasync"))(file); }
"""


@pytest.mark.slow
def test_an_fsync_that_fails_within_sqlite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks for it: a library before the C library, which the coordinator's SQLite goes through too."""
    from test_faults import Trial

    shim, source, armed = tmp_path / "failing.so", tmp_path / "failing.c", tmp_path / "armed"
    source.write_text(SHIM)
    try:
        subprocess.run(["cc", "-shared", "-fPIC", "-o", str(shim), str(source), "-ldl"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a library cannot be compiled, which takes a C compiler: {error}")
    trial = Trial(tmp_path, 40_000, rounds=20 * TIMES)
    monkeypatch.setenv("LD_PRELOAD", str(shim))
    monkeypatch.setenv("FAILING", str(armed))

    def arm() -> None:
        if until((trial.run / "serving.json").exists, 60):
            armed.touch()

    thread = threading.Thread(target=arm)
    thread.start()
    found = trial.with_threads([])
    thread.join()
    failed = armed.stat().st_size
    assert failed > TIMES
    assert found["acknowledged"] == 3 * trial.rounds
    print(f"{failed} fsyncs of the coordinator and its SQLite failed in {trial.rounds} rounds: 0 failures")

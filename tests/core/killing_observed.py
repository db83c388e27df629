# SPDX-License-Identifier: Apache-2.0
"""Runs that are killed at random moments, and what was seen of their clients. A program of its own, like ``killing.py``.

    python killing_observed.py FOLDER KILLS

Prints one JSON object: a digest of all that is kept of the undisturbed run's rounds, the number of kills, and the digest of
each disturbed run.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import torch

import fedweave as fw
from fedweave.store import RunStore


def begin(folder: Path) -> None:
    split = fw.data.partition(fw.data.load("digits"), fw.Dirichlet(alpha=0.5), clients=20, seed=1)
    fw.simulate(
        model="logistic", data=split, local=fw.Local(lr=0.05), cohort=5, rounds=30, out=folder, checkpoint_every=0.05, threads=1
    )  # fmt: skip


def digest(folder: Path) -> str:
    store = RunStore.open(folder, reading=True)
    seen = store.observed(10**6)
    store.close()
    text = hashlib.sha256()
    for one in seen:
        text.update(json.dumps([one.number, sorted(one.figures.items())]).encode() + one.packed())
    return f"{len(seen)} {text.hexdigest()}"


def child(folder: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        try:
            fw.resume(folder) if (folder / "ledger.sqlite3").exists() else begin(folder)
        except fw.FedweaveError as error:
            if "before it began" not in str(error):
                raise
            begin(folder)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def main(root: Path, kills: int) -> None:
    torch.set_num_threads(1)
    began = time.monotonic()
    begin(root / "whole")
    length = time.monotonic() - began
    draw, done, runs = random.Random(0), 0, []
    while done < kills:
        folder = root / f"run-{len(runs)}"
        while True:
            pid, deadline, status = child(folder), time.monotonic() + draw.uniform(0.0, length / 2), None
            while status is None:
                ended, code = os.waitpid(pid, os.WNOHANG)
                if ended:
                    status = code
                elif time.monotonic() >= deadline and done < kills:
                    os.kill(pid, signal.SIGKILL)
                    _, status = os.waitpid(pid, 0)
                else:
                    time.sleep(0.001)
            if os.WIFSIGNALED(status):
                done += 1
            elif status == 0:
                break
            else:
                raise SystemExit("a run failed; see above")
        runs.append(digest(folder))
    print(json.dumps({"whole": digest(root / "whole"), "kills": done, "runs": runs}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

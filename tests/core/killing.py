# SPDX-License-Identifier: Apache-2.0
"""Runs that are killed at random moments and resumed, again and again. A program of its own: it forks, so that a run starts in
milliseconds, and must not carry the threads of a test process.

    python killing.py FOLDER KILLS SEED [synchronous | asynchronous]

Prints one JSON object: the hash of the undisturbed run, the number of kills, and for each disturbed run its final hash,
the hash of every round in rounds.jsonl, and how often it was killed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import torch

import fedweave as fw
from fedweave.simulation import load_result

ROUNDS = 60


@dataclass(frozen=True)
class Counting(fw.FedAvg):
    """FedAvg whose clients keep a vector of their own and whose server keeps a number: both must survive."""

    def init(self, weights):
        return fw.State(weights=weights, turns=0.0)

    def report(self, delta, work, ask, mine):
        kept = delta if mine is None else mine.kept * 0.5 + delta
        return fw.Update(delta=delta + 0.1 * kept, weight=work.examples), fw.Arrays(kept=kept)

    def step(self, state, aggregate, cohort):
        return fw.State(weights=state.weights + aggregate.delta, turns=state.turns + cohort.size)


POLICIES = {
    "synchronous": {},
    "asynchronous": {
        "policy": "fedbuff(buffer=4, concurrency=9, max_staleness=5)",
        "population": "population(speed=lognormal(median=50, sigma=1.0), dropout=0.1, garbage=0.05)",
        "sampling": "oort",
        "engine": "vectorized",
    },
}
KIND = sys.argv[4] if len(sys.argv) > 4 else "synchronous"


def begin(folder: Path, every: float) -> fw.Result:
    split = fw.data.partition(fw.data.load("digits"), fw.Dirichlet(alpha=0.5), clients=20, seed=1)
    return fw.simulate(
        model="2nn",
        data=split,
        algorithm=Counting(),
        local=fw.Local(lr=0.05, epochs=1, batch_size=10),
        cohort=5,
        rounds=ROUNDS,
        evaluate_every=7,
        out=folder,
        checkpoint_every=every,
        threads=1,
        **POLICIES[KIND],
    )


def child(folder: Path, every: float) -> int:
    """Begin or go on in a process of its own; returns its pid."""
    pid = os.fork()
    if pid:
        return pid
    try:
        if (folder / "ledger.sqlite3").exists():
            try:
                fw.resume(folder)
            except fw.FedweaveError as error:
                if "before it began" not in str(error):
                    raise
                begin(folder, every)
        else:
            begin(folder, every)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def main(root: Path, kills: int, seed: int) -> None:
    torch.set_num_threads(1)
    draw = random.Random(seed)
    began = time.monotonic()
    undisturbed = begin(root / "undisturbed", 10.0)
    length = time.monotonic() - began
    # However slow the machine is just now, several runs are disturbed.
    done, runs, most = 0, [], max(1, kills // 5)
    while done < kills:
        folder, here = root / f"run-{len(runs)}", 0
        every = draw.choice([0.0, 0.05, 0.2])
        while True:
            pid = child(folder, every)
            # Enough of the run is left to itself that it gets on, and some kills come at its very start.
            deadline = time.monotonic() + draw.uniform(0.0, length) * draw.choice([0.2, 1.0])
            status = None
            while status is None:
                ended, code = os.waitpid(pid, os.WNOHANG)
                if ended:
                    status = code
                elif time.monotonic() >= deadline and done < kills and here < most:
                    os.kill(pid, signal.SIGKILL)
                    _, status = os.waitpid(pid, 0)
                else:
                    time.sleep(0.001)
            if os.WIFSIGNALED(status):
                done, here = done + 1, here + 1
            elif status == 0:
                break
            else:
                raise SystemExit("a run failed; see above")
        result = load_result(folder)
        lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
        runs.append(
            {
                "hash": result.model_hash,
                "history": [r.model_hash for r in result.history],
                "lines": [line["model_hash"] for line in lines if line["number"] > 0],
                "metrics": [r.metrics for r in result.history],
                "kills": here,
                "status": result.status,
            }
        )
    summary = {
        "hash": undisturbed.model_hash,
        "history": [r.model_hash for r in undisturbed.history],
        "metrics": [r.metrics for r in undisturbed.history],
        "kills": done,
        "runs": runs,
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))

# SPDX-License-Identifier: Apache-2.0
"""Waiting for everybody, for the first, for a while, or for nobody: accuracy against hours on the clients' clock.

    python reproductions/uneven.py [--seeds 0 1] [--spreads high low]    run what has no line in uneven/results.jsonl yet
    python reproductions/uneven.py --table                               the table, from all that was run
    python reproductions/uneven.py --figures                             the curves, as SVG, beside the results

``uneven/high.toml`` and ``uneven/low.toml`` differ in how much the speeds of clients do. For one spread the same on a page:

    fedweave compare synchronous "over-selection(factor=1.3)" "deadline(seconds=8)" "fedbuff(buffer=5)" --data mnist \\
        --partition "bycolumn(column='writer')" --model 2nn --cohort 20 --rounds 600 --target accuracy=0.9 --epochs 2 \\
        --batch-size 20 --population "population(speed=lognormal(median=50, sigma=1.5), dropout=0.05)"
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from fedweave.app.facts import records, virtual_to
from fedweave.config import Config
from fedweave.history import Target, rounds_to
from fedweave.simulation import run

sys.path.insert(0, str(Path(__file__).parent))
from curves import chart

HERE = Path(__file__).parent / "uneven"
RESULTS = HERE / "results.jsonl"
POLICIES = {
    "synchronous": "synchronous",
    "over-selection, 130%": "over-selection(factor=1.3)",
    "deadline, 8 s": "deadline(seconds=8)",
    "deadline, 8 s, late work kept": "deadline(seconds=8, late='keep')",
    "FedBuff, K = 5": "fedbuff(buffer=5)",
}


def lines() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()] if RESULTS.exists() else []


def train(spreads: list[str], seeds: list[int]) -> None:
    done = {(line["spread"], line["policy"], line["seed"]) for line in lines()}
    for spread in spreads:
        for seed in seeds:
            for label, policy in POLICIES.items():
                if (spread, label, seed) in done:
                    continue
                base = Config.read(HERE / f"{spread}.toml")
                result = run(base.model_copy(update={"policy": policy, "seed": seed, "split_seed": 0}))
                history, target = records(result), Target.of(base.target)
                seconds = virtual_to(history, target)
                line = {
                    "spread": spread,
                    "policy": label,
                    "seed": seed,
                    "hours": None if seconds is None else seconds / 3600,
                    "rounds": rounds_to(history, target),
                    "updates": sum(len(r.cohort) - len(r.dropped) for r in result.history if not r.staleness)
                    + sum(len(r.staleness) for r in result.history),
                    "asked": sum(len(r.cohort) + (len(r.dropped) if r.staleness else 0) for r in result.history),
                    "gigabytes": sum(r.bytes_down + r.bytes_up for r in result.history) / 1e9,
                    "curve": [
                        [round((r.virtual_seconds or 0) / 3600, 5), round(r.metrics["accuracy"], 4)]
                        for r in history
                        if "accuracy" in r.metrics
                    ],
                }
                with RESULTS.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
                print(spread, label, seed, line["hours"], line["rounds"], flush=True)


def table() -> None:
    print("| spread | policy | minutes to 90% | against synchronous | rounds | updates used | GB | seeds |\n|" + "---|" * 8)
    for spread in ("high", "low"):
        waits: dict[int, float] = {}
        for label in POLICIES:
            found = [line for line in lines() if (line["spread"], line["policy"]) == (spread, label) and line["hours"]]
            if not found:
                continue
            minutes = {line["seed"]: 60 * line["hours"] for line in found}
            waits = waits or minutes
            ratio = statistics.mean(waits[seed] / value for seed, value in minutes.items() if seed in waits)
            mean = {key: statistics.mean(line[key] for line in found) for key in ("rounds", "updates", "gigabytes")}
            print(
                f"| {spread} | {label} | {statistics.mean(minutes.values()):.2f} | {ratio:.2f}x | {mean['rounds']:.1f} | "
                f"{mean['updates']:.0f} | {mean['gigabytes']:.2f} | {len(found)} |"
            )


def figures() -> None:
    for spread in ("high", "low"):
        series = {
            label: [(60 * hours, 100 * accuracy) for hours, accuracy in line["curve"]]
            for label in POLICIES
            for line in lines()
            if (line["spread"], line["policy"], line["seed"]) == (spread, label, 0)
        }
        if series:
            name = HERE / f"{spread}.svg"
            name.write_text(chart(series, "minutes on the clients' clock", "test accuracy (%)"), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--spreads", nargs="+", default=["high", "low"])
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--figures", action="store_true")
    arguments = parser.parse_args()
    if arguments.table:
        table()
    elif arguments.figures:
        figures()
    else:
        train(arguments.spreads, arguments.seeds)


if __name__ == "__main__":
    main()

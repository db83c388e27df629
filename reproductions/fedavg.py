# SPDX-License-Identifier: Apache-2.0
"""Rounds to a target accuracy on MNIST, as in McMahan et al., AISTATS 2017, tables 1 and 2.

    python reproductions/fedavg.py --list                     what there is
    python reproductions/fedavg.py 2nn-iid --lrs 0.1 0.215    a learning-rate grid on seed 0
    python reproductions/fedavg.py 2nn-iid --seeds 0 1 2      the configuration's own learning rate, on several seeds
    python reproductions/fedavg.py --table                    the table, from all that was run

Each experiment is a configuration in ``fedavg/``, which ``fedweave run`` takes as well. Every run adds a line to
``fedavg/results.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from fedweave.config import Config
from fedweave.history import Round
from fedweave.simulation import run

HERE = Path(__file__).parent / "fedavg"
RESULTS = HERE / "results.jsonl"

PUBLISHED = {
    "2nn-iid-fedsgd": (1474, "table 1: 2NN, B = inf, E = 1, C = 0.1, IID"),
    "2nn-iid": (87, "table 1: 2NN, B = 10, E = 1, C = 0.1, IID"),
    "2nn-shards": (664, "table 1: 2NN, B = 10, E = 1, C = 0.1, non-IID"),
    "cnn-iid-fedsgd": (626, "table 2: CNN, FedSGD, IID"),
    "cnn-iid-e1": (34, "table 2: CNN, B = 10, E = 1, IID"),
    "cnn-iid-e5": (20, "table 2: CNN, B = 10, E = 5, IID"),
    "cnn-iid-e5-once": (20, "the same, one split of the data per round"),
}
"""Rounds to target in the paper, and where it says so."""


def config(name: str, lr: float | None, seed: int, threads: int | None) -> Config:
    """The experiment's configuration with another learning rate (the server's, in FedSGD), seed or number of threads."""
    values = Config.read(HERE / f"{name}.toml").model_dump()
    values |= {"seed": seed, "threads": threads}
    if lr is not None and values["algorithm"].startswith("fedsgd"):
        values["algorithm"] = f"fedsgd(server_lr={lr})"
    elif lr is not None:
        values["local"]["lr"] = lr
    return Config.make(values)


def learning_rate(used: Config) -> float:
    return float(used.algorithm.partition("=")[2].rstrip(")")) if used.algorithm.startswith("fedsgd") else used.local.lr


def one(name: str, lr: float | None, seed: int, threads: int | None) -> None:
    used = config(name, lr, seed, threads)
    best = 0.0

    def tell(event: object) -> None:
        nonlocal best
        if isinstance(event, Round) and "accuracy" in event.metrics:
            best = max(best, event.metrics["accuracy"])
            if event.number % 50 == 0 or "cnn" in name:
                print(f"  {name} lr {learning_rate(used)} seed {seed}: round {event.number}, best {best:.4f}", flush=True)

    began = time.monotonic()
    result = run(used, observer=tell)
    line = {
        "name": name,
        "lr": learning_rate(used),
        "seed": seed,
        "threads": result.config.threads,
        "rounds_to_target": result.rounds_to_target,
        "rounds": len(result.history),
        "best": best,
        "status": result.status,
        "minutes": round((time.monotonic() - began) / 60, 2),
        "model_hash": result.model_hash,
    }
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)


def table() -> None:
    """Print what was run, as Markdown: at the configurations' learning rates over all seeds, and the grid on seed 0."""
    lines = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]
    print("| experiment | published | ours | ours / published | learning rate | seeds | minutes per run (median) | where |")
    print("|---|---|---|---|---|---|---|---|")
    for name, (published, where) in PUBLISHED.items():
        lr = learning_rate(Config.read(HERE / f"{name}.toml"))
        runs = {line["seed"]: line for line in lines if line["name"] == name and line["lr"] == lr}
        reached = [line["rounds_to_target"] for line in runs.values() if line["rounds_to_target"] is not None]
        if not runs:
            continue
        ours = "not reached" if len(reached) < len(runs) else f"{statistics.mean(reached):.1f}"
        if len(reached) == len(runs) > 1:
            ours += f" ({min(reached):.1f} to {max(reached):.1f})"
        ratio = "" if len(reached) < len(runs) else f"{statistics.mean(reached) / published:.2f}"
        minutes = statistics.median(line["minutes"] for line in runs.values())
        print(f"| {name} | {published} | {ours} | {ratio} | {lr:g} | {len(runs)} | {minutes:.1f} | {where} |")
    print("\n| experiment, seed 0 | learning rate: rounds to target |\n|---|---|")
    for name in PUBLISHED:
        tried = {line["lr"]: line for line in lines if line["name"] == name and line["seed"] == 0}
        if tried:
            print(f"| {name} | {', '.join(f'{lr:g}: {_reached(tried[lr])}' for lr in sorted(tried))} |")


def _reached(line: dict[str, Any]) -> str:
    if line["rounds_to_target"] is None:
        return f"not in {line['rounds']} (best {line['best']:.4f})"
    return f"{line['rounds_to_target']:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--lrs", nargs="*", type=float, help="learning rates instead of the configuration's")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--threads", type=int, help="torch threads; with 1, several runs can share a machine")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    if arguments.list:
        for name, (published, where) in PUBLISHED.items():
            print(f"{name:16} {published:5} rounds  {where}")
    for name in arguments.names:
        if name not in PUBLISHED:
            parser.error(f"there is no experiment {name!r}; known: {', '.join(PUBLISHED)}")
        for lr in arguments.lrs or [None]:
            for seed in arguments.seeds:
                one(name, lr, seed, arguments.threads)
    if arguments.table:
        table()


if __name__ == "__main__":
    main()

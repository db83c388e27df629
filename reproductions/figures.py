# SPDX-License-Identifier: Apache-2.0
"""The figure of every algorithm's page: its curve beside FedAvg's on MNIST, split into shards of labels.

    python reproductions/figures.py              all that have no file in docs/figures yet
    python reproductions/figures.py scaffold     this one, again

100 clients with two shards of one label each, 10 of them a round, the 2NN, E = 1, B = 10. Hyperparameters are the pages'
suggestions, not tuned. An algorithm that gives clients their own models is measured on a fifth of each client's examples, kept
apart; so is FedAvg beside it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import fedweave as fw

sys.path.insert(0, str(Path(__file__).parent))
from curves import chart

FOLDER = Path(__file__).parents[1] / "docs" / "figures"

LOCAL = {"lr": 0.1, "epochs": 1, "batch_size": 10}
UNEQUAL = {"effort": "uniform(low=1, high=5)"}
FEDSGD = {"algorithm": "fedsgd(server_lr=0.2)"}
CLIENTS = {"evaluate": "clients", "evaluate_every": 4}

FIGURES: dict[str, tuple[dict[str, Any], dict[str, dict[str, Any]]]] = {
    "fedavg": (
        {},
        {"FedAvg, E = 1": {}, "FedAvg, E = 5": {"local": {"epochs": 5}}, "FedSGD": FEDSGD},
    ),
    "fedsgd": ({}, {"FedAvg": {}, "FedSGD": FEDSGD}),
    "fedprox": (
        {},
        {
            "FedAvg": {},
            "FedProx, mu = 0.1": {"algorithm": "fedprox(mu=0.1)"},
            "FedProx, mu = 1": {"algorithm": "fedprox(mu=1.0)"},
        },
    ),
    "fedavgm": ({}, {"FedAvg": {}, "FedAvgM": {"algorithm": "fedavgm(server_lr=0.3, momentum=0.9)"}}),
    "fedopt": (
        {},
        {
            "FedAvg": {},
            "FedAdagrad": {"algorithm": "fedadagrad(server_lr=0.03)"},
            "FedAdam": {"algorithm": "fedadam(server_lr=0.01)"},
            "FedYogi": {"algorithm": "fedyogi(server_lr=0.01)"},
        },
    ),
    "fednova": (UNEQUAL, {"FedAvg, 1 to 5 epochs": {}, "FedNova, 1 to 5 epochs": {"algorithm": "fednova"}}),
    "qfedavg": (
        {},
        {"FedAvg": {}, "QFedAvg, q = 0.1": {"algorithm": "qfedavg(q=0.1)"}, "QFedAvg, q = 1": {"algorithm": "qfedavg(q=1.0)"}},
    ),
    "worker-momentum": ({}, {"FedAvg": {}, "WorkerMomentum": {"algorithm": "worker-momentum(momentum=0.9)"}}),
    "scaffold": ({}, {"FedAvg": {}, "SCAFFOLD": {"algorithm": "scaffold"}}),
    "feddyn": ({}, {"FedAvg": {}, "FedDyn": {"algorithm": "feddyn(alpha=0.1)"}}),
    "mime": (
        {},
        {
            "FedAvg": {},
            "Mime": {"algorithm": "mime", "local": {"lr": 0.02}},
            "MimeLite": {"algorithm": "mime-lite", "local": {"lr": 0.02}},
        },
    ),
    "ditto": (CLIENTS, {"FedAvg": {}, "Ditto": {"algorithm": "ditto(lam=0.1)"}}),
    "fedbn": (CLIENTS | {"model": "2nn-bn"}, {"FedAvg": {}, "FedBN": {"algorithm": "fedbn"}}),
    "fedper": (CLIENTS, {"FedAvg": {}, "FedPer": {"algorithm": "fedper"}}),
    "fedrep": (CLIENTS, {"FedAvg": {"local": {"epochs": 2}}, "FedRep": {"algorithm": "fedrep", "local": {"epochs": 2}}}),
    "apfl": (CLIENTS, {"FedAvg": {}, "APFL": {"algorithm": "apfl"}}),
}

_curves: dict[str, list[tuple[float, float]]] = {}


def curve(settings: dict[str, Any]) -> list[tuple[float, float]]:
    """(round, accuracy) of one run; the same run is not done twice."""
    key = repr(sorted(settings.items()))
    if key not in _curves:
        settings = {"model": "2nn", "algorithm": "fedavg", "cohort": 0.1, "rounds": 60, "evaluate_every": 2, **settings}
        local = fw.Local(**LOCAL | settings.pop("local", {}))
        own = settings.get("evaluate") == "clients"
        split = fw.data.partition(
            fw.data.load("mnist"), fw.Shards(per_client=2), clients=100, seed=0, holdout=0.2 if own else 0.0
        )
        result = fw.simulate(data=split, local=local, seed=0, **settings)
        metric = "clients_accuracy" if own else "accuracy"
        points = [result.start, *result.history] if result.start is not None else result.history
        _curves[key] = [(r.number, r.metrics[metric]) for r in points if metric in r.metrics]
    return _curves[key]


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name in sys.argv[1:] or [name for name in FIGURES if not (FOLDER / f"{name}.svg").exists()]:
        shared, variants = FIGURES[name]
        series = {label: curve({**shared, **changes}) for label, changes in variants.items()}
        y = "clients' own test accuracy" if shared.get("evaluate") == "clients" else "test accuracy"
        (FOLDER / f"{name}.svg").write_text(chart(series, "round", y), encoding="utf-8")
        print(name, {label: f"{line[-1][1]:.4f}" for label, line in series.items()}, flush=True)


if __name__ == "__main__":
    main()

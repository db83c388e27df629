# SPDX-License-Identifier: Apache-2.0
"""fedweave itself: ``simulate`` with its defaults, or with the engine, workers and threads that are asked for."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from harness import Bench
from modules import measured

import fedweave as fw
from fedweave.history import RoundStarted

MODELS = {"mlp": "2nn", "cnn": "cnn", "logistic": "logistic", "lstm": "char-lstm"}


def more(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--engine")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--name", default="fedweave")


def main() -> None:
    bench = Bench("fedweave", ["fedweave", "torch"], more)
    w, options = bench.workload, bench.options
    bench.peer = options.name
    held = w.held
    owner = np.repeat(np.arange(w.clients, dtype=np.int32), np.diff(held.offsets))
    data = fw.data.from_arrays(w.images(held.x), held.y, columns={"client": owner}, classes=w.classes, name=w.data)
    split = fw.data.partition(data, fw.ByColumn("client"))

    engine = ""

    def watch(event: object) -> None:
        nonlocal engine
        engine = getattr(event, "engine", engine)
        if isinstance(event, fw.Round) or (isinstance(event, RoundStarted) and event.number == 1):
            bench.mark()

    asked: dict[str, Any] = {name: getattr(options, name) for name in ("engine", "workers", "threads")}
    result = fw.simulate(
        model=MODELS[w.model],
        data=split,
        local=fw.Local(lr=w.lr, batch_size=w.batch, epochs=w.epochs),
        cohort=w.cohort,
        rounds=bench.rounds,
        evaluate_every=0,
        observer=watch,
        **{name: value for name, value in asked.items() if value is not None},
    )
    used = f"engine {engine}, workers: {getattr(result.config, 'workers', None)}, threads: {result.config.threads}"
    bench.report(*measured(result.module(), w), used)


if __name__ == "__main__":
    main()

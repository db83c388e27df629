# SPDX-License-Identifier: Apache-2.0
"""Bad clients on MNIST dealt out by label, as in Karimireddy, He, Jaggi, ICLR 2022 (arXiv:2006.09365), section 6.

    python reproductions/robustness.py --list                        the cells: rule/attack
    python reproductions/robustness.py median/ipm 'krum*/mimic'      some of them, on seeds 0, 1 and 2
    python reproductions/robustness.py '*' --part 1/2                the first half of all; another process takes 2/2
    python reproductions/robustness.py median/ipm --model cnn        with the authors' network instead of the 2NN
    python reproductions/robustness.py 'median/alie' --seeds 0 --z 1.5 --results stronger.jsonl    ALIE with another z
    python reproductions/robustness.py --table                       the table, from all that was run

25 clients, 5 of them bad, take 600 steps together. A cell that is in ``robustness/results.jsonl`` is not run again. What is the
same for all cells stands in ``robustness/2nn.toml``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

import fedweave as fw
from fedweave.attacks import IPM, Attack, BitFlip, LabelFlip, Mimic, attack
from fedweave.config import Config
from fedweave.data import Split
from fedweave.history import Round
from fedweave.randomness import generator
from fedweave.reduce.base import Moment

HERE = Path(__file__).parent / "robustness"
GOOD, BAD, LAST = 20, 5, 5
MEAN, DEVIATION = 0.1307, 0.3081
"""Of MNIST's pixels: the images are normalised with them."""

MOMENTUM = "worker-momentum(momentum=0.9, initial='zero', server_lr=10.0"
"""The authors' clients send m <- momentum m + gradient, from m = 0, without a factor 1 - momentum."""

RULES = {
    "average": "mean",
    "centred-clipping": "centred_clipping(radius=0.1, iterations=3)",
    "rfa": "geometric_median(iterations=8, smoothing=1e-6)",
    "median": "median",
    "krum": "krum(f=5)",
}
"""The radius is the authors' 10 / (1 - momentum) = 100 in units of their sum of gradients, times (1 - momentum) lr in ours."""

ATTACKS = {"bit-flip": "bit-flip", "label-flip": "label-flip", "mimic": "mimic", "ipm": "ipm", "alie": "alie"}

PUBLISHED = {
    "centred-clipping": ((97.6, 97.7), (97.6, 97.7), (97.8, 97.8), (97.6, 97.7), (98.0, 98.0)),
    "rfa": ((82.8, 96.8), (95.8, 97.4), (85.9, 97.1), (13.5, 95.9), (11.4, 91.7)),
    "median": ((42.9, 63.8), (50.6, 70.6), (57.2, 76.5), (36.2, 59.3), (9.9, 46.3)),
    "krum": ((9.9, 25.5), (1.0, 43.3), (29.0, 64.8), (10.0, 46.8), (11.4, 10.1)),
}
"""Per cent, (without, with) bucketing, for each of ATTACKS: the mean of the last five test accuracies over three seeds in the
outputs that the authors committed to epfml/byzantine-robust-noniid-optimizer (momentum 0.9)."""


@dataclass(frozen=True)
class Plain(Attack):
    """Bad clients that keep no momentum, as in the authors' code: what they would have sent is m_t = momentum m_{t-1} + d, and
    they send d. ``then`` forges from that."""

    then: Attack = field(default=LabelFlip())
    momentum: float = 0.9

    @property
    def flips_labels(self) -> bool:  # type: ignore[override]
        return self.then.flips_labels

    def flipped(self, labels: Any, classes: int | None) -> Any:
        return self.then.flipped(labels, classes)

    def forge(
        self, own: Sequence[fw.Update], honest: Sequence[fw.Update], moment: Moment, memory: fw.Arrays
    ) -> tuple[list[fw.Update], fw.Arrays]:
        plain = [
            update.replace(delta=update.delta - self.momentum * memory[f"{k}"] if f"{k}" in memory else update.delta)
            for k, update in enumerate(own)
        ]
        before = fw.Arrays(**{f"{k}": update.delta for k, update in enumerate(own)})
        forged, _ = self.then.forge(plain, honest, moment, fw.Arrays())
        return forged, before


def network() -> nn.Module:
    """The authors' network: two 3x3 convolutions of 32 and 64 channels, pooling, dropout, 128 units; 1,199,882 parameters.

    No ReLU follows the second convolution, as in older versions of PyTorch's MNIST example: with one the median does not
    learn."""
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.MaxPool2d(2), nn.Dropout2d(0.25)),
        *(nn.Flatten(), nn.Linear(9216, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10)),
    )


@dataclass(frozen=True)
class Cell:
    """One run of the table."""

    rule: str
    bucketing: bool
    attack: str
    seed: int
    model: str
    momentum: bool

    @property
    def name(self) -> str:
        return f"{self.rule}{'-bucketing' if self.bucketing else ''}/{self.attack}"

    @property
    def reduction(self) -> str:
        rule = RULES[self.rule]
        return f"bucketing(s=2, then={rule})" if self.bucketing else rule

    @property
    def adversary(self) -> Attack:
        """Its attack; the two that send what they have learnt do so without momentum, unless ``momentum``."""
        if self.attack == "mimic":
            return Mimic(warmup=1, fixed=True)
        if self.attack == "ipm":
            return IPM(epsilon=0.1)
        found = attack(ATTACKS[self.attack])
        assert found is not None
        return Plain(then=found) if isinstance(found, (BitFlip, LabelFlip)) and not self.momentum else found


def cells(seeds: Sequence[int], model: str, momentum: bool) -> Iterator[Cell]:
    for seed in seeds:
        for rule in RULES:
            for bucketing in (False, True):
                for kind in ATTACKS:
                    yield Cell(rule, bucketing, kind, seed, model, momentum)


def bad_clients(seed: int) -> list[int]:
    """Whom a run of this seed makes bad: as the simulator draws them."""
    return sorted(generator(seed, "byzantine").choice(GOOD + BAD, BAD, replace=False).tolist())


@lru_cache(maxsize=1)
def normalised() -> fw.data.Dataset:
    mnist = fw.data.load("mnist")
    assert mnist.x_test is not None
    x, x_test = ((np.asarray(part, np.float32) - MEAN) / DEVIATION for part in (mnist.x_train, mnist.x_test))
    return fw.data.from_arrays(x, mnist.y_train, test=(x_test, mnist.y_test), name="mnist, normalised")


@lru_cache(maxsize=1)
def split(seed: int) -> Split:
    """Twenty good clients share MNIST sorted by label, 3000 examples each; a bad one holds 3000 drawn from all."""
    data = normalised()
    by_label = np.array_split(np.argsort(data.y_train, kind="stable"), GOOD)
    size = len(by_label[0])
    bad = bad_clients(seed)
    good = iter(by_label)
    held = [
        generator(seed, "bad data", client=k).permutation(len(data))[:size] if k in bad else next(good)
        for k in range(GOOD + BAD)
    ]
    offsets = np.cumsum([0, *(len(part) for part in held)])
    return Split(data, np.concatenate(held).astype(np.int64), offsets.astype(np.int64))


def run(cell: Cell, rounds: int | None, threads: int) -> dict[str, Any]:
    """Train it; the line for the results."""
    base = Config.read(HERE / "2nn.toml")
    began = time.monotonic()
    result = fw.simulate(
        model=network if cell.model == "cnn" else cell.model,
        data=split(cell.seed),
        algorithm=f"{MOMENTUM}, reduce={cell.reduction})",
        local=base.local.value(),
        cohort=base.cohort,
        rounds=rounds or base.rounds,
        evaluate_every=base.evaluate_every,
        attack=cell.adversary,
        byzantine=BAD,
        seed=cell.seed,
        threads=threads,
    )
    measured = [100.0 * r.metrics["accuracy"] for r in result.history if isinstance(r, Round) and "accuracy" in r.metrics]
    return {
        "cell": cell.name,
        "model": cell.model,
        "seed": cell.seed,
        "bad_momentum": cell.momentum,
        "accuracy": round(statistics.fmean(measured[-LAST:]), 3),
        "accuracies": [round(value, 2) for value in measured],
        "rounds": len(result.history),
        "status": result.status,
        "minutes": round((time.monotonic() - began) / 60, 2),
        "threads": threads,
        "model_hash": result.model_hash,
    }


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def append(path: Path, line: dict[str, Any]) -> None:
    """One write to a file opened for appending: lines of several processes do not mix."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(handle, (json.dumps(line) + "\n").encode())
    finally:
        os.close(handle)


def done(line: dict[str, Any], cell: Cell, rounds: int) -> bool:
    return bool(
        (line["cell"], line["seed"], line["model"], line["bad_momentum"]) == (cell.name, cell.seed, cell.model, cell.momentum)
        and (line["rounds"] == rounds or line["status"] == "diverged")
    )


def table(lines: list[dict[str, Any]], model: str, momentum: bool) -> str:
    """Markdown: ours (mean and standard deviation over seeds) and what was published, in per cent."""
    rows = [f"| rule | {' | '.join(ATTACKS)} |", f"|---|{'---|' * len(ATTACKS)}"]
    for rule in RULES:
        for bucketing in (False, True):
            row = [f"{rule}, bucketing s=2" if bucketing else rule]
            for i, kind in enumerate(ATTACKS):
                name = Cell(rule, bucketing, kind, 0, model, momentum).name
                of = {
                    line["seed"]: line["accuracy"]
                    for line in lines
                    if (line["cell"], line["model"], line["bad_momentum"]) == (name, model, momentum)
                }
                found = list(of.values())
                ours = f"{statistics.fmean(found):.1f}" if found else ""
                ours += f" ±{statistics.stdev(found):.1f}" if len(found) > 1 else ""
                published = f" ({PUBLISHED[rule][i][bucketing]})" if rule in PUBLISHED else ""
                row.append(ours + published)
            rows.append(f"| {' | '.join(row)} |")
    minutes = [line["minutes"] for line in lines if (line["model"], line["bad_momentum"]) == (model, momentum)]
    runs = len(minutes)
    note = f"{runs} runs, {sum(minutes):.0f} minutes in all" if runs else "nothing was run yet"
    return "\n".join(rows) + f"\n\nOurs ± standard deviation over seeds (published), per cent; {model}; {note}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="RULE/ATTACK", help="cells; * and ? stand for any text")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--model", choices=["2nn", "cnn"], default="2nn", help="cnn is the authors' network")
    parser.add_argument("--bad-momentum", action="store_true", help="bit and label flippers keep momentum as the others do")
    parser.add_argument("--part", default="1/1", help="i/n: every n-th cell, beginning with the i-th")
    parser.add_argument("--rounds", type=int, help="instead of 600")
    parser.add_argument("--threads", type=int, default=1, help="torch threads; with 1, several runs can share a machine")
    parser.add_argument("--z", type=float, help="of ALIE, instead of the paper's; give another file for --results")
    parser.add_argument("--results", type=Path, default=HERE / "results.jsonl")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    if arguments.z is not None:
        ATTACKS["alie"] = f"alie(z={arguments.z})"
    every = list(cells(arguments.seeds, arguments.model, arguments.bad_momentum))
    known = sorted({cell.name for cell in every})
    if arguments.list:
        print("\n".join(known))
    for name in arguments.names:
        if not any(fnmatchcase(one, name) for one in known):
            parser.error(f"there is no cell {name!r}; --list shows them")
    part, _, of = arguments.part.partition("/")
    if not (part.isdigit() and of.isdigit() and 1 <= int(part) <= int(of)):
        parser.error(f"--part is {arguments.part!r}; write it like 1/2")
    wanted = [cell for cell in every if any(fnmatchcase(cell.name, name) for name in arguments.names)]
    rounds = arguments.rounds or Config.read(HERE / "2nn.toml").rounds
    for cell in wanted[int(part) - 1 :: int(of)]:
        if any(done(line, cell, rounds) for line in read(arguments.results)):
            continue
        line = run(cell, arguments.rounds, arguments.threads)
        append(arguments.results, line)
        print(json.dumps(line), flush=True)
    if arguments.table:
        print(table(read(arguments.results), arguments.model, arguments.bad_momentum))


if __name__ == "__main__":
    main()

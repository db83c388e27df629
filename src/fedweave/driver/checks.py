# SPDX-License-Identifier: Apache-2.0
"""What is seen to before a run begins: that what was asked for goes together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedweave.attacks import Attack
from fedweave.config import Config
from fedweave.contract import Algorithm
from fedweave.data import Split
from fedweave.engines.workers import possible
from fedweave.errors import UnknownName, UsageError
from fedweave.history import Target
from fedweave.models import Model
from fedweave.policy import FedAsync, FedBuff, Policy, Rules, Synchronous, cohort_size
from fedweave.policy import spell as spell_policy
from fedweave.population import Effort, Source, Stragglers
from fedweave.randomness import generator
from fedweave.reduce.parallel import cores


def threads_for(model: Model, cohort: int, config: Config) -> int:
    """Threads of each process that trains, by rule, never by a stopwatch and never by the number of processes: a thread more
    can change the last bit. One, since processes use the cores better; all of them where a cohort has too few clients for that.

    Raises:
        UsageError: the number given cannot be used.
    """
    if config.workers is not None and config.workers < 1:
        raise UsageError(f"workers is {config.workers}; it must be a whole number from 1 up.")
    if config.threads is not None:
        if config.threads < 1:
            raise UsageError(f"threads is {config.threads}; it must be a whole number from 1 up.")
        if config.threads > 1 and (config.workers or 1) > 1:
            raise UsageError(
                f"threads is {config.threads} and workers is {config.workers}: several processes train with one thread each. "
                f"Give one of them."
            )
        return config.threads
    few = cohort < cores() or not possible()
    return cores() if model.heavy and few else 1


def whole(algorithm: Algorithm, rules: Rules) -> Rules:
    """The rules of a run whose model must be whole at its end."""
    if 0 < rules.rounds < algorithm.period:
        name = type(algorithm).__name__
        raise UsageError(f"rounds is {rules.rounds}, but {name} needs {algorithm.period} for this model, one per layer.")
    return rules if algorithm.ends is None else replace(rules, rounds=min(rules.rounds, algorithm.ends))


def accounted_for(algorithm: Algorithm, attack: Attack | None, config: Config, buffers: bool) -> None:
    """See that nothing is asked for that an algorithm with updates of its own making cannot have."""
    name = type(algorithm).__name__
    if attack is not None and not attack.flips_labels:
        raise UsageError(f"{name}'s updates are not changes of one vector, so the attack {config.attack} cannot forge them.")
    if buffers and config.buffers != "mean":
        raise UsageError(f"buffers is {config.buffers!r}, but {name} averages the model's buffers itself: leave it at 'mean'.")


def measured(evaluate: str, split: Split, personal: bool) -> str:
    """What is evaluated, with ``"auto"`` decided."""
    if evaluate not in ("auto", "central", "clients", "both"):
        raise UsageError(f"evaluate is {evaluate!r}; it must be 'auto', 'central', 'clients' or 'both'.")
    central = split.x_test is not None and len(split.x_test) > 0
    if not central and evaluate in ("central", "both"):
        raise UsageError(f"evaluate is {evaluate!r}, but the data {split.name} has no test set; choose 'clients'.")
    return evaluate if evaluate != "auto" else "clients" if not central else "both" if personal else "central"


def known_target(target: Target, measures: list[str], evaluate: str) -> None:
    """See that a target is of something that is measured."""
    known = ["train_loss"] + [name for name in measures if evaluate in ("central", "both")]
    if evaluate in ("clients", "both"):
        known += [f"clients_{name}{end}" for name in measures for end in ("", "_p10", "_p50", "_p90")]
    if target.metric not in known:
        raise UnknownName("metric", target.metric, known)


def byzantine_clients(config: Config, attack: Attack | None, population: int) -> list[int]:
    """The bad clients, drawn from the seed."""
    if (attack is None) != (not config.byzantine):
        raise UsageError(f"attack is {config.attack} and byzantine is {config.byzantine}: give both, or neither.")
    if attack is None:
        return []
    count = cohort_size(config.byzantine, population)
    chosen = generator(config.seed, "byzantine").choice(population, count, replace=False)
    return [int(client) for client in np.sort(chosen)]


def timely(policy: Policy, source: Source | None, effort: Effort, attack: Attack | None) -> None:
    """See that a policy has the clock and the clients that it needs."""
    name = spell_policy(policy)
    if source is None and not isinstance(policy, Synchronous):
        raise UsageError(
            f"The policy {name} needs to know how long clients take: give a population such as "
            "'population(speed=lognormal(median=100, sigma=1))'."
        )
    if isinstance(policy, (FedBuff, FedAsync)):
        if isinstance(effort, Stragglers):
            raise UsageError(f"Stragglers are a share of a cohort, and {name} has none: let devices differ in speed instead.")
        if attack is not None and not attack.flips_labels:
            raise UsageError(f"The attack forges from what a whole cohort would have sent, and {name} has no cohorts.")

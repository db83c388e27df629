# SPDX-License-Identifier: Apache-2.0
"""The simulator: drives the coordinator with an engine in this process, and keeps the run in a folder if one is given."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy
import torch

from fedweave import attacks, names
from fedweave import data as datasets
from fedweave import policy as policies
from fedweave import population as populations
from fedweave import sampling as samplings
from fedweave import store as stores
from fedweave.algorithms import algorithm as named_algorithm
from fedweave.algorithms import spell
from fedweave.attacks import Attack
from fedweave.config import Config, LocalConfig
from fedweave.contract import Algorithm, Local
from fedweave.data import Split
from fedweave.driver import Driver, Observer
from fedweave.driver.checks import measured
from fedweave.driver.profiling import FILE as PROFILE
from fedweave.driver.profiling import Profile, spelled
from fedweave.driver.telling import torch_threads
from fedweave.driver.tuning import SECONDS, tuned
from fedweave.engines.calibrating import Timing
from fedweave.errors import DataError, MismatchError, UsageError
from fedweave.history import Round, Target
from fedweave.layout import Layout, model_hash
from fedweave.models import Loss, ModelChoice
from fedweave.policy import Policy, Rules
from fedweave.population import Effort, Source
from fedweave.result import Result
from fedweave.sampling import Sampling
from fedweave.store import unpack
from fedweave.terms import Terms

IN_MEMORY = "in-memory"
"""Stands in a configuration for a Python object that no text can name."""


def simulate(
    *,
    model: ModelChoice,
    data: Split,
    algorithm: Algorithm | str = "fedavg",
    local: Local | None = None,
    cohort: float = 0.1,
    rounds: int = 100,
    target: Target | tuple[str, float] | str | None = None,
    stop_at_target: bool = True,
    patience: int | None = None,
    max_seconds: float | None = None,
    seed: int = 0,
    initial: Mapping[str, npt.ArrayLike] | None = None,
    evaluate_every: int = 1,
    evaluate: str = "auto",
    buffers: str = "mean",
    loss: Loss | str | None = None,
    metrics: Mapping[str, Loss] | None = None,
    out: str | Path | None = None,
    policy: Policy | str = "synchronous",
    sampling: Sampling | str = "uniform",
    population: Source | str | None = None,
    effort: Effort | str = "full",
    attack: Attack | str | None = None,
    byzantine: float = 0,
    diagnostics: bool = True,
    engine: str = "auto",
    workers: int | None = None,
    threads: int | None = None,
    checkpoint_every: float = 10.0,
    profile: bool = False,
    observer: Observer | None = None,
) -> Result:
    """Train one model over a split's clients.

    Args:
        model: a name (``"2nn"``, ``"2nn-bn"``, ``"cnn"``, ``"char-lstm"``, ``"cifar-cnn"``, ``"lenet"``, ``"vgg9"``,
            ``"logistic"``),
            ``"package.module:factory"``, a factory without arguments, or an nn.Module, whose weights are then the initial ones.
        data: from ``fedweave.data.partition`` or ``from_clients``.
        algorithm: an Algorithm or its text, e.g. ``"fedsgd(server_lr=0.1)"``.
        local: the local training asked of every client.
        cohort: clients per round: a fraction of them (float) or a count (int).
        rounds: rounds at most; 0 only makes the initial model.
        target: a metric and a value, ``("accuracy", 0.97)``; ends the run unless ``stop_at_target`` is False.
        patience: end after so many evaluations without improvement.
        max_seconds: end after so many seconds (the one rule by which two runs of one seed can differ in length).
        seed: addresses every random draw but the split's.
        initial: start weights by name; the model's own initialisation, drawn from the seed, unless given.
        evaluate_every: rounds between evaluations; 0 for never. The last round is always evaluated otherwise.
        evaluate: ``"central"`` (the test set), ``"clients"`` (each on its own examples), ``"both"``, or ``"auto"``: the test
            set if there is one, and every client too if the algorithm gives them models of their own.
        buffers: BatchNorm statistics and the like: ``"mean"`` averages the clients', ``"keep"`` leaves the initial ones.
        loss: (output, y) -> mean loss, or its ``"package.module:function"``; cross-entropy unless given.
        metrics: name -> (output, y) -> value per example, measured beside the loss.
        out: folder to keep the run in; it can then be resumed after any crash.
        policy: when a round closes: ``"synchronous"``, ``"deadline(seconds=60)"``, ``"over-selection(factor=1.3)"``,
            ``"k-of-n(k=8)"``; or ``"fedbuff(buffer=10)"`` and ``"fedasync(alpha=0.6)"``, whose ``rounds`` are steps of the
            server and whose ``cohort`` is at work at a time. All but the first need a population.
        sampling: who is asked, e.g. ``"available"`` or ``"power-of-choice(d=20)"`` (see ``fedweave.sampling``).
        population: the clients' devices, on whose clock the run then goes, e.g. ``"population(speed=lognormal(median=100,
            sigma=1))"`` (see ``fedweave.population``).
        effort: how much of their local work clients do: all of it, or e.g. ``"stragglers(share=0.5, drop=True)"``.
        attack: what bad clients send, e.g. ``"ipm(epsilon=0.1)"`` (see ``fedweave.attacks``); for testing robust reductions.
        byzantine: how many clients are bad: a count, or a fraction of all (float); drawn from the seed.
        diagnostics: note of each update, in ``out``, what ``fedweave diagnose`` reads; changes no result.
        engine: ``"eager"``, one client after another; ``"vectorized"``, many at once; ``"compiled"``, that by torch.compile;
            ``"cuda"``, on a GPU; ``"ray"`` for a Ray cluster; ``"measure"``, what is fastest when tried; or ``"auto"`` to have
            it chosen by rules.
        workers: processes that train; as many as are worth it unless given. Their number changes no bit of a result.
        threads: torch's threads; chosen from the model unless given. Their number can change the last bit of a result.
        checkpoint_every: seconds between checkpoints.
        profile: take the time of what is done, in one process; ``result.profile`` says where it went, and the report too.
        observer: called with each event of ``fedweave.history``.

    Raises:
        UsageError, UnknownName, MismatchError: a value cannot be used; nothing was trained.
        StoreError: ``out`` holds a run already or cannot be written.
    """
    given: object = data
    if not isinstance(given, Split):
        remedy = "make one with fw.data.partition(data, fw.IID(), clients=100) or fw.data.from_clients([...])"
        raise UsageError(f"data is a {type(given).__name__}, but clients' data is needed: {remedy}.")
    algorithm = named_algorithm(algorithm)
    wanted = Target.of(target) if target is not None else None
    terms = Terms(
        Rules(rounds, wanted, stop_at_target, patience, evaluate_every),
        populations.effort(effort),
        attacks.attack(attack),
        policies.policy(policy),
        None if population is None else populations.population(population),
        samplings.sampling(sampling),
    )
    config = Config.make(
        {
            **_spelled_data(data),
            "model": model if isinstance(model, str) else names.address(model) or IN_MEMORY,
            "loss": loss if isinstance(loss, str) or loss is None else names.address(loss) or IN_MEMORY,
            "algorithm": spell(algorithm),
            "local": LocalConfig.of(local or Local()),
            "cohort": cohort,
            "rounds": rounds,
            "target": None if wanted is None else f"{wanted.metric}={wanted.value!r}",
            "stop_at_target": stop_at_target,
            "patience": patience,
            "max_seconds": max_seconds,
            "seed": seed,
            "evaluate_every": evaluate_every,
            "evaluate": measured(evaluate, data, algorithm.personalised),
            "buffers": buffers,
            "policy": policies.spell(terms.policy),
            "sampling": samplings.spell(terms.sampling),
            "population": None if terms.source is None else populations.spell(terms.source),
            "effort": populations.spell(terms.effort),
            "attack": None if terms.attack is None else attacks.spell(terms.attack),
            "byzantine": byzantine,
            "diagnostics": diagnostics,
            "engine": engine,
            "workers": 1 if profile and workers is None else workers,
            "threads": threads,
            "checkpoint_every": checkpoint_every,
            "initial": None if initial is None else "initial.safetensors",
        }
    )
    with torch.random.fork_rng(devices=[]):
        driver = Driver(config, data, model, algorithm, loss, metrics, terms, observer)
        if initial is not None:
            driver.begin_from(initial)
        if out is not None:
            driver.keep_in(Path(out), initial)
        return _profiled(driver) if profile else driver.drive()


def _profiled(driver: Driver) -> Result:
    with Profile() as taken:
        result = driver.drive()
    parts = taken.parts(driver.algorithm)
    if result.folder is not None:
        (result.folder / PROFILE).write_bytes(spelled(parts))
    return replace(result, profile=parts)


def tune(config: Config, seconds: float = SECONDS) -> list[Timing]:
    """How long a round of a configuration takes with each engine and number of processes on this machine, fastest first.

    Args:
        seconds: for all of them together, about.

    Raises:
        UsageError, DataError: the configuration cannot be run.
    """
    plain = config.model_copy(update={"engine": "auto"})
    with torch.random.fork_rng(devices=[]):
        driver = Driver(
            plain, split_of(plain), plain.model, named_algorithm(plain.algorithm), plain.loss, None, Terms.of(plain), None
        )
        with torch_threads(driver.config.threads or 1):
            return tuned(driver.setup(), driver.state, driver.buffers, driver.cohort, driver.local, seconds)


def run(config: Config, *, out: str | Path | None = None, profile: bool = False, observer: Observer | None = None) -> Result:
    """Run a configuration, as ``fedweave run`` does. Raises what ``simulate`` raises."""
    arguments: dict[str, Any] = config.model_dump(
        exclude={"data", "partition", "clients", "holdout", "split_seed", "local", "initial"}
    )
    if config.model == IN_MEMORY or config.loss == IN_MEMORY:
        raise UsageError("This configuration's model or loss was a Python object that no text can name; run it from Python.")
    return simulate(
        **arguments,
        data=split_of(config),
        local=config.local.value(),
        initial=None if config.initial is None else _read_weights(Path(config.initial)),
        out=out,
        profile=profile,
        observer=observer,
    )


def resume(
    folder: str | Path,
    *,
    rounds: int | None = None,
    model: ModelChoice | None = None,
    data: Split | None = None,
    algorithm: Algorithm | None = None,
    loss: Loss | None = None,
    metrics: Mapping[str, Loss] | None = None,
    observer: Observer | None = None,
) -> Result:
    """Go on with a run that was killed, interrupted or finished, to the same bits as if it had never stopped.

    Args:
        folder: where it is kept.
        rounds: a later last round than was configured.
        model, data, algorithm, loss, metrics: needed again only if they were Python objects that no text can name.

    Raises:
        StoreError: the folder holds no run, or its checkpoint is damaged.
        MismatchError: the model or the data is not what the run began with.
    """
    folder = Path(folder)
    store = stores.RunStore.open(folder)
    try:
        about = store.about()
        if "run" in about:
            raise UsageError(
                f"The run in {folder} is a deployed one: go on with `fedweave up --out {folder}` if that began it, or with "
                f"`fedweave serve --out {folder}`."
            )
        config = store.config()
        if rounds is not None:
            config = Config.make(config.model_dump() | {"rounds": rounds})
        split = data if data is not None else split_of(config.resolved(folder))
        if split.fingerprint != about["split"]:
            raise MismatchError(f"The data is not what the run in {folder} began with. Pass the same split as data=.")
        chosen = model if model is not None else config.model
        objective = loss if loss is not None else config.loss
        for name, choice in (("model", chosen), ("loss", objective)):
            if choice == IN_MEMORY:
                raise UsageError(f"The run's {name} was a Python object that no text can name: pass it again as {name}=.")
        with torch.random.fork_rng(devices=[]):
            chosen_algorithm = named_algorithm(algorithm or config.algorithm)
            driver = Driver(config, split, chosen, chosen_algorithm, objective, metrics, Terms.of(config), observer)
            if driver.model.layout.fingerprint != about["layout"]:
                raise MismatchError(f"The model is not the one that the run in {folder} began with. Pass the same model=.")
            driver.go_on_from(store)
            return driver.drive()
    finally:
        store.close()


def load_result(folder: str | Path) -> Result:
    """Read a run back without training: finished, interrupted, killed or in progress (up to its last checkpoint).

    Raises:
        StoreError: the folder holds no run, or its files are damaged.
    """
    folder = Path(folder)
    store = stores.RunStore.open(folder, reading=True)
    try:
        about, config = store.about(), store.config()
        checkpoint = store.restore()
        snapshot = unpack(checkpoint.arrays, np.asarray)
        layout = Layout.parse(snapshot.layout or about["slots"])
        command = "serve --out" if "run" in about else "resume"
        unfinished = f"In progress, or killed, after round {checkpoint.round}. Resume with: fedweave {command} {folder}"
        records = [record for record in store.history() if record.number <= checkpoint.round]
        return Result(
            history=[record for record in records if record.number > 0],
            start=next((record for record in records if record.number == 0), None),
            weights=layout.unflatten(snapshot.state.weights, snapshot.buffers),
            model_hash=model_hash(snapshot.state.weights, snapshot.buffers),
            status=about.get("status", "interrupted"),
            message=about.get("message", unfinished),
            target=Target.of(config.target) if config.target else None,
            config=config,
            parameters=layout.size,
            folder=folder,
            grown=bool(snapshot.layout),
            profile=json.loads((folder / PROFILE).read_bytes()) if (folder / PROFILE).exists() else None,
        )
    finally:
        store.close()


def split_of(config: Config) -> Split:
    """The data of a configuration, loaded and split.

    Raises:
        UsageError, DataError: there is no such data, or it cannot be split so.
    """
    if config.data == IN_MEMORY:
        raise UsageError("The run's data was in memory and is not kept: pass it again as data=.")
    if config.partition in (None, "none"):
        return datasets.load_split(config.data)
    seed = config.seed if config.split_seed is None else config.split_seed
    return datasets.partition(
        datasets.load(config.data), config.partition, clients=config.clients, seed=seed, holdout=config.holdout
    )


def _spelled_data(split: Split) -> dict[str, Any]:
    if split.spec is None:
        return {"data": IN_MEMORY, "partition": "none", "clients": None}
    spec = split.spec
    return {
        "data": spec["source"],
        "partition": spec["partition"],
        "clients": spec["clients"],
        "split_seed": spec["seed"],
        "holdout": spec.get("holdout", 0.0),
    }


def _read_weights(path: Path) -> dict[str, npt.NDArray[Any]]:
    try:
        return dict(safetensors.numpy.load(path.read_bytes()))
    except OSError as error:
        raise UsageError(f"The start weights {path} cannot be read: {error.strerror}.") from None
    except Exception as error:
        raise DataError(f"The start weights {path} are not a safetensors file: {error}.") from None


__all__ = ["Result", "Round", "load_result", "resume", "run", "simulate", "split_of"]

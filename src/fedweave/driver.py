# SPDX-License-Identifier: Apache-2.0
"""One simulated run: carries out the coordinator's effects with an engine, a clock and a store."""

from __future__ import annotations

import platform
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy
import torch
from torch import Tensor, nn

from fedweave import graph, names
from fedweave import history as events
from fedweave.attacks import Attack
from fedweave.config import Config
from fedweave.contract import Algorithm
from fedweave.coordinator import Arrived, Begin, Coordinator, Evaluate, Evaluated, Finish, Publish, Status, Stop, Train
from fedweave.data import Split
from fedweave.engines import Engine, Job, Setup, Work
from fedweave.engines import build as build_engine
from fedweave.engines.workers import possible
from fedweave.errors import UnknownName, UsageError
from fedweave.history import Round, Target
from fedweave.interrupt import Interrupt
from fedweave.layout import model_hash
from fedweave.models import Loss, Model, ModelChoice, build, flatten, redrawn, tensor
from fedweave.policy import Rules, Synchronous, cohort_size
from fedweave.population import Effort
from fedweave.randomness import derive, generator
from fedweave.reduce.parallel import cores
from fedweave.result import Result
from fedweave.store import ClientStates, RunStore, Snapshot, pack, unpack

Observer = Callable[[events.Event], None]


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


class Driver:
    """One run in progress."""

    def __init__(
        self,
        config: Config,
        split: Split,
        model: ModelChoice,
        algorithm: Algorithm,
        loss: Loss | str | None,
        metrics: Mapping[str, Loss] | None,
        rules: Rules,
        observer: Observer | None,
        effort: Effort,
        attack: Attack | None,
    ) -> None:
        if split.clients == 0:
            raise UsageError("The data has no clients.")
        self.split, self.observer = split, observer or (lambda event: None)
        self.policy = Synchronous(cohort_size(config.cohort, split.clients))
        shape = tuple(split.x_train.shape[1:])

        def make() -> nn.Module:
            return build(model, shape, split.classes, config.seed)

        def fresh(client: int) -> Tensor:
            module = redrawn(model, shape, split.classes, derive(config.seed, "initial weights of a client", client))
            return flatten(p.detach() for p in module.parameters() if p.requires_grad)

        self.make, self.fresh = make, fresh
        objective = names.imported("loss", loss) if isinstance(loss, str) else loss
        self.model = Model(make(), objective, metrics)
        label = model if isinstance(model, str) else type(self.model.module).__name__
        self.model.check(tensor(split.x_train), tensor(split.y_train), label, split.classes)
        self.label = label
        if rules.target is not None:
            _check_target(rules.target, self.model.measures, config.evaluate)
        self.config = config.model_copy(update={"threads": threads_for(self.model, self.policy.size, config)})
        self.effort, self.local = effort, config.local.value()
        algorithm.check(self.local, self.policy.size)
        self.algorithm = algorithm.bind(self.model.layout)
        if algorithm.wires:
            self.algorithm = self.algorithm.wired(graph.read(self.model.module, tensor(split.x_train[:2])))
        self.rules = _whole(self.algorithm, rules)
        if self.algorithm.prepares:
            _accounted_for(self.algorithm, attack, config, bool(self.model.layout.buffers))
        self.kept = ClientStates(None, split.clients)
        self.byzantine = _byzantine(config, attack, split.clients)
        self.attack = attack
        self.engine = self._engine()
        self.state = self.algorithm.init(self.model.flat.clone())
        self.buffers: Any = self.model.statistics()
        self.store: RunStore | None = None
        self.expected: dict[int, str] = {}
        self.start: Round | None = None
        self.history: list[Round] = []
        self._number = self._done = 0

    def _engine(self) -> Engine:
        local = self.local
        setup = Setup(
            self.model,
            self.split,
            self.algorithm,
            self.config.seed,
            self.kept,
            evaluate=self.config.evaluate,
            buffers=self.config.buffers,
            attack=self.attack,
            byzantine=self.byzantine,
            watch=self._watch,
            fresh=self.fresh,
            engine=self.config.engine,
            workers=1 if self.config.threads != 1 else self.config.workers,
            work=Work.of(self.split, self.policy.size, self.rules.rounds, local.epochs, local.steps, local.batch_size),
            local=local,
        )
        return build_engine(setup)

    # Where a run begins --------------------------------------------------------------------------------------------------

    def begin_from(self, initial: Mapping[str, npt.ArrayLike]) -> None:
        weights, buffers = self.model.layout.flatten(initial)
        if not np.isfinite(weights).all():
            raise UsageError("The initial weights are not all finite.")
        if self.algorithm.draws:
            name = self.config.algorithm
            raise UsageError(
                f"With {name} clients draw initial weights of their own, so initial= has no use; set shared_start."
            )
        self.state, self.buffers = self.algorithm.init(torch.from_numpy(weights)), torch.from_numpy(buffers)

    def keep_in(self, folder: Path, initial: Mapping[str, npt.ArrayLike] | None) -> None:
        if self.split.spec is None:
            self.config = self.config.model_copy(update={"data": "./data"})
        about = {
            "split": self.split.fingerprint,
            "layout": self.model.layout.fingerprint,
            "slots": self.model.layout.spell(),
            "model": self.label,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "versions": f"Python {platform.python_version()}, torch {torch.__version__}, NumPy {np.__version__}",
        }
        self.store = RunStore.create(folder)
        try:
            self._keep_clients_in(folder)
            if self.split.spec is None:
                self.split.save(folder / "data")
            if initial is not None:
                self.store.write("initial.safetensors", safetensors.numpy.save(_arrays(initial)))
            self.store.begin(self.config, about, self._snapshot())
            self.kept.committed()
        except BaseException:
            self.store.close()
            self.kept.close()
            raise

    def _keep_clients_in(self, folder: Path) -> None:
        self.engine.close()
        self.kept.close()
        self.kept = ClientStates(folder, self.split.clients)
        self.engine = self._engine()

    def go_on_from(self, store: RunStore) -> None:
        checkpoint = store.restore()
        self.expected = {record.number: record.model_hash for record in store.history()}
        done = store.rewind(checkpoint.round)
        self.start = next((record for record in done if record.number == 0), None)
        self.history = [record for record in done if record.number > 0]
        snapshot = unpack(checkpoint.arrays, torch.from_numpy)
        self._keep_clients_in(store.folder)
        self.kept.restore(snapshot.clients)
        self.state, self.buffers, self.engine.memory = snapshot.state, snapshot.buffers, snapshot.memory
        self.store = store
        store.write("config.toml", self.config.toml().encode())

    # The loop ------------------------------------------------------------------------------------------------------------

    def drive(self) -> Result:
        began = time.monotonic()
        self.coordinator = coordinator = Coordinator(
            self.algorithm, self.state, self.buffers, self.split.clients, self.policy, self.rules, self.config.seed,
            self.start, self.history,
        )  # fmt: skip
        self.observer(self._opening())
        limit = self.config.max_seconds
        ended = Finish("rounds", "")
        try:
            with _torch_threads(self.config.threads or 1), Interrupt() as interrupt:
                effects = deque(coordinator.handle(Begin(), began))
                while effects:
                    match effects.popleft():
                        case Train(number, clients, survey):
                            if survey or not self.algorithm.surveys:
                                self._number, self._done = number, 0
                                self.observer(events.RoundStarted(number, tuple(clients.tolist())))
                            efforts = self.effort.plan(self.config.seed, number, clients, self.local)
                            job = Job(number, clients, self.algorithm, coordinator.state, coordinator.buffers, efforts, survey)
                            for b in self.engine.train(job):
                                now = time.monotonic()
                                if interrupt.asked:
                                    coordinator.handle(Stop("interrupted"), now)
                                elif limit is not None and now - began > limit:
                                    coordinator.handle(Stop("time"), now)
                                arrived = Arrived(number, b.first, b.last, b.partial, b.tally, survey)
                                effects.extend(coordinator.handle(arrived, now))
                        case Evaluate(number):
                            before = time.monotonic()
                            # Metrics are no part of what the next round begins with: all cores may work on them.
                            with _torch_threads(cores() if self.model.heavy else self.config.threads or 1):
                                measured = self.engine.evaluate(coordinator.state, coordinator.buffers)
                            now = time.monotonic()
                            effects.extend(coordinator.handle(Evaluated(number, measured, now - before), now))
                        case Publish(record):
                            self._publish(record)
                        case Finish() as finish:
                            ended = finish
            return self._result(ended)
        finally:
            if self.store is not None:
                self.store.close()
            self.engine.close()
            self.kept.close()

    def _opening(self) -> events.RunStarted:
        return events.RunStarted(
            model=self.label,
            parameters=self.model.layout.size,
            algorithm=self.config.algorithm,
            data=self.split.name,
            clients=self.split.clients,
            cohort=self.policy.size,
            rounds=self.rules.rounds,
            engine=self.engine.about,
            target=self.rules.target,
            folder=str(self.store.folder) if self.store is not None else None,
            resumed_at=len(self.history),
        )

    def _watch(self, client: int) -> None:
        self._done += 1
        self.observer(events.ClientDone(self._number, client, self._done))

    def _publish(self, record: Round) -> None:
        expected = self.expected.pop(record.number, None)
        if expected is not None and expected != record.model_hash:
            self.expected.clear()
            warnings.warn(
                f"Round {record.number} came out otherwise than before the run was resumed ({record.model_hash[:12]}, not "
                f"{expected[:12]}): the machine or the versions of torch and NumPy are not those it began with.",
                stacklevel=2,
            )
        if self.store is not None:
            self.store.append(record)
            if record.number > 0 and self.store.due(self.config.checkpoint_every):
                self._checkpoint(record.number)
        self.observer(record)

    def _checkpoint(self, round: int) -> None:
        assert self.store is not None
        self.store.checkpoint(round, self._snapshot())
        self.kept.committed()

    def _snapshot(self) -> dict[str, npt.NDArray[Any]]:
        at = getattr(self, "coordinator", self)
        layout = self.algorithm.layout(at.state)
        spelled = "" if layout is None else layout.spell()
        return pack(Snapshot(at.state, at.buffers, self.engine.memory, self.kept.checkpoint(), spelled))

    def _result(self, ended: Finish) -> Result:
        c = self.coordinator
        layout = self.algorithm.layout(c.state) or self.model.layout
        weights = layout.unflatten(c.state.weights.numpy(), c.buffers.numpy())
        digest = model_hash(c.state.weights.numpy(), c.buffers.numpy())
        message = ended.message
        status: Status = ended.status
        if self.store is not None:
            self._checkpoint(c.round)
            if status == "interrupted":
                message += f" Resume with: fedweave resume {self.store.folder}"
            self.store.finish(weights, status=status, message=message, config=self.config.model_dump_json())
        elif status == "interrupted":
            message += " Nothing was kept; give an out folder to be able to resume."
        self.observer(events.RunEnded(status, message))
        return Result(
            history=c.history,
            start=c.start,
            weights=weights,
            model_hash=digest,
            status=status,
            message=message,
            target=self.rules.target,
            config=self.config,
            parameters=layout.size,
            folder=self.store.folder if self.store is not None else None,
            split=self.split,
            make=self.make,
            grown=layout is not self.model.layout,
        )


def _whole(algorithm: Algorithm, rules: Rules) -> Rules:
    """The rules of a run whose model must be whole at its end."""
    if 0 < rules.rounds < algorithm.period:
        name = type(algorithm).__name__
        raise UsageError(f"rounds is {rules.rounds}, but {name} needs {algorithm.period} for this model, one per layer.")
    return rules if algorithm.ends is None else replace(rules, rounds=min(rules.rounds, algorithm.ends))


def _accounted_for(algorithm: Algorithm, attack: Attack | None, config: Config, buffers: bool) -> None:
    """See that nothing is asked for that an algorithm with updates of its own making cannot have."""
    name = type(algorithm).__name__
    if attack is not None and not attack.flips_labels:
        raise UsageError(f"{name}'s updates are not changes of one vector, so the attack {config.attack} cannot forge them.")
    if buffers and config.buffers != "mean":
        raise UsageError(f"buffers is {config.buffers!r}, but {name} averages the model's buffers itself: leave it at 'mean'.")


def _check_target(target: Target, measures: list[str], evaluate: str) -> None:
    known = ["train_loss"] + [name for name in measures if evaluate in ("central", "both")]
    if evaluate in ("clients", "both"):
        known += [f"clients_{name}{end}" for name in measures for end in ("", "_p10", "_p50", "_p90")]
    if target.metric not in known:
        raise UnknownName("metric", target.metric, known)


def _byzantine(config: Config, attack: Attack | None, population: int) -> list[int]:
    """The bad clients, drawn from the seed."""
    if (attack is None) != (not config.byzantine):
        raise UsageError(f"attack is {config.attack} and byzantine is {config.byzantine}: give both, or neither.")
    if attack is None:
        return []
    count = cohort_size(config.byzantine, population)
    chosen = generator(config.seed, "byzantine").choice(population, count, replace=False)
    return [int(client) for client in np.sort(chosen)]


def _arrays(initial: Mapping[str, npt.ArrayLike]) -> dict[str, npt.NDArray[Any]]:
    return {name: np.ascontiguousarray(value) for name, value in initial.items()}


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)

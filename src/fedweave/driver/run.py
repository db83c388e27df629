# SPDX-License-Identifier: Apache-2.0
"""One simulated run: carries out the coordinator's effects with an engine, a clock and a store."""

from __future__ import annotations

import time
import warnings
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy
import torch
from torch import Tensor, nn

from fedweave import graph, names, store
from fedweave import history as events
from fedweave.config import Config
from fedweave.contract import Algorithm
from fedweave.coordinator import (
    Begin,
    Cancel,
    Collect,
    Coordinator,
    Effect,
    Evaluate,
    Evaluated,
    Event,
    Finish,
    Publish,
    Roster,
    SetTimer,
    Status,
    Stop,
    Train,
)
from fedweave.data import Split
from fedweave.driver import checks
from fedweave.driver.carrying import Direct, Site, Virtual
from fedweave.driver.errands import Aside
from fedweave.driver.seeing import Seeing
from fedweave.driver.telling import as_arrays, circumstances, torch_threads
from fedweave.driver.tuning import tuned
from fedweave.driver.world import World
from fedweave.engines import Engine, Setup, Work
from fedweave.engines import build as build_engine
from fedweave.engines.calibrating import Timing
from fedweave.errors import UsageError
from fedweave.history import Round
from fedweave.interrupt import Interrupt
from fedweave.layout import model_hash
from fedweave.models import Loss, Model, ModelChoice, build, flatten, redrawn, tensor
from fedweave.policy import FedAsync, FedBuff, cohort_size
from fedweave.randomness import derive
from fedweave.reduce.parallel import cores
from fedweave.result import Result
from fedweave.store import ClientStates, Snapshot, pack, unpack
from fedweave.terms import Terms

Observer = Callable[[events.Event], None]


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
        terms: Terms,
        observer: Observer | None,
    ) -> None:
        if split.clients == 0:
            raise UsageError("The data has no clients.")
        self.split, self.observer = split, observer or (lambda event: None)
        self.terms, self.cohort = terms, cohort_size(config.cohort, split.clients)
        checks.timely(terms.policy, terms.source, terms.effort, terms.attack)
        # What these two functions refer to goes with them to other processes: the data must not be among it.
        shape, classes, seed = tuple(split.x_train.shape[1:]), split.classes, config.seed

        def make() -> nn.Module:
            return build(model, shape, classes, seed)

        def fresh(client: int) -> Tensor:
            module = redrawn(model, shape, classes, derive(seed, "initial weights of a client", client))
            return flatten(p.detach() for p in module.parameters() if p.requires_grad)

        self.make, self.fresh = make, fresh
        objective = names.imported("loss", loss) if isinstance(loss, str) else loss
        self.model = Model(make(), objective, metrics)
        label = model if isinstance(model, str) else type(self.model.module).__name__
        self.model.check(tensor(split.x_train), tensor(split.y_train), label, split.classes)
        self.label = label
        if terms.rules.target is not None:
            checks.known_target(terms.rules.target, self.model.measures, config.evaluate)
        self.config = config.model_copy(update={"threads": checks.threads_for(self.model, self.cohort, config)})
        self.local = config.local.value()
        algorithm.check(self.local, getattr(terms.policy, "buffer", self.cohort))
        self.algorithm = algorithm.bind(self.model.layout)
        if algorithm.wires:
            self.algorithm = self.algorithm.wired(graph.read(self.model.module, tensor(split.x_train[:2])))
        self.rules = checks.whole(self.algorithm, terms.rules)
        if self.algorithm.prepares:
            checks.accounted_for(self.algorithm, terms.attack, config, bool(self.model.layout.buffers))
        self.kept = ClientStates(None, split.clients)
        self.byzantine = checks.byzantine_clients(config, terms.attack, split.clients)
        devices = None if terms.source is None else terms.source.draw(config.seed, split.clients)
        self.world = None if devices is None else World(devices, config.seed)
        online = None if devices is None else devices.available
        self.roster = Roster(terms.sampling, config.seed, split.clients, split.sizes, online)
        self.state = self.algorithm.init(self.model.flat.clone())
        self.buffers: Any = self.model.statistics()
        self.timings: list[Timing] = []
        self.seeing = Seeing(config.seed, self.local, int(split.sizes.mean()))
        self._build()
        self.store: store.RunStore | None = None
        self.expected: dict[int, str] = {}
        self.start: Round | None = None
        self.history: list[Round] = []
        self.course: Mapping[str, Any] = {}
        self.errands: Mapping[str, Any] = {}
        self._coordinator()  # what it would refuse is refused before anything is kept
        self._number = self._done = 0

    def _build(self) -> None:
        """The engine and what carries the coordinator's wishes to it, over what clients keep."""
        self.aside = Aside(self.kept)
        self.engine = self._engine()

    def _engine(self) -> Engine:
        if self.config.engine == "measure":
            self._tune()
        return build_engine(self.setup())

    def _tune(self) -> None:
        """Settle which engine it is by trying them. The configuration then names it, so that a resumed run has the same."""
        with torch_threads(self.config.threads or 1):
            self.timings = tuned(self.setup(), self.state, self.buffers, self.cohort, self.local)
        best = self.timings[0].candidate
        self.model.load(self.state.weights, self.buffers)
        self.config = self.config.model_copy(update={"engine": best.engine, "workers": best.workers})

    def setup(self) -> Setup:
        """What an engine is made from."""
        local = self.local
        return Setup(
            self.model,
            self.make,
            self.split,
            self.algorithm,
            self.config.seed,
            self.aside if isinstance(self.terms.policy, (FedBuff, FedAsync)) else self.kept,
            evaluate=self.config.evaluate,
            buffers=self.config.buffers,
            attack=self.terms.attack,
            byzantine=self.byzantine,
            watch=self._watch,
            fresh=self.fresh,
            engine=self.config.engine,
            workers=1 if self.config.threads != 1 else self.config.workers,
            work=Work.of(self.split, self.cohort, self.rules.rounds, local.epochs, local.steps, local.batch_size),
            why=f"measured: {self.timings[0].seconds:.3g} s a round" if self.timings else "as asked for",
            local=local,
        )

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
            **circumstances(),
        }
        self.store = store.RunStore.create(folder)
        try:
            self._keep_clients_in(folder)
            if self.split.spec is None:
                self.split.save(folder / "data")
            if initial is not None:
                self.store.write("initial.safetensors", safetensors.numpy.save(as_arrays(initial)))
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
        self._build()

    def go_on_from(self, store: store.RunStore) -> None:
        checkpoint = store.restore()
        self.expected = {record.number: record.model_hash for record in store.history()}
        done = store.rewind(checkpoint.round)
        self.start = next((record for record in done if record.number == 0), None)
        self.history = [record for record in done if record.number > 0]
        snapshot = unpack(checkpoint.arrays, torch.from_numpy)
        self._keep_clients_in(store.folder)
        self.kept.restore(snapshot.clients)
        self.state, self.buffers, self.engine.memory = snapshot.state, snapshot.buffers, snapshot.memory
        self.course, self.errands = snapshot.course, snapshot.errands
        self.roster.restore(dict(snapshot.roster))
        self.store = store
        store.write("config.toml", self.config.toml().encode())

    # The loop ------------------------------------------------------------------------------------------------------------

    def drive(self) -> Result:
        began = time.monotonic()
        self.coordinator = coordinator = self._coordinator()
        self.seeing.on = self.config.diagnostics and self.store is not None
        carrier = self.carrier = self._carrier(coordinator)
        self.observer(self._opening())
        limit, ended = self.config.max_seconds, None

        def tell(event: Event) -> list[Effect]:
            wall = time.monotonic()
            if not isinstance(event, (Begin, Evaluated)):
                if interrupt.asked:
                    coordinator.handle(Stop("interrupted"), wall)
                elif limit is not None and wall - began > limit:
                    coordinator.handle(Stop("time"), wall)
            return coordinator.handle(event, wall if carrier.now is None else carrier.now, wall)

        try:
            with torch_threads(self.config.threads or 1), Interrupt() as interrupt:
                effects = deque(tell(Begin()))
                while ended is None:
                    if not effects:
                        effects.extend(tell(carrier.next()))
                        continue
                    match effects.popleft():
                        case Evaluate(number):
                            before = time.monotonic()
                            # Metrics are no part of what the next round begins with: all cores may work on them.
                            with torch_threads(cores() if self.model.heavy else self.config.threads or 1):
                                measured = self.engine.evaluate(coordinator.state, coordinator.buffers)
                            effects.extend(tell(Evaluated(number, measured, time.monotonic() - before)))
                        case Publish(record):
                            self._publish(record)
                        case Finish() as finish:
                            ended = finish
                        case (Train() | Collect() | Cancel() | SetTimer()) as wish:
                            for event in carrier.carry(wish):
                                effects.extend(tell(event))
            return self._result(ended)
        finally:
            if self.store is not None:
                self.store.close()
            self.engine.close()
            self.kept.close()

    def _coordinator(self) -> Coordinator:
        found = Coordinator(
            self.algorithm,
            self.state,
            self.buffers,
            self.split.clients,
            self.cohort,
            self.terms.policy,
            self.rules,
            self.config.seed,
            self.start,
            self.history,
            self.roster,
            virtual=self.world is not None,
        )
        if self.course:
            found.course.restore(dict(self.course))
        return found

    def _carrier(self, coordinator: Coordinator) -> Direct | Virtual:
        seed, sizes, effort = self.config.seed, self.split.sizes, self.terms.effort
        site = Site(coordinator, self.engine, seed, self.local, effort, sizes, self.roster, self._announce, self.seeing)
        if self.world is None:
            return Direct(site)
        carrier = Virtual(site, self.world, self.aside, self.config.buffers == "mean" and not self.algorithm.keeps_buffers)
        last = self.history[-1] if self.history else self.start
        if last is not None and last.virtual_seconds is not None:
            carrier.go_on(last.virtual_seconds, self.errands)
        return carrier

    def _announce(self, number: int, clients: tuple[int, ...], survey: bool) -> None:
        if survey or not self.algorithm.surveys:
            self._number, self._done = number, 0
            self.observer(events.RoundStarted(number, clients))

    def _opening(self) -> events.RunStarted:
        return events.RunStarted(
            model=self.label,
            parameters=self.model.layout.size,
            algorithm=self.config.algorithm,
            data=self.split.name,
            clients=self.split.clients,
            cohort=self.cohort,
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
            self.store.append(record, self.seeing.taken(record))
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
        begun = hasattr(self, "coordinator")
        return pack(
            Snapshot(
                at.state,
                at.buffers,
                self.engine.memory,
                self.kept.checkpoint(),
                spelled,
                self.coordinator.course.arrays() if begun else {},
                self.roster.arrays(),
                self.carrier.arrays() if begun else {},
            )
        )

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

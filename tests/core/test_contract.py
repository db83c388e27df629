# SPDX-License-Identifier: Apache-2.0
"""What the contract offers beyond FedAvg's hooks, carried out by the engine and the coordinator as it says."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fedweave as fw
from fedweave import names, population
from fedweave.algorithms import algorithm, spell
from fedweave.contract import Progress, within
from fedweave.coordinator import Arrived, Begin, Coordinator, Failed, Ignored, Publish, Tally, Train
from fedweave.errors import UnknownName, UsageError
from fedweave.local import Trainer, Turn
from fedweave.models import Model, build, flatten, tensor
from fedweave.policy import Rules, Synchronous
from fedweave.reduce import Mean
from fedweave.reduce.base import Moment

TURN = Turn(0, 1, 0)


def digits(clients: int = 6) -> fw.data.Split:
    return fw.data.partition(fw.data.load("digits"), fw.Dirichlet(alpha=0.5), clients=clients, seed=1)


# Two conversations -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Surveys(fw.Algorithm):
    """A round's first conversation gathers the gradient; the second is told it."""

    surveys: ClassVar[bool] = True

    def init(self, weights):
        return fw.State(weights=weights, mean=weights * 0)

    def ask(self, state, client):
        return fw.Ask(weights=state.weights, mean=state.mean)

    def surveyed(self, state, aggregate, cohort):
        return state.replace(mean=aggregate.gradient)

    def correct(self, grad, y, ask, mine):
        return ask.mean


@dataclass(frozen=True)
class Wires(fw.FedAvg):
    """FedAvg that says it wants the wiring and a setting of its own, and makes nothing of either."""

    wires: ClassVar[bool] = True
    prepares = True


def test_what_an_algorithm_makes_nothing_of_changes_nothing() -> None:
    options: dict[str, Any] = {"model": "2nn", "data": digits(), "rounds": 2, "cohort": 2}
    assert fw.simulate(algorithm=Wires(), **options).model_hash == fw.simulate(algorithm=fw.FedAvg(), **options).model_hash


def test_a_survey_gathers_the_gradient_of_the_cohort_before_it_trains() -> None:
    split = digits()
    settings_ = {"model": "logistic", "data": split, "cohort": 6, "local": fw.Local(lr=0.5, steps=2), "rounds": 1, "seed": 3}
    result = fw.simulate(algorithm=Surveys(), **settings_)
    model = Model(build("logistic", split.x_train.shape[1:], split.classes, 3))
    start = model.flat.clone()
    x, y = tensor(split.x_train), tensor(split.y_train)
    whole = sum(
        len(split.indices(k)) * model.gradient(x[split.indices(k)], y[split.indices(k)])[1].double() for k in range(6)
    ) / len(x)
    expected = start.double() - 0.5 * 2 * whole
    found = np.concatenate([value.reshape(-1) for value in result.weights.values()])
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-6)
    once = fw.simulate(algorithm="fedavg", **settings_)
    # Two conversations, and the mean gradient goes down beside the weights in both.
    assert result.history[0].bytes_down == 4 * once.history[0].bytes_down
    assert result.history[0].bytes_up == 2 * once.history[0].bytes_up
    assert result.history[0].examples == once.history[0].examples == len(x)


def coordinator(algorithm: fw.Algorithm, cohort: int = 3, rounds: int = 2) -> Coordinator:
    state = algorithm.init(np.zeros(2))
    return Coordinator(algorithm, state, np.zeros(0), 3, cohort, Synchronous(), Rules(rounds, evaluate_every=0), 0)


def block(train: Train, value: float, survey: bool, refused: tuple = ()) -> Arrived:
    reduce, partial = Mean(), Mean().empty()
    name = "gradient" if survey else "delta"
    partial = reduce.add(partial, fw.Update(**{name: np.full(2, value)}, weight=1))
    return Arrived(train.round, 0, 2, partial, Tally(counted=2, bytes_up=10, bytes_down=5, refused=refused), survey)


def test_the_coordinator_keeps_the_two_conversations_apart() -> None:
    c = coordinator(Surveys())
    (first,) = c.handle(Begin(), 1.0)
    assert isinstance(first, Train)
    assert first.survey
    (ignored,) = c.handle(block(first, 1.0, survey=False), 2.0)
    assert isinstance(ignored, Ignored)
    assert "for the training of round 1" in ignored.reason
    assert c.handle(block(first, 7.0, survey=True, refused=((0, "bad"),)), 2.0) == []
    c.validate_state()
    (second,) = c.handle(Failed(1, 2, "it went away", survey=True), 3.0)
    assert isinstance(second, Train)
    assert not second.survey
    assert second.round == 1
    assert second.clients.tolist() == first.clients.tolist()
    assert c.state.mean.tolist() == [7.0, 7.0]
    (ignored,) = c.handle(Failed(1, 2, "again", survey=True), 3.0)
    assert isinstance(ignored, Ignored)
    assert "for the survey of round 1" in ignored.reason
    c.handle(block(second, 1.0, survey=False), 4.0)
    published, train = c.handle(Failed(1, 2, "it went away"), 5.0)
    assert isinstance(published, Publish)
    assert isinstance(train, Train)
    assert train.survey
    record = published.record
    # Client 2 was sent the weights and the mean gradient, four numbers, twice, for nothing.
    assert (record.seconds, record.bytes_up, record.bytes_down) == (4.0, 20, 10 + 2 * 4 * 8)
    assert record.refused == ((0, "bad"),)
    assert (record.dropped, record.reasons) == ((2,), ("it went away",))


def test_a_survey_that_nobody_answers_changes_nothing_and_the_round_goes_on() -> None:
    c = coordinator(Surveys(), cohort=1)
    c.handle(Begin())
    (second,) = c.handle(Failed(1, 0, "gone", survey=True))
    assert isinstance(second, Train)
    assert not second.survey
    assert c.state.mean.tolist() == [0.0, 0.0]


@dataclass(frozen=True)
class Deaf(fw.Algorithm):
    """Surveys, and makes nothing of it."""

    surveys: ClassVar[bool] = True


def test_a_survey_that_is_not_listened_to_leaves_fedavg() -> None:
    settings_ = {"model": "logistic", "data": digits(), "cohort": 3, "rounds": 2}
    assert fw.simulate(algorithm=Deaf(), **settings_).model_hash == fw.simulate(**settings_).model_hash


# A reduction that remembers ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Remembers(Mean):
    """The mean, plus what came out last time."""

    remembers: ClassVar[bool] = True
    moment: Moment | None = None

    def at(self, moment):
        return Remembers(moment)

    def result(self, partial):
        found = super().result(partial)
        last = 0 if self.moment is None or self.moment.last is None else self.moment.last
        return found.replace(delta=found.delta + last)


def test_a_reduction_is_told_what_it_gave_last_and_that_is_part_of_a_checkpoint(tmp_path) -> None:
    settings_ = {
        "model": "logistic",
        "data": digits(),
        "algorithm": fw.FedAvg(reduce=Remembers()),
        "cohort": 3,
        "local": fw.Local(lr=0.01),
        "evaluate_every": 0,
    }
    whole = fw.simulate(**settings_, rounds=4)
    fw.simulate(**settings_, rounds=2, out=tmp_path / "run")
    resumed = fw.resume(tmp_path / "run", rounds=4, algorithm=settings_["algorithm"])
    assert resumed.model_hash == whole.model_hash
    assert whole.model_hash != fw.simulate(**settings_ | {"algorithm": "fedavg"}, rounds=4).model_hash


# How much clients do -----------------------------------------------------------------------------------------------------


def asked_of(clients: Any, local: fw.Local, seed: int = 0, round: int = 1) -> population.Asked:
    return population.Asked(seed, round, clients, local, np.full(len(clients), 100))


@given(
    share=st.floats(0, 1),
    epochs=st.integers(1, 30),
    cohort=st.integers(1, 40),
    seed=st.integers(0, 99),
    round=st.integers(1, 9),
)
@settings(max_examples=60, deadline=None)
def test_stragglers_are_the_asked_share_and_do_one_epoch_to_all(share, epochs, cohort, seed, round) -> None:
    clients, local = np.arange(cohort), fw.Local(epochs=epochs)
    asked = asked_of(clients, local, seed, round)
    kept = population.Stragglers(share).plan(asked)
    dropped = population.Stragglers(share, drop=True).plan(asked)
    assert dropped.count(None) == cohort - int(np.floor(cohort * (1 - share) + 0.5))
    for one, other in zip(kept, dropped, strict=True):
        assert 1 <= one.epochs <= epochs
        assert other is None or other == one == local
    assert kept == population.Stragglers(share).plan(asked)


def test_stragglers_are_drawn_anew_each_round_and_reach_every_number_of_epochs() -> None:
    local, effort = fw.Local(epochs=4), population.Stragglers(1.0)
    drawn = [one.epochs for round in range(1, 40) for one in effort.plan(asked_of(np.arange(10), local, round=round))]
    counts = np.bincount(np.array(drawn, int), minlength=5)[1:]
    assert counts.min() > 390 / 4 * 0.6
    steps = population.Stragglers(1.0).plan(asked_of(np.arange(10), fw.Local(steps=3)))
    assert {one.steps for one in steps} <= {1, 2, 3}
    assert population.Full().plan(asked_of(np.arange(2), local)) == [local, local]


@given(low=st.integers(0, 5), more=st.integers(0, 5), seed=st.integers(0, 99))
def test_uniform_epochs(low: int, more: int, seed: int) -> None:
    plans = population.Uniform(low, low + more).plan(asked_of(np.arange(50), fw.Local(), seed))
    assert {one.epochs for one in plans} <= set(range(low, low + more + 1))
    by_steps = population.Uniform(low, low + more).plan(asked_of(np.arange(50), fw.Local(steps=1), seed))
    assert [one.steps for one in by_steps] == [one.epochs for one in plans]


def test_efforts_by_name() -> None:
    for text in ("full", "stragglers(share=0.5, drop=True)", "uniform(low=2, high=5)"):
        assert population.spell(population.effort(text)) == text
    assert population.effort(population.Full()) == population.Full()
    with pytest.raises(UnknownName, match="no effort called 'ful'"):
        population.effort("ful")
    with pytest.raises(UsageError, match=r"share is 2"):
        population.effort("stragglers(share=2)")
    with pytest.raises(UsageError, match="low is 5 and high is 2"):
        population.effort("uniform(low=5, high=2)")
    with pytest.raises(UsageError, match="give an Effort"):
        population.effort(3)


def test_dropped_clients_are_named_and_do_not_move_the_model() -> None:
    settings_ = {"model": "logistic", "data": digits(), "cohort": 6, "rounds": 2, "local": fw.Local(epochs=2)}
    result = fw.simulate(effort="stragglers(share=0.5, drop=True)", **settings_)
    for record in result.history:
        assert len(record.dropped) == 3
        assert set(record.dropped) < set(record.cohort)
    none = fw.simulate(effort="stragglers(share=1, drop=True)", **settings_)
    assert none.status == "rounds"
    assert none.history[-1].model_hash == none.start.model_hash
    assert fw.simulate(effort="stragglers(share=0)", **settings_).model_hash == fw.simulate(**settings_).model_hash
    partial = fw.simulate(effort="uniform(low=1, high=1)", **settings_)
    assert partial.model_hash == fw.simulate(**settings_ | {"local": fw.Local(epochs=1)}).model_hash


# More than one gradient, more than one model -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Twice(fw.Algorithm):
    """Asks for the gradient twice; steps by the mean of both."""

    def direction(self, y, gradient, ask, mine, progress):
        return (gradient(y) + gradient(y.clone())) / 2


def test_the_gradient_of_a_step_is_one_function_however_often_it_is_asked() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 20), nn.BatchNorm1d(20), nn.Dropout(0.5), nn.ReLU(), nn.Linear(20, 3))
    x, y = torch.randn(24, 4), torch.arange(24) % 3
    local = fw.Local(lr=0.1, epochs=2, batch_size=8)

    def outcome(algorithm: fw.Algorithm):
        model = Model(copy.deepcopy(module))
        trainer = Trainer(model, x, y, algorithm)
        return trainer.turn(fw.Ask(weights=model.flat.clone()), model.statistics(), None, np.arange(24), TURN, local)

    once, twice = outcome(fw.FedAvg()), outcome(Twice())
    torch.testing.assert_close(twice.update.delta, once.update.delta)
    torch.testing.assert_close(twice.buffers, once.buffers)
    assert twice.loss == pytest.approx(once.loss)


@dataclass(frozen=True)
class Pair(fw.Algorithm):
    """Trains two models, the second one downhill three times as fast, and says what progress it was told."""

    def start(self, ask, mine):
        return torch.cat([ask.weights, ask.weights])

    def direction(self, y, gradient, ask, mine, progress):
        size = len(ask.weights)
        TOLD.append(progress)
        return torch.cat([gradient(y[:size]), 3 * gradient(y[size:])])

    def report(self, delta, work, ask, mine):
        size = len(ask.weights)
        return fw.Update(delta=delta[:size], weight=work.examples), fw.Arrays(own=delta[size:])


TOLD: list[Progress] = []


def test_a_client_may_train_two_models_at_once() -> None:
    x, y = torch.randn(20, 4, generator=torch.Generator().manual_seed(1)), torch.arange(20) % 3
    local = fw.Local(lr=0.05, epochs=2, batch_size=8, momentum=0.5, clip_norm=0.1)

    def outcome(algorithm: fw.Algorithm, lr: float = 0.05):
        model = Model(build("logistic", (4,), 3, 0))
        trainer = Trainer(model, x, y, algorithm)
        settings_ = fw.Local(**{**local.__dict__, "lr": lr})
        return trainer.turn(fw.Ask(weights=model.flat.clone()), torch.zeros(0), None, np.arange(20), TURN, settings_)

    TOLD.clear()
    both, single = outcome(Pair()), outcome(fw.FedAvg())
    torch.testing.assert_close(both.update.delta, single.update.delta)
    # Each model's direction is clipped by its own norm: three times as steep, clipped, is as steep.
    torch.testing.assert_close(both.mine.own, single.update.delta, rtol=0.3, atol=1e-3)
    assert [Progress(done, 6, 3) for done in range(6)] == TOLD


@dataclass(frozen=True)
class Shifted(fw.Algorithm):
    """Starts from somewhere else than the server's weights."""

    needs: ClassVar[frozenset[str]] = frozenset({"start_gradient"})

    def start(self, ask, mine):
        return ask.weights + 1.0

    def report(self, delta, work, ask, mine):
        return fw.Update(delta=delta, gradient=work.start_gradient, weight=work.examples), mine


def test_where_a_client_starts_is_its_own_affair() -> None:
    x, y = torch.randn(20, 4, generator=torch.Generator().manual_seed(1)), torch.arange(20) % 3
    model = Model(build("logistic", (4,), 3, 0))
    weights = model.flat.clone()
    local = fw.Local(lr=0.1, epochs=1, batch_size=None)
    outcome = Trainer(model, x, y, Shifted()).turn(fw.Ask(weights=weights), torch.zeros(0), None, np.arange(20), TURN, local)
    model.load(weights, torch.zeros(0))
    torch.testing.assert_close(outcome.update.gradient, flatten(model.gradients(x, y)[1]))
    model.load(weights + 1.0, torch.zeros(0))
    torch.testing.assert_close(outcome.update.delta, -0.1 * flatten(model.gradients(x, y)[1]))


# A model of one's own ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OnlyMine(fw.Algorithm):
    """Every client keeps what it learned; the server's model never moves."""

    def start(self, ask, mine):
        return ask.weights if mine is None else mine.model

    def report(self, delta, work, ask, mine):
        start = ask.weights if mine is None else mine.model
        return fw.Update(delta=delta * 0, weight=work.examples), fw.Arrays(model=start + delta)

    def personal(self, weights, mine):
        return weights if mine is None else mine.model


def test_clients_are_measured_with_their_own_models() -> None:
    split = fw.data.partition(fw.data.load("digits"), fw.Shards(per_client=1), clients=6, seed=1)
    result = fw.simulate(model="logistic", data=split, algorithm=OnlyMine(), cohort=6, rounds=3, local=fw.Local(lr=0.5))
    last = result.history[-1].metrics
    assert last["clients_accuracy"] > 0.9
    assert last["accuracy"] == result.start.metrics["accuracy"] < 0.5
    assert result.config.evaluate == "both"


# What cannot be put together ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plain(fw.Algorithm):
    assumes_sgd: ClassVar[str] = "it divides by the learning rate"
    assumes_mean: ClassVar[str] = "it needs a sum"


@pytest.mark.parametrize(
    ("local", "reduce", "message"),
    [
        (fw.Local(momentum=0.9), Mean(), r"Plain cannot be used with momentum=0.9: it divides"),
        (fw.Local(optimizer="adam", clip_norm=1.0), Mean(), r"with optimizer='adam', clip_norm=1.0: it divides"),
        (fw.Local(lr=0.0), Mean(), "with lr=0: it divides by the learning rate"),
        (fw.Local(), fw.reduce.Median(), "with reduce=Median: it needs a sum. Leave reduce at Mean()"),
    ],
)
def test_what_the_mathematics_forbids_is_refused_with_the_reason(local, reduce, message: str) -> None:
    with pytest.raises(UsageError, match=message.replace("(", r"\(").replace(")", r"\)")):
        fw.simulate(model="logistic", data=digits(), algorithm=Plain(reduce=reduce), local=local, rounds=1)


def test_conditions_of_a_reduction_are_checked_before_the_first_round() -> None:
    with pytest.raises(UsageError, match=r"(?i)krum"):
        fw.simulate(model="logistic", data=digits(), algorithm="fedavg(reduce=krum(f=2))", cohort=6, rounds=1)


def test_fields_of_every_algorithm_are_checked() -> None:
    with pytest.raises(UsageError, match="weighting is 'size'"):
        fw.FedAvg(weighting="size")
    with pytest.raises(UsageError, match="reduce is 'krum'"):
        fw.FedAvg(reduce="krum")
    for value, message in ((0.0, r"above 0"), (2, r"\(0, 1\)"), (True, "x is True"), (float("nan"), "nan")):
        with pytest.raises(UsageError, match=message):
            within("x", value, 0, **({"above": True} if value == 0 else {"most": 1, "above": True, "below": True}))
    with pytest.raises(UsageError, match=r"from 0 up"):
        within("x", -1, 0)
    with pytest.raises(UsageError, match=r"\[0, 1\]"):
        within("x", -1, 0, 1)


def test_uniform_weighting_counts_all_clients_with_examples_alike() -> None:
    algorithm = fw.FedAvg(weighting="uniform")
    assert algorithm.weight(fw.Work(examples=7)) == 1.0
    assert algorithm.weight(fw.Work(examples=0)) == 0.0
    assert algorithm.weight(fw.Work(examples=np.array([[3.0], [0.0]]))).tolist() == [[1.0], [0.0]]


# Names within names ------------------------------------------------------------------------------------------------------


def test_a_reduction_is_written_inside_an_algorithms_call() -> None:
    text = "fedavg(reduce=bucketing(s=3, then=nnm(f=1, then=trimmed_mean(f=1))))"
    value = algorithm(text)
    assert value.reduce.then.then.f == 1
    assert algorithm(spell(value)) == value
    assert spell(algorithm("fedavg(reduce=median)")) == "fedavg(reduce=median)"
    assert algorithm("fedavg(reduce='krum(f=2)')") == algorithm("fedavg(reduce=krum(f=2))")
    with pytest.raises(UnknownName, match="no reduction called 'crum'"):
        algorithm("fedavg(reduce=crum(f=2))")
    with pytest.raises(UnknownName, match="no parameter of krum called 'g'"):
        algorithm("fedavg(reduce=krum(g=2))")
    with pytest.raises(UsageError, match="server_lr of fedsgd is 'high'"):
        algorithm("fedsgd(server_lr=high)")
    for bad in ("fedavg(reduce=krum(2))", "fedavg(reduce=krum(**{}))", "fedavg(reduce=a.b(f=1))"):
        with pytest.raises(UsageError, match="Cannot read"):
            algorithm(bad)
    with pytest.raises(UsageError, match="not a fedweave Effort"):
        names.chosen("effort", population.EFFORTS, population.Effort, "builtins:dict")

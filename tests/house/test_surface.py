# SPDX-License-Identifier: Apache-2.0
"""The public surface, frozen: whoever changes it changes this file, and says so in the changelog."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import fedweave as fw

NAMES = set(
    """
    Algorithm algorithms APFL Arrays Ask attacks Bucketing Bulyan ByColumn CentredClipping Classes Client Cohort data Dirichlet
    Ditto FedAdagrad FedAdam FedAvg FedAvgM FedBN FedDyn FedMA FedNova FedPer FedProx FedRep FedSGD FedweaveError FedYogi
    matching GeometricMedian IID Krum Local LogNormal Mean Median Mime MimeLite MultiKrum NNM NormClipping population Population
    PowerLaw QFedAvg Reduction Result resume Round sampling SCAFFOLD Shards simulate State Trained TrimmedMean Turn Update Work
    WorkerMomentum
    """.split()
)

DATA = {"from_arrays", "from_clients", "from_huggingface", "from_torch", "load", "load_split", "partition"}

SIMULATE: dict[str, Any] = {
    "model": inspect.Parameter.empty,
    "data": inspect.Parameter.empty,
    "algorithm": "fedavg",
    "local": None,
    "cohort": 0.1,
    "rounds": 100,
    "target": None,
    "stop_at_target": True,
    "patience": None,
    "max_seconds": None,
    "seed": 0,
    "initial": None,
    "evaluate_every": 1,
    "evaluate": "auto",
    "buffers": "mean",
    "loss": None,
    "metrics": None,
    "out": None,
    "policy": "synchronous",
    "population": None,
    "sampling": "uniform",
    "effort": "full",
    "attack": None,
    "byzantine": 0,
    "diagnostics": True,
    "engine": "auto",
    "workers": None,
    "threads": None,
    "checkpoint_every": 10.0,
    "profile": False,
    "observer": None,
}

LOCAL = {
    "lr": 0.1,
    "epochs": None,
    "steps": None,
    "batch_size": 10,
    "optimizer": "sgd",
    "momentum": 0.0,
    "weight_decay": 0.0,
    "clip_norm": None,
    "lr_decay": 1.0,
    "shuffle": "epoch",
}


def _defaults(function: Any) -> dict[str, Any]:
    return {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}


def test_names() -> None:
    assert set(fw.__all__) == NAMES
    assert dir(fw) == sorted(NAMES)
    for name in NAMES:
        assert getattr(fw, name) is not None


@pytest.mark.parametrize("first", ["fw.simulate", "fw.resume", "from fedweave.app import cli", "import fedweave.simulation"])
def test_simulate_is_the_function_whatever_was_imported_first(first: str) -> None:
    """A module of the same name below the package would take its place once it is imported."""
    source = str(Path(fw.__file__).parents[1])
    code = (
        f"import sys; sys.path.insert(0, {source!r})\nimport fedweave as fw\n{first}\nfw.resume\nassert callable(fw.simulate)"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="fedavgg"):
        fw.fedavgg  # noqa: B018


def test_data_names() -> None:
    missing = [name for name in DATA if not callable(getattr(fw.data, name, None))]
    assert not missing


def test_simulate() -> None:
    assert _defaults(fw.simulate) == SIMULATE
    kinds = {parameter.kind for parameter in inspect.signature(fw.simulate).parameters.values()}
    assert kinds == {inspect.Parameter.KEYWORD_ONLY}


def test_resume() -> None:
    parameters = _defaults(fw.resume)
    assert list(parameters) == ["folder", "rounds", "model", "data", "algorithm", "loss", "metrics", "observer"]
    assert set(list(parameters.values())[1:]) == {None}


def test_local() -> None:
    assert _defaults(fw.Local) == LOCAL


def test_result_and_round() -> None:
    result = {name for name in dir(fw.Result) if not name.startswith("_")} | {f.name for f in dataclasses.fields(fw.Result)}
    assert {
        "history",
        "start",
        "rounds_to_target",
        "rounds_to",
        "weights",
        "model_hash",
        "status",
        "message",
        "module",
    } <= result
    record = {f.name for f in dataclasses.fields(fw.Round)}
    assert {"number", "metrics", "cohort", "bytes_down", "bytes_up", "seconds", "model_hash"} <= record


def test_partition_functions() -> None:
    assert list(_defaults(fw.data.partition)) == ["data", "how", "clients", "seed", "holdout"]
    assert list(_defaults(fw.data.from_clients))[1:] == ["test", "tests"]
    assert _defaults(fw.data.partition)["seed"] == 0


@pytest.mark.parametrize(
    ("how", "given"),
    [
        (fw.IID, {}),
        (fw.Shards, {"per_client": 2}),
        (fw.Dirichlet, {"alpha": 0.3}),
        (fw.Classes, {"k": 2}),
        (fw.LogNormal, {"sigma": 1.0}),
        (fw.PowerLaw, {}),
    ],
)
def test_partitioners_take_the_documented_arguments(how: Any, given: dict[str, Any]) -> None:
    made = how(**given)
    assert {name: getattr(made, name) for name in given} == given


def test_by_column_takes_the_name_in_its_place() -> None:
    assert fw.ByColumn("hospital") == fw.ByColumn(**{next(iter(_defaults(fw.ByColumn))): "hospital"})


def test_algorithms_by_name() -> None:
    assert fw.algorithms() == {
        "fedavg": fw.FedAvg,
        "fedsgd": fw.FedSGD,
        "fedprox": fw.FedProx,
        "fedavgm": fw.FedAvgM,
        "fedadagrad": fw.FedAdagrad,
        "fedadam": fw.FedAdam,
        "fedyogi": fw.FedYogi,
        "fednova": fw.FedNova,
        "scaffold": fw.SCAFFOLD,
        "feddyn": fw.FedDyn,
        "mime": fw.Mime,
        "mime-lite": fw.MimeLite,
        "qfedavg": fw.QFedAvg,
        "worker-momentum": fw.WorkerMomentum,
        "fedma": fw.FedMA,
        "ditto": fw.Ditto,
        "fedbn": fw.FedBN,
        "fedper": fw.FedPer,
        "fedrep": fw.FedRep,
        "apfl": fw.APFL,
    }
    assert fw.FedSGD(server_lr=0.5).server_lr == 0.5


FIELDS = {
    fw.FedSGD: {"server_lr": 1.0},
    fw.FedProx: {"mu": 0.01, "adaptive": False},
    fw.FedAvgM: {"server_lr": 1.0, "momentum": 0.9},
    fw.FedAdagrad: {"server_lr": 1.0, "beta1": 0.0, "tau": 1e-3},
    fw.FedAdam: {"server_lr": 1.0, "beta1": 0.9, "beta2": 0.99, "tau": 1e-3},
    fw.FedYogi: {"server_lr": 1.0, "beta1": 0.9, "beta2": 0.99, "tau": 1e-3},
    fw.FedNova: {"server_lr": 1.0, "momentum": 0.0, "mu": 0.0},
    fw.SCAFFOLD: {"server_lr": 1.0, "option": 2, "weighting": "uniform"},
    fw.FedDyn: {"alpha": 0.01, "weighting": "uniform"},
    fw.QFedAvg: {"q": 1.0, "weighting": "examples"},
    fw.FedMA: {"gamma": 7.0, "sigma": 1.0, "sigma0": 1.0, "sweeps": 5, "communicate": True, "estimate": "mean"},
}


@pytest.mark.parametrize("kind", FIELDS, ids=lambda kind: kind.__name__)
def test_the_names_of_hyperparameters(kind: Any) -> None:
    made = kind()
    assert {name: getattr(made, name) for name in FIELDS[kind]} == FIELDS[kind]

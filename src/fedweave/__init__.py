# SPDX-License-Identifier: Apache-2.0
"""fedweave: one model over many clients' data, without moving the data."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fedweave import attacks, data, population, sampling
from fedweave.algorithms import (
    APFL,
    SCAFFOLD,
    Ditto,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedBN,
    FedDyn,
    FedMA,
    FedNova,
    FedPer,
    FedProx,
    FedRep,
    FedSGD,
    FedYogi,
    Mime,
    MimeLite,
    QFedAvg,
    WorkerMomentum,
    algorithms,
)
from fedweave.contract import Algorithm, Arrays, Ask, Cohort, Local, Mean, Reduction, State, Update, Work
from fedweave.data import IID, ByColumn, Classes, Dirichlet, LogNormal, PowerLaw, Shards
from fedweave.errors import FedweaveError
from fedweave.population import Population
from fedweave.reduce import (
    NNM,
    Bucketing,
    Bulyan,
    CentredClipping,
    GeometricMedian,
    Krum,
    Median,
    MultiKrum,
    NormClipping,
    TrimmedMean,
)

if TYPE_CHECKING:
    from fedweave import matching
    from fedweave.net.own import Client, Trained, Turn
    from fedweave.simulation import Result, Round, resume, simulate

__version__ = "0.1.0"

_LATER = {
    **dict.fromkeys(("Result", "Round", "resume", "simulate"), "fedweave.simulation"),
    **dict.fromkeys(("Client", "Trained", "Turn"), "fedweave.net.own"),
}
"""Names whose module needs torch: imported when first used, so that ``import fedweave`` stays light."""


def __getattr__(name: str) -> Any:
    if name == "matching":
        return import_module("fedweave.matching")
    if name in _LATER:
        found = globals()[name] = getattr(import_module(_LATER[name]), name)
        return found
    raise AttributeError(f"module 'fedweave' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


__all__ = [
    "APFL",
    "IID",
    "NNM",
    "SCAFFOLD",
    "Algorithm",
    "Arrays",
    "Ask",
    "Bucketing",
    "Bulyan",
    "ByColumn",
    "CentredClipping",
    "Classes",
    "Client",
    "Cohort",
    "Dirichlet",
    "Ditto",
    "FedAdagrad",
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "FedBN",
    "FedDyn",
    "FedMA",
    "FedNova",
    "FedPer",
    "FedProx",
    "FedRep",
    "FedSGD",
    "FedYogi",
    "FedweaveError",
    "GeometricMedian",
    "Krum",
    "Local",
    "LogNormal",
    "Mean",
    "Median",
    "Mime",
    "MimeLite",
    "MultiKrum",
    "NormClipping",
    "Population",
    "PowerLaw",
    "QFedAvg",
    "Reduction",
    "Result",
    "Round",
    "Shards",
    "State",
    "Trained",
    "TrimmedMean",
    "Turn",
    "Update",
    "Work",
    "WorkerMomentum",
    "algorithms",
    "attacks",
    "data",
    "matching",
    "population",
    "resume",
    "sampling",
    "simulate",
]

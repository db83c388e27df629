# SPDX-License-Identifier: Apache-2.0
"""fedweave: one model over many clients' data, without moving the data."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fedweave import data
from fedweave.algorithms import FedAvg, FedSGD, algorithms
from fedweave.contract import Algorithm, Arrays, Ask, Cohort, Local, Mean, Reduction, State, Update, Work
from fedweave.data import IID, ByColumn, Classes, Dirichlet, LogNormal, PowerLaw, Shards
from fedweave.errors import FedweaveError

if TYPE_CHECKING:
    from fedweave.simulation import Result, Round, resume, simulate

__version__ = "0.1.0"

_LATER = dict.fromkeys(("Result", "Round", "resume", "simulate"), "fedweave.simulation")
"""Names whose module needs torch: imported when first used, so that ``import fedweave`` stays light."""


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(import_module(_LATER[name]), name)
    raise AttributeError(f"module 'fedweave' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


__all__ = [
    "IID",
    "Algorithm",
    "Arrays",
    "Ask",
    "ByColumn",
    "Classes",
    "Cohort",
    "Dirichlet",
    "FedAvg",
    "FedSGD",
    "FedweaveError",
    "Local",
    "LogNormal",
    "Mean",
    "PowerLaw",
    "Reduction",
    "Result",
    "Round",
    "Shards",
    "State",
    "Update",
    "Work",
    "algorithms",
    "data",
    "resume",
    "simulate",
]

# SPDX-License-Identifier: Apache-2.0
"""Data sets, and who holds which examples of them."""

from __future__ import annotations

from fedweave.data.dataset import Dataset
from fedweave.data.own import from_arrays, from_clients, from_huggingface, from_torch
from fedweave.data.partitioners import (
    IID,
    PARTITIONERS,
    ByColumn,
    Classes,
    Dirichlet,
    LogNormal,
    Partitioner,
    PowerLaw,
    Shards,
    partition,
    partitioner,
)
from fedweave.data.registry import DATASETS, load
from fedweave.data.saved import load_split
from fedweave.data.split import Split

__all__ = [
    "DATASETS",
    "IID",
    "PARTITIONERS",
    "ByColumn",
    "Classes",
    "Dataset",
    "Dirichlet",
    "LogNormal",
    "Partitioner",
    "PowerLaw",
    "Shards",
    "Split",
    "from_arrays",
    "from_clients",
    "from_huggingface",
    "from_torch",
    "load",
    "load_split",
    "partition",
    "partitioner",
]
